"""Which system packages rendering needs here, and the commands that install them. Standard library only.

`python scripts/system_packages.py` prints the commands for this machine. ManiSkill renders without a GPU by Mesa's
lavapipe; it needs VK_KHR_external_semaphore_fd, which Mesa has since 24.3. MuJoCo draws by the EGL of the same Mesa.
Debian 12 gets both from its backports.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

DRIVERS = ("mesa-vulkan-drivers", "libegl-mesa0")
LIBRARIES = ("libvulkan1", "libegl1", "libgl1", "libglx0", "ffmpeg")
ADDED_STEM = "worldloop-backports"
ONE_LINE = re.compile(r"^deb\s+(?P<options>\[[^\]]*\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>.+)$")


class UnsupportedSystemError(Exception):
    """This machine's packages cannot be derived; the text says what the user can do."""


@dataclass(frozen=True)
class SourceFile:
    """One file of apt sources: its name decides the format (`.sources` is deb822, `.list` is one line each)."""

    name: str
    text: str


@dataclass(frozen=True)
class Step:
    """One command; with `content`, the file that the last argument names is written instead."""

    argv: tuple[str, ...]
    content: str | None = None
    may_fail: bool = False

    def as_shell(self, sudo: bool) -> str:
        """The line a person types."""
        prefix = "sudo " if sudo else ""
        if self.content is None:
            return prefix + shlex.join(self.argv)
        lines = " ".join(shlex.quote(line) for line in self.content.splitlines())
        return f"printf '%s\\n' {lines} | {prefix}tee {shlex.quote(self.argv[-1])}"


def parse_os_release(text: str) -> dict[str, str]:
    """`/etc/os-release` as a dictionary."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {key.strip(): value.strip().strip("\"'") for key, value in pairs}


def _stanzas(text: str) -> list[dict[str, str]]:
    """deb822 stanzas; a continuation line stays part of its field, comment lines vanish."""
    stanzas: list[dict[str, str]] = []
    fields: dict[str, str] = {}
    key = ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            continue
        if not line.strip():
            if fields:
                stanzas.append(fields)
            fields, key = {}, ""
        elif line[0] in " \t" and key:
            fields[key] += "\n" + line
        elif ":" in line:
            key, value = line.split(":", 1)
            fields[key] = value.strip()
    return stanzas


def _field(stanza: dict[str, str], name: str) -> list[str]:
    return next((value.split() for key, value in stanza.items() if key.lower() == name.lower()), [])


def _enabled_stanzas(sources: list[SourceFile]) -> list[dict[str, str]]:
    stanzas = [stanza for source in sources if source.name.endswith(".sources") for stanza in _stanzas(source.text)]
    return [s for s in stanzas if "deb" in _field(s, "Types") and _field(s, "Enabled") not in (["no"], ["false"])]


def _enabled_lines(sources: list[SourceFile]) -> list[re.Match[str]]:
    lines = [line.split("#")[0].strip() for s in sources if s.name.endswith(".list") for line in s.text.splitlines()]
    return [match for line in lines if (match := ONE_LINE.match(line))]


def has_suite(sources: list[SourceFile], suite: str) -> bool:
    """Whether an enabled source already offers `suite`."""
    in_stanza = any(suite in _field(stanza, "Suites") for stanza in _enabled_stanzas(sources))
    return in_stanza or any(match["suite"] == suite for match in _enabled_lines(sources))


def derive_backports(sources: list[SourceFile], codename: str) -> SourceFile:
    """The backports suite at the place from which this machine already gets `codename`, with the same options.

    Raises UnsupportedSystemError when no enabled source offers `codename` main.
    """
    suite = f"{codename}-backports"
    for stanza in _enabled_stanzas(sources):
        if codename in _field(stanza, "Suites") and "main" in _field(stanza, "Components"):
            changed = {"types": "deb", "suites": suite, "components": "main"}
            lines = [f"{key}: {changed.get(key.lower(), value)}" for key, value in stanza.items()]
            return SourceFile(f"{ADDED_STEM}.sources", "\n".join(lines) + "\n")
    for match in _enabled_lines(sources):
        if match["suite"] == codename and "main" in match["components"].split():
            return SourceFile(f"{ADDED_STEM}.list", f"deb {match['options'] or ''}{match['uri']} {suite} main\n")
    raise UnsupportedSystemError(f"none of this machine's apt sources offers {codename} main; add {suite} by hand")


def plan(os_release: dict[str, str], sources: list[SourceFile], apt_directory: str = "/etc/apt") -> list[Step]:
    """The commands that install drivers and libraries for rendering. Raises UnsupportedSystemError elsewhere."""
    system, version = os_release.get("ID", "unknown"), os_release.get("VERSION_ID", "")
    number = tuple(int(part) for part in re.findall(r"\d+", version)) or (999,)  # testing has no version: newest
    install = ("apt-get", "install", "-y", "--no-install-recommends")
    packages: list[tuple[str, ...]] = [(*DRIVERS, *LIBRARIES)]
    steps: list[Step] = []
    if system == "debian" and number == (12,):
        codename = os_release.get("VERSION_CODENAME", "bookworm")
        if not has_suite(sources, f"{codename}-backports"):
            added = derive_backports(sources, codename)
            steps.append(Step(("tee", f"{apt_directory}/sources.list.d/{added.name}"), content=added.text))
        # Only the drivers come from backports; the libraries stay as the system has them.
        packages = [LIBRARIES, ("-t", f"{codename}-backports", *DRIVERS)]
    elif not ((system == "debian" and number >= (13,)) or (system == "ubuntu" and number >= (24, 4))):
        name = os_release.get("PRETTY_NAME", f"{system} {version}".strip())
        raise UnsupportedSystemError(
            f"{name}: install Mesa's lavapipe (Vulkan software driver) >= 24.3, the Vulkan loader, EGL, GL and ffmpeg"
        )
    # An unrelated broken source makes `update` fail although the packages needed here can be had.
    steps.append(Step(("apt-get", "update"), may_fail=True))
    return [*steps, *(Step((*install, *names)) for names in packages)]


def read_machine() -> tuple[dict[str, str], list[SourceFile]]:
    """This machine's os-release and apt sources."""
    release = Path("/etc/os-release")
    paths = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    files = [path for path in paths if path.suffix in (".list", ".sources") and path.is_file()]
    sources = [SourceFile(path.name, path.read_text(errors="replace")) for path in files]
    return parse_os_release(release.read_text() if release.is_file() else ""), sources


def can_become_root() -> bool:
    """Root, or sudo that asks for no password."""
    if os.geteuid() == 0:
        return True
    if shutil.which("sudo") is None:
        return False
    return subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode == 0


def execute(steps: list[Step]) -> bool:
    """Run the steps as root; a source file added here is removed again when a later step fails."""
    prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
    environment = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive"]
    added = [step.argv[-1] for step in steps if step.content is not None]
    for step in steps:
        result = subprocess.run([*environment, *step.argv], input=step.content, text=True, check=False)
        if result.returncode and not step.may_fail:
            for path in added:
                subprocess.run([*prefix, "rm", "-f", path], check=False)
            return False
    return True


def describe(steps: list[Step]) -> str:
    """The exact commands, indented, one a line."""
    return "\n".join("    " + step.as_shell(sudo=os.geteuid() != 0) for step in steps)


if __name__ == "__main__":
    try:
        print(describe(plan(*read_machine())))
    except UnsupportedSystemError as error:
        raise SystemExit(str(error)) from None
