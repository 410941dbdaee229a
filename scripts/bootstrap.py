"""Creates `.venv`, installs the pinned packages and this project, and makes rendering work. Standard library only.

Run by `scripts/setup.sh` with a suitable interpreter. Safe to repeat: a finished set-up returns at once, an
interrupted or failed one leaves no stamp and is mended by the next call. No package index is named here: pip and
uv use the user's own configuration.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes.util
import fcntl
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import system_packages

ROOT = Path(__file__).resolve().parents[1]
DISK_GIB = 9  # the packages take 7 GiB; unpacking needs room beside them
PROBE = "import sys; from worldloop.cli import doctor; r = doctor.{}(); print(r.detail); sys.exit(not r.ok)"


class SetupError(Exception):
    """Set-up cannot go on; the text is what the user reads."""


def say(message: str) -> None:
    print(f"[setup] {message}", flush=True)


def is_dry_run() -> bool:
    return os.environ.get("WORLDLOOP_SETUP_DRY_RUN", "") not in ("", "0")


def read_pin(lock_text: str, name: str) -> str | None:
    """`name==version` as the lock has it, or None."""
    match = re.search(rf"^{re.escape(name)}==[^\s;\\]+", lock_text, re.MULTILINE)
    return match[0] if match else None


def make_stamp(root: Path, base_python: str, version: str) -> dict[str, str]:
    """What a finished set-up was made from; any difference means that it must be done again."""
    digest = hashlib.sha256()
    for name in ("requirements.lock", "pyproject.toml"):
        digest.update((root / name).read_bytes())
    return {"root": str(root), "python": version, "base": base_python, "inputs": digest.hexdigest()}


def read_stamp(path: Path) -> dict[str, str]:
    try:
        stamp = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(path: Path, stamp: dict[str, str]) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(stamp))
    os.replace(temporary, path)


def index_environment(environment: dict[str, str], pip_configuration: str) -> dict[str, str]:
    """The environment for uv: pip's own configured index and certificate, which uv does not read by itself.

    ``pip_configuration`` is the output of `pip config list`. What the user configured for uv wins.
    """
    configured = dict(re.findall(r"^[\w:.]*?\.([\w-]+)='(.*)'$", pip_configuration, re.MULTILINE))
    result = dict(environment)
    has_uv_index = any(key in environment for key in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_CONFIG_FILE"))
    if "index-url" in configured and not has_uv_index:
        result["UV_DEFAULT_INDEX"] = configured["index-url"]
    if "cert" in configured:
        result.setdefault("SSL_CERT_FILE", configured["cert"])
    return result


def read_pip_configuration(pip: list[str]) -> str:
    return subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=False).stdout


def run(argv: list[str], environment: dict[str, str] | None = None) -> bool:
    """Run one command in the repository with its output visible, or print it in a dry run."""
    if is_dry_run():
        print("    " + shlex.join(argv), flush=True)
        return True
    return subprocess.run(argv, cwd=ROOT, env=environment, check=False).returncode == 0


def is_healthy(python: Path, version: str) -> bool:
    """Whether the environment's interpreter runs, has this version and can install packages."""
    code = "import pip, platform; print(platform.python_version())"
    try:
        result = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return result.returncode == 0 and result.stdout.strip() == version


def create_environment(venv: Path, base_python: str, version: str, stale_root: bool) -> None:
    """A working `.venv`: kept when healthy, made anew when broken, interrupted, moved or of another version."""
    python = venv / "bin" / "python"
    if not stale_root and is_healthy(python, version):
        return
    say(f"creating .venv with Python {version} ({base_python})")
    if not run([base_python, "-m", "venv", "--clear", str(venv)]):
        raise SetupError("could not create .venv; the lines above say why. Remove .venv and repeat the command.")


def install_packages(python: str, lock_text: str) -> None:
    """The pinned packages by uv where pip can get it, else by pip; then this project, editable."""
    free = shutil.disk_usage(ROOT).free / 2**30
    if free < DISK_GIB:
        say(f"warning: {free:.1f} GiB of disk are free here, {DISK_GIB} are needed for a first installation")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    uv_pin = read_pin(lock_text, "uv") or "uv"
    say("installing the pinned packages: up to 7 GB, one to ten minutes the first time")
    environment = index_environment(dict(os.environ), "" if is_dry_run() else read_pip_configuration(pip))
    # The lock is complete, so nothing is resolved here: opencv-python, which it leaves out on purpose, stays out.
    arguments = ["install", "--no-deps", "-r", "requirements.lock"]
    installed = False
    if run([*pip, "install", "--quiet", uv_pin]):
        # pip compiles by itself. Else every process would, where PYTHONDONTWRITEBYTECODE is set: seconds each time.
        uv = [python, "-m", "uv", "pip", *arguments, "--compile-bytecode", "--python", python]
        installed = run(uv, environment)
        if not installed:
            say("uv could not install the packages; trying pip, which takes longer")
    else:
        say("pip could not install uv; trying pip itself, which takes longer")
    if not installed and not run([*pip, *arguments]):
        raise SetupError(
            "the packages could not be installed; the lines above say why.\n"
            "Check the network, the disk, and pip's own configuration (python3 -m pip config list);\n"
            "then repeat the command."
        )
    project = ["install", "--quiet", "--no-deps", "--no-build-isolation", "-e", "."]
    if not run([*pip, *project]):
        raise SetupError("worldloop itself could not be installed into .venv; the lines above say why.")


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
    """One set-up at a time in one checkout; the lock file is a file that is there anyway, opened for reading."""
    with (ROOT / "requirements.lock").open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up runs in this directory; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # some network file systems have no such locks: go on without
        yield


def set_up_packages() -> Path:
    """Bring `.venv` to the state of requirements.lock and return its interpreter."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise SetupError("worldloop runs on Linux x86_64: SAPIEN, the simulator's engine, has no package for others.")
    venv, version = ROOT / ".venv", ".".join(map(str, sys.version_info[:3]))
    base_python = getattr(sys, "_base_executable", None) or sys.executable
    python, stamp_path = venv / "bin" / "python", venv / ".worldloop-setup.json"
    wanted = make_stamp(ROOT, base_python, version)
    if read_stamp(stamp_path) == wanted and python.exists():
        return python
    with exclusive():
        found = read_stamp(stamp_path)
        if found == wanted and python.exists():
            return python
        if not is_dry_run():
            stamp_path.unlink(missing_ok=True)
        # Scripts in .venv/bin name the directory in which they were made.
        create_environment(venv, base_python, version, found.get("root", str(ROOT)) != str(ROOT))
        install_packages(str(python), (ROOT / "requirements.lock").read_text())
        if not is_dry_run():
            write_stamp(stamp_path, wanted)
            say("packages are ready")
    return python


def ask_doctor(python: Path, probe: str) -> tuple[bool, str]:
    """Whether a probe of the doctor, by the name of its function, succeeds here, and what was found."""
    command = [str(python), "-c", PROBE.format(probe)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    detail = (result.stdout.strip() or result.stderr.strip() or "no answer").splitlines()[-1]
    return result.returncode == 0, detail


def can_render(python: Path) -> tuple[bool, str]:
    """Whether Vulkan renders here and FFmpeg's libraries are there, and what was found."""
    works, detail = ask_doctor(python, "probe_rendering")
    if works and ctypes.util.find_library("avcodec") is None:
        return False, "FFmpeg's libraries are missing"
    return works, detail


def can_draw(python: Path) -> tuple[bool, str]:
    """Whether MuJoCo can draw without a screen, which Meta-World alone needs, and what was found."""
    return ask_doctor(python, "probe_opengl")


def set_up_rendering(python: Path) -> bool:
    """Make Vulkan and MuJoCo's OpenGL work, installing drivers where that is possible; says what to do where it is not.

    Returns whether Vulkan does.
    """
    stamp_path = ROOT / ".venv" / ".worldloop-rendering.json"
    overridden = any(name in os.environ for name in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES"))
    if "opengl" in read_stamp(stamp_path) and not overridden:
        return True
    renders = False
    if not (is_dry_run() and not python.exists()):
        say("checking that Vulkan can render and that MuJoCo can draw")
        renders, draws = check_rendering(python, stamp_path, keeps_stamp=not (overridden or is_dry_run()))
        if renders and draws:
            return True
        if overridden and not renders:
            say("VK_DRIVER_FILES or VK_ICD_FILENAMES is set: unset it and repeat the command")
            return False
    try:
        steps = system_packages.plan(*system_packages.read_machine())
    except system_packages.UnsupportedSystemError as error:
        say(f"drivers cannot be installed from here. {error}. Then repeat the command.")
        return renders
    if is_dry_run() or not system_packages.can_become_root():
        say("would run, where rendering does not work:" if is_dry_run() else "the drivers need root. Please run:")
        print(system_packages.describe(steps), flush=True)
        return renders or is_dry_run()
    say("installing the drivers:")
    print(system_packages.describe(steps), flush=True)
    if not system_packages.execute(steps):
        say("the drivers could not be installed; the lines above say why")
        return renders
    return check_rendering(python, stamp_path, keeps_stamp=True)[0]


def check_rendering(python: Path, stamp_path: Path, keeps_stamp: bool) -> tuple[bool, bool]:
    """Whether Vulkan renders and whether MuJoCo draws; says what was found, and writes the stamp if both do."""
    (renders, device), (draws, opengl) = can_render(python), can_draw(python)
    say(f"rendering works: {device}" if renders else f"rendering does not work: {device}")
    say(f"MuJoCo draws with {opengl}" if draws else f"MuJoCo cannot draw, so there is no Meta-World: {opengl}")
    if renders and draws and keeps_stamp:
        write_stamp(stamp_path, {"detail": device, "opengl": opengl})
    return renders, draws


def main() -> int:
    parser = argparse.ArgumentParser(description="Set up worldloop in .venv.")
    parser.add_argument("--require-rendering", action="store_true", help="fail where Vulkan cannot render")
    options = parser.parse_args()
    try:
        python = set_up_packages()
        rendering = set_up_rendering(python)
    except SetupError as error:
        print(f"[setup] error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\n[setup] interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    if not rendering and options.require_rendering:
        print("[setup] error: ManiSkill cannot render on this machine yet; see above", file=sys.stderr)
        return 1
    if not rendering:
        say("going on without rendering: whatever needs ManiSkill will say so")
    return 0


if __name__ == "__main__":
    sys.exit(main())
