"""Each extra brings what the code behind it imports, and what is not installed is named in one line with its extra."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

import pytest
from bare_installs import PYPROJECT, list_refused, run_bare
from hand_recording import write_recording

from worldloop.core.packages import EXTRAS

ROOT = Path(__file__).resolve().parents[1]
DEBUG, RECORDED = (str(ROOT / "configs" / name) for name in ("debug.yaml", "recorded_cpu.yaml"))


def list_imported() -> set[str]:
    """The top-level modules that worldloop imports, without its own and Python's."""
    trees = (ast.parse(path.read_text()) for path in (ROOT / "worldloop").rglob("*.py"))
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"worldloop"}


def test_what_is_imported_comes_with_the_base_install_or_with_its_extra() -> None:
    assert EXTRAS.keys() <= list_imported()
    assert not (missing := (list_imported() & list_refused([])) - EXTRAS.keys()), f"give them an extra: {missing}"


@pytest.mark.parametrize("extra", sorted(set(EXTRAS.values())))
def test_an_extra_is_complete(extra: str) -> None:
    assert not {name for name, own in EXTRAS.items() if own == extra} & list_refused([extra])


def test_all_is_every_extra_but_the_large_and_the_optional_ones() -> None:
    extras = tomllib.loads(Path(PYPROJECT).read_text())["project"]["optional-dependencies"]
    (line,) = extras["all"]
    named = set(line.removeprefix("worldloop[").removesuffix("]").split(","))
    assert named == extras.keys() - {"all", "dev", "test", "human", "libero"}


def test_the_base_install_names_what_a_command_lacks(tmp_path: Path) -> None:
    write_recording(tmp_path / "arm", num_episodes=2)
    code = (
        "from worldloop.__main__ import main\n"
        f"assert main(['run', {DEBUG!r}, 'runtime=ray']) == 2\n"
        f"assert main(['sans', 'label', 'arm', 'labels.json', '--success', 'rest']) == 2\n"
        f"assert main(['play', 'nowhere', '--config', {DEBUG!r}]) == 2\n"
    )
    done = run_bare([], code, tmp_path)
    assert done.returncode == 0, done.stderr
    run, label, play = done.stderr.splitlines()
    assert run == (
        "worldloop: pyarrow, pandas, PIL, tensorboard, matplotlib, torchmetrics, ray are not installed: "
        "pip install -e '.[data,dashboard,ray]' in the clone"
    )
    assert label == "worldloop: SANS shards need pyarrow, which is not installed: pip install -e '.[data]' in the clone"
    assert play.startswith("worldloop: checkpoint nowhere does not exist")


def test_a_recording_needs_data_and_dashboard_and_a_policy_is_named(tmp_path: Path) -> None:
    write_recording(tmp_path / "arm", num_episodes=4)
    given = ["recording.root=arm", "recording.success_key=next.success", "recording.actions_per_frame=1"]
    code = (
        "from worldloop.__main__ import main\n"
        f"assert main(['stage', 'import_dataset', {RECORDED!r}, *{given!r}]) == 0\n"
        "assert main(['sans', 'show', 'runs/recorded_cpu/sans']) == 0\n"
        f"assert main(['run', {DEBUG!r}, 'runtime=inline']) == 2\n"
    )
    done = run_bare(["data", "dashboard"], code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4 episodes" in done.stdout
    assert done.stderr.endswith("transformers is not installed: pip install -e '.[policy]' in the clone\n")
