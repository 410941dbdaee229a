"""The floors of the house: imports only go down, heavy packages stay in their homes."""

import ast
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "worldloop"
MAX_LINES = 400  # lines that are not blank

# From the ground up, floor 1 first. A module imports from floors below and from its own package, never from another one
# beside it. One room in `HOMES` is reserved on purpose, and nobody lives there yet: diffusers in `value/*`.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("core",),
    ("networks", "training"),
    ("simulators", "sans", "world_model", "policies", "executability", "value", "rl", "storage"),
    ("factory",),
    ("rollout",),
    ("evaluation",),
    ("reporting",),
    ("stages",),
    ("config",),
    ("envs", "play", "runtime"),
    ("loop",),
    ("cli",),
    ("", "build", "gym_env", "__main__"),
)

# Where a heavy package may be imported at all; elsewhere not even inside a function.
HOMES: dict[str, tuple[str, ...]] = {
    "ray": ("runtime/ray*.py",),
    "mani_skill": ("simulators/maniskill/*",),
    "sapien": ("simulators/maniskill/*",),
    "mujoco": ("simulators/mujoco_*.py", "simulators/metaworld/*", "simulators/libero/*"),
    "metaworld": ("simulators/metaworld/*",),
    "libero": ("simulators/libero/*",),
    "robosuite": ("simulators/libero/*",),
    "lerobot": ("sans/*", "policies/lerobot/*"),
    "datasets": ("sans/*", "policies/lerobot/*"),
    "transformers": ("policies/*", "networks/*", "world_model/*"),
    "diffusers": ("world_model/*", "value/*"),
    "peft": ("world_model/*",),
    "obstore": ("storage/object_store.py",),
}
# What the command line must not pay for before it knows what it is asked to do.
LIGHT_CLI = (
    "torch",
    "gymnasium",
    "ray",
    "mani_skill",
    "sapien",
    "mujoco",
    "metaworld",
    "libero",
    "robosuite",
    "transformers",
    "lerobot",
    "datasets",
    "diffusers",
)


@dataclass(frozen=True)
class Import:
    """One imported module, absolute, with its line."""

    module: str
    line: int


def _targets(node: ast.AST, package: str) -> list[str]:
    """The modules that one node imports; `from a import b` gives `a.b`, so that `b` may be a module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*parents, base] if base else parents)
        return [f"{base}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in ("import_module", "__import__") and isinstance(node.args[0].value, str):
            return [node.args[0].value]
    return []


def find_imports(source: str, package: str) -> list[Import]:
    """All imports of a module that lies in `package`, also those inside functions and for type checkers alone."""
    nodes = ast.walk(ast.parse(source))
    return [Import(target, node.lineno) for node in nodes for target in _targets(node, package)]


def floor_of(part: str) -> int:
    """The floor of a top-level module or package of worldloop; an unknown one is an error that says what to do."""
    for floor, parts in enumerate(FLOORS, start=1):
        if part in parts:
            return floor
    raise AssertionError(f"worldloop/{part} has no floor: give it one in tests/test_architecture.py and the docs")


def top_part(path: str) -> str:
    """`rl/grpo.py` -> `rl`; `__main__.py` -> `__main__`; `__init__.py` -> ``."""
    first = path.split("/")[0].removesuffix(".py")
    return "" if first == "__init__" else first


def find_violations(path: str, source: str) -> list[str]:
    """What a module at `path` (below worldloop/) imports against the rules, one line each."""
    part = top_part(path)
    floor = floor_of(part)
    package = ".".join(["worldloop", *path.split("/")[:-1]])
    violations = []
    for item in find_imports(source, package):
        root, *rest = item.module.split(".")
        where = f"worldloop/{path}:{item.line} imports {item.module}"
        if root in HOMES and not any(fnmatch(path, home) for home in HOMES[root]):
            violations.append(f"{where}: only {', '.join(HOMES[root])} may")
        if root != "worldloop":
            continue
        target = rest[0] if rest else ""
        if target.startswith("__") and target != "__main__":
            target = ""
        target_floor = floor_of(target)
        if target_floor > floor:
            violations.append(f"{where}: up from floor {floor} to floor {target_floor}")
        if target_floor == floor and target not in (part, ""):
            violations.append(f"{where}: sideways on floor {floor}")
    return violations


def modules() -> list[str]:
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def test_imports_only_go_down():
    found = [v for path in modules() for v in find_violations(path, (PACKAGE / path).read_text())]
    assert not found, "\n" + "\n".join(found)


def test_modules_stay_readable():
    def count(path: str) -> int:
        return sum(1 for line in (PACKAGE / path).read_text().splitlines() if line.strip())

    long = {path: count(path) for path in modules() if count(path) > MAX_LINES}
    assert not long, f"split these modules: {long}"


@pytest.mark.parametrize(
    ("path", "source", "reason"),
    [
        ("core/types.py", "import worldloop.networks", "up from floor 1"),
        ("training/ema.py", "from worldloop.networks import blocks", "sideways on floor 2"),
        ("simulators/toy/simulator.py", "from worldloop.policies import token_vla", "sideways on floor 3"),
        ("simulators/toy/simulator.py", "from ...policies.token_vla import TokenVLA", "sideways on floor 3"),
        ("sans/store.py", "from worldloop.storage.run_state import LoopState", "sideways on floor 3"),
        ("simulators/base.py", "from .. import loop", "up from floor 3"),
        ("rl/grpo.py", "def f():\n    from worldloop import rollout", "up from floor 3"),
        ("factory/build.py", "from worldloop.config.schema import LoopConfig", "up from floor 4"),
        ("reporting/tables.py", "from worldloop.stages import STAGES", "up from floor 7"),
        ("stages/a.py", "from worldloop.config.schema import LoopConfig", "up from floor 8"),
        ("stages/a.py", "if TYPE_CHECKING:\n    from worldloop.runtime.inline import Runtime", "up from floor 8"),
        ("play/server.py", "from worldloop.envs import window", "sideways on floor 10"),
        ("loop/run.py", "def f():\n    import ray", "only runtime/ray*.py"),
        ("runtime/inline.py", "from ray.train import torch", "only runtime/ray*.py"),
        ("simulators/base.py", "import sapien.core as s", "only simulators/maniskill/*"),
        ("factory/a.py", "import importlib\nimportlib.import_module('mani_skill.envs')", "only simulators/maniskill/*"),
        ("policies/token_vla/policy.py", "import lerobot", "only sans/*, policies/lerobot/*"),
        ("rl/grpo.py", "import transformers", "only policies/*"),
        ("policies/token_vla/policy.py", "import peft", "only world_model/*"),
    ],
)
def test_a_violation_is_found(path, source, reason):
    (violation,) = find_violations(path, source)
    assert reason in violation
    assert path in violation


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "simulators/maniskill/simulator.py",
            "import mani_skill\nfrom worldloop.simulators.base import x\nfrom . import tasks\nfrom .. import toy",
        ),
        ("core/interfaces.py", "from worldloop.core.types import Clip\nfrom worldloop.core.version import __version__"),
        ("policies/lerobot/policy.py", "import lerobot, datasets, transformers"),
        ("policies/token_vla/policy.py", "import transformers, torch"),
        ("rl/grpo.py", "from worldloop.training.trainer import Objective"),
        ("stages/a.py", "from worldloop.storage.run_state import LoopState\nfrom worldloop.rollout import groups"),
        ("runtime/ray_pool.py", "import ray"),
        ("cli/commands.py", "from worldloop.loop.run import run_loop\nfrom worldloop.stages import STAGES"),
        ("__main__.py", "from worldloop.cli import commands"),
    ],
)
def test_what_is_allowed_passes(path, source):
    assert find_violations(path, source) == []


def test_the_page_counts_floors_as_the_rule_does():
    page = (ROOT / "docs/architecture.md").read_text().partition("## Floors")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| ((?:`\w+/` ?)+) \|", page, re.MULTILINE)
    shown = {name: int(floor) for floor, names in rows for name in re.findall(r"`(\w+)/`", names)}
    assert shown == {path.name: floor_of(path.name) for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}


def test_an_unknown_module_must_be_given_a_floor():
    with pytest.raises(AssertionError, match="has no floor"):
        find_violations("helpers.py", "")


@pytest.mark.parametrize("arguments", [None, ["--help"], ["run", "--help"]])
def test_the_command_line_starts_without_heavy_packages(arguments):
    """`import worldloop.__main__` and `--help` load none of them, nor does what dispatches the commands."""
    code = f"""
import json, sys
import worldloop.__main__ as cli
import worldloop.cli.commands
arguments = {arguments!r}
if arguments is not None:
    sys.argv = ["worldloop", *arguments]
    try:
        code = cli.main()
    except SystemExit as error:
        code = error.code
    assert not code, code
print()
print(json.dumps([name for name in {LIGHT_CLI!r} if name in sys.modules]))
"""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == []
