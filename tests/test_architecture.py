"""The floors of the house: imports only go down, heavy packages stay in their homes."""

import ast
import json
import subprocess
import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "worldloop"
MAX_LINES = 400  # lines that are not blank

FLOORS: dict[int, set[str]] = {
    0: {"", "core"},
    1: {"networks", "training"},
    2: {"simulators", "sans", "world_model", "policies", "executability", "value", "rl"},
    3: {"rollout", "storage", "factory", "config", "evaluation", "reporting", "envs", "play", "stages", "loop"},
    4: {"stages"},
    5: {"runtime"},
    6: {"cli", "gym_env", "__main__"},
}
LEAF_FLOOR, STAGE_FLOOR, TOP_FLOOR = 2, 4, 6

# Where a heavy package may be imported at all; elsewhere not even inside a function.
HOMES: dict[str, tuple[str, ...]] = {
    "ray": ("runtime/ray.py", "runtime/ray_*.py"),
    "mani_skill": ("sim/maniskill.py",),
    "sapien": ("sim/maniskill.py",),
    "lerobot": ("sans/*", "policy/lerobot_policy.py"),
    "datasets": ("sans/*",),
    "transformers": ("policy/*", "networks/*", "world_model/*"),
    "diffusers": ("world_model/*", "value/*"),
}
# What the command line must not pay for before it knows what it is asked to do.
LIGHT_CLI = ("torch", "gymnasium", "ray", "mani_skill", "sapien", "transformers", "lerobot", "datasets", "diffusers")


@dataclass(frozen=True)
class Import:
    """One imported module, absolute, with the line and whether only type checkers see it."""

    module: str
    line: int
    typing_only: bool


def _is_type_checking(node: ast.If) -> bool:
    test = node.test
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


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
    """All imports of a module that lies in `package`, also those inside functions."""
    found: list[Import] = []

    def visit(node: ast.AST, typing_only: bool) -> None:
        found.extend(Import(target, node.lineno, typing_only) for target in _targets(node, package))
        if isinstance(node, ast.If) and _is_type_checking(node):
            for child in node.body:
                visit(child, True)
            for child in node.orelse:
                visit(child, typing_only)
            return
        for child in ast.iter_child_nodes(node):
            visit(child, typing_only)

    visit(ast.parse(source), False)
    return found


def floor_of(part: str) -> int:
    """The floor of a top-level module or package of worldloop; an unknown one is an error that says what to do."""
    if part.startswith("cli"):
        return TOP_FLOOR
    for floor, parts in FLOORS.items():
        if part in parts:
            return floor
    raise AssertionError(f"worldloop/{part} has no floor: give it one in tests/test_architecture.py and DESIGN")


def top_part(path: str) -> str:
    """`sim/maniskill.py` -> `sim`; `types.py` -> `types`; `__init__.py` -> ``."""
    first = path.split("/")[0].removesuffix(".py")
    return "" if first == "__init__" else first


def find_violations(path: str, source: str) -> list[str]:
    """What a module at `path` (below worldloop/) imports against the rules, one line each."""
    part = top_part(path)
    floor = TOP_FLOOR if path == "__init__.py" else floor_of(part)  # its public functions are imported when used
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
        if target_floor > floor and not (item.typing_only and floor == STAGE_FLOOR):
            violations.append(f"{where}: up from floor {floor} to floor {target_floor}")
        if target_floor == floor == LEAF_FLOOR and target != part:
            violations.append(f"{where}: sideways between leaf packages")
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
        ("types.py", "import worldloop.networks", "up from floor 0"),
        ("sim/toy.py", "from worldloop.policy import token_vla", "sideways"),
        ("sim/toy.py", "from ..policy.token_vla import TokenVLA", "sideways"),
        ("sim/toy.py", "from .. import loop", "up from floor 2"),
        ("rl/grpo.py", "def f():\n    from worldloop import imagination", "up from floor 2"),
        ("stages/a.py", "from worldloop.runtime import inline", "up from floor 4"),
        (
            "rl/a.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import worldloop.loop.run",
            "up from floor 2",
        ),
        ("stages/a.py", "if TYPE_CHECKING:\n    pass\nelse:\n    import worldloop.runtime", "up from floor 4"),
        ("loop.py", "def f():\n    import ray", "only runtime/ray.py"),
        ("runtime/inline.py", "from ray.train import torch", "only runtime/ray.py"),
        ("sim/tasks.py", "import sapien.core as s", "only sim/maniskill.py"),
        ("build.py", "import importlib\nimportlib.import_module('mani_skill.envs')", "only sim/maniskill.py"),
        ("policy/token_vla.py", "import lerobot", "only sans/*"),
        ("rl/grpo.py", "import transformers", "only policy/*"),
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
            "sim/maniskill.py",
            "import mani_skill\nfrom worldloop.simulators.maniskill.tasks import x\nfrom . import chunks",
        ),
        ("interfaces.py", "from worldloop.core.types import Clip\nfrom worldloop import __version__"),
        ("stages/a.py", "if TYPE_CHECKING:\n    from worldloop.runtime.inline import Runtime"),
        ("runtime/ray_pool.py", "import ray"),
        ("cli_run.py", "from worldloop.loop.run import run\nfrom worldloop.stages import a"),
        ("policy/token_vla.py", "import transformers, torch"),
    ],
)
def test_what_is_allowed_passes(path, source):
    assert find_violations(path, source) == []


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
