"""Going on with a run under changed settings: more iterations, and other settings of stages that still come."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from worldloop.config.loading import load_config
from worldloop.core.errors import WorldloopError
from worldloop.loop.changes import take_over_changes
from worldloop.loop.run import run_loop
from worldloop.reporting.tables import format_report
from worldloop.storage.run_directory import RunDirectory

DEBUG = Path(__file__).resolve().parents[2] / "configs/debug.yaml"
SMALL = [
    "runtime=inline",
    "seed_dataset.episodes={expert: 6, stops_short: 6, lateral_offset: 6}",
    "fit_world_model.num_steps=4",
    "fit_world_model.num_refit_steps=2",
    "fit_world_model.num_proprio_steps=4",
    "clone_policy.num_steps=4",
    "check_world_model.probe_steps=0",
    "check_world_model.num_videos=0",
    "improve_policy.method=imitate_successes",
    "improve_policy.num_imitation_steps=4",
    "promote_policy.gate=false",
    "evaluate_policy.num_states=4",
    "collect_episodes.num_episodes=4",
]


def run(root: Path, *changes: str, stages: int = 0) -> Path:
    """Run or go on; with ``stages`` only so many stages."""
    config = load_config(DEBUG, [*SMALL, f"run_root={root}", *changes])
    directory = RunDirectory(root / "debug")
    if not stages:
        run_loop(config)
    for _ in range(stages):
        run_loop(config, directory.read_state().next_stage if directory.exists else "seed_dataset")
    return directory.path


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("ended"), "num_iterations=1")


def test_a_run_that_has_ended_gains_iterations_and_ends_as_if_it_had_had_them(ended: Path, tmp_path: Path) -> None:
    more = shutil.copytree(ended.parent, tmp_path / "more")
    extended = run(more, "num_iterations=2")
    # cleaning changes no result
    at_once = run(tmp_path / "at_once", "num_iterations=2", "retention.automatic=true", "retention.num_iterations=1")
    assert (extended / "results.json").read_bytes() == (at_once / "results.json").read_bytes()
    parts = [[path for path in (r / "sans/cache").iterdir() if path.is_dir()] for r in (extended, at_once)]
    assert [bool(found) for found in parts] == [True, False]
    stages = [
        [entry["stage"] for entry in json.loads((r / "timings.json").read_text())["stages"]]
        for r in (extended, at_once)
    ]
    assert stages[0] == stages[1]
    run(more, "num_iterations=2")  # there is nothing left to do
    with pytest.raises(WorldloopError, match=r"num_iterations \(2 -> 1\); give another run_name"):
        run(more, "num_iterations=1")


def test_a_stage_that_still_comes_may_change_and_the_run_says_so(ended: Path, tmp_path: Path) -> None:
    shutil.copytree(ended.parent, tmp_path, dirs_exist_ok=True)
    path = run(tmp_path, "num_iterations=2", "collect_episodes.num_episodes=3")
    first, second = json.loads((path / "results.json").read_text())["iterations"][1:]
    assert first["changed_settings"] == {"collect_episodes": {"collect_episodes.num_episodes": [4, 3]}}
    assert "changed_settings" not in second
    assert sum(first["collected_episodes"].values()) == 3
    assert "iteration 1, from collect_episodes on:\n  collect_episodes.num_episodes 4 -> 3\n" in format_report(path)
    assert load_config(path / "config.yaml").num_iterations == 2


def test_a_crash_between_state_and_config_is_continued(
    ended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ended.parent, tmp_path, dirs_exist_ok=True)
    changes = ["num_iterations=2", "collect_episodes.num_episodes=3"]

    def crash(*_: object) -> None:
        raise OSError("the machine is gone")

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "write_config", crash)
        with pytest.raises(OSError, match="gone"):
            run(tmp_path, *changes)
    path = run(tmp_path, *changes)
    first = json.loads((path / "results.json").read_text())["iterations"][1]
    assert first["changed_settings"] == {"collect_episodes": {"collect_episodes.num_episodes": [4, 3]}}
    assert len(json.loads((path / "results.json").read_text())["iterations"]) == 3


@pytest.mark.parametrize(
    "change",
    [
        "seed=1",
        "world_model.hybrid.width=32",
        "seed_dataset.validation_share=0.45",  # has ended, and does not come again
        "clips.motion_weight=2.0",  # of no stage
        "evaluate_policy.num_states=3",  # all iterations are evaluated alike
        "collect_episodes.num_episodes=3",  # nothing comes any more
        "improve_policy.method=grpo",  # would have had other stages
    ],
)
def test_other_changes_are_refused_and_nothing_changes(ended: Path, change: str) -> None:
    before = {name: (ended / name).read_bytes() for name in ("state.json", "config.yaml", "results.json")}
    key = change.split("=")[0]
    with pytest.raises(WorldloopError, match=rf"another config: {key} \(.*; num_iterations may grow, and the settings"):
        run(ended.parent, "num_iterations=1", change)
    assert {name: (ended / name).read_bytes() for name in before} == before


def test_an_interrupted_stage_begins_anew_under_its_new_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run(tmp_path, "num_iterations=1", stages=1)
    assert RunDirectory(path).read_state().next_stage == "clone_policy"
    (path / "partial/clone_policy").mkdir(parents=True)
    changed = ["num_iterations=1", "clone_policy.learning_rate=1e-4"]
    run(tmp_path, *changed, stages=1)
    assert not (path / "partial/clone_policy").exists()
    assert (
        "settings changed from clone_policy on: clone_policy.learning_rate (0.002 -> 0.0001)\n"
        in capsys.readouterr().err
    )
    state: Any = json.loads((path / "state.json").read_text())
    assert state["next_stage"] == "evaluate_policy"
    assert state["records"][0]["changed_settings"] == {"clone_policy": {"clone_policy.learning_rate": [0.002, 0.0001]}}
    with pytest.raises(WorldloopError, match=r"clone_policy\.learning_rate \(0\.0001 -> 0\.002\)"):
        run(tmp_path, "num_iterations=1", stages=1)


def test_a_setting_that_changes_again_before_a_stage_keeps_its_first_value(ended: Path, tmp_path: Path) -> None:
    shutil.copytree(ended.parent, tmp_path, dirs_exist_ok=True)
    directory = RunDirectory(tmp_path / "debug")

    def take_over(*changes: str) -> Any:
        config = load_config(DEBUG, [*SMALL, f"run_root={tmp_path}", "num_iterations=2", *changes])
        take_over_changes(config, directory, "it")
        return directory.read_state().recorded("changed_settings", {})

    key = "collect_episodes.num_episodes"
    assert take_over(f"{key}=3") == {"collect_episodes": {key: [4, 3]}}
    assert take_over(f"{key}=2", "promote_policy.net_wins=3") == {
        "collect_episodes": {key: [4, 2], "promote_policy.net_wins": [2, 3]}
    }
    assert take_over("promote_policy.net_wins=3") == {"collect_episodes": {"promote_policy.net_wins": [2, 3]}}
    assert take_over() == {}
