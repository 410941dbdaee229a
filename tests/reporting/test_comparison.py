"""What `worldloop compare` prints."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from worldloop.config.loading import find_differences, load_config, to_yaml
from worldloop.core.errors import WorldloopError
from worldloop.core.types import InitialStates
from worldloop.reporting.comparison import format_comparison
from worldloop.storage.run_directory import RunDirectory
from worldloop.storage.run_state import LoopState

DEBUG = Path(__file__).resolve().parents[2] / "configs/debug.yaml"
TASK = "ToyPush-v1"


def _compare(a: Path, b: Path) -> str:
    return format_comparison(a, b, find_differences)


def test_two_runs_are_compared_on_the_same_states(debug_run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(debug_run, other)
    directory = RunDirectory(other)
    state = directory.read_state()
    before, now = (outcomes[TASK] for outcomes in state.evaluation_success)
    directory.write_state(replace(state, evaluation_success=({TASK: before}, {TASK: (True,) * len(now)})))
    config = load_config(
        DEBUG, ["runtime=inline", "num_iterations=1", "clone_policy.num_steps=7", "run_root=elsewhere"]
    )
    (other / "config.yaml").write_text(to_yaml(config))
    text = _compare(debug_run, other)
    rate = sum(now) / len(now)
    assert "success on the same 40 states" in text
    assert "+0.000 (+0.000, +0.000)  p 1.000" in text.splitlines()[4]
    assert f"  iteration 1  {rate:.3f} 1.000  {1 - rate:+.3f} (" in text
    assert "clone_policy.num_steps (100 -> 7)" in text
    assert "run_root" not in text
    assert max(map(len, text.splitlines()[2:])) <= 80
    assert _compare(debug_run, debug_run).endswith("the same settings")


def test_runs_on_other_states_are_not_compared(debug_run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(debug_run, other)
    directory = RunDirectory(other)
    states = directory.read_initial_states("evaluation", TASK)
    assert states is not None
    directory.write_initial_states(states.select(range(1, len(states))))
    with pytest.raises(WorldloopError, match="were evaluated on different states"):
        _compare(debug_run, other)


def test_a_run_of_before_tasks_had_names_is_compared_with_one_of_today(debug_run: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(debug_run, old)
    values = json.loads((old / "state.json").read_text())
    outcomes = [by_task[TASK] for by_task in values["evaluation_success"]]
    values |= {"schema_version": 2, "calibration": None, "trust": None, "evaluation_success": outcomes}
    values["validation_success"] = []
    del values["calibrations"]
    (old / "state.json").write_text(json.dumps(values))
    (old / f"initial_states/evaluation/{TASK}.safetensors").rename(old / "initial_states/evaluation.safetensors")
    text = _compare(old, debug_run)
    assert "success on the same 40 states, and B minus A" in text
    assert text.splitlines()[4:] == _compare(debug_run, debug_run).splitlines()[4:]


def _write_run(path: Path, outcomes: dict[str, tuple[bool, ...]]) -> Path:
    """One evaluated iteration of the debug config on states that are the same for a task of the same name."""
    directory = RunDirectory(path)
    directory.create(to_yaml(load_config(DEBUG)), {})
    for task, success in outcomes.items():
        ids = tuple(f"{task}/{number}" for number in range(len(success)))
        directory.write_initial_states(InitialStates("evaluation", ids, (task,) * len(ids), torch.zeros(len(ids), 2)))
    directory.write_state(LoopState(evaluation_success=(outcomes,)).record(env_steps=10))
    return path


def test_the_tasks_that_both_runs_have_are_compared_together_and_each(tmp_path: Path) -> None:
    long = "libero_object/pick_up_the_milk_and_place_it"
    a = _write_run(tmp_path / "a", {"push": (True, False) * 10, long: (False,) * 20, "lift": (True,) * 20})
    b = _write_run(tmp_path / "b", {long: (True,) * 10, "push": (True, False) * 5, "reach": (False,) * 10})
    lines = _compare(a, b).splitlines()
    assert lines[3:10] == [
        "success on the same 10 states of each of 2 tasks, and B minus A, 95 %:",
        "  iteration 0  0.250 0.750  +0.500 (+0.299, +0.700)  p 0.002",
        f"    {long}",
        "                         0.000 1.000  +1.000 (+1.000, +1.000)  p 0.002",
        "    push                 0.500 0.500  +0.000 (+0.000, +0.000)  p 1.000",
        "only in A: lift",
        "only in B: reach",
    ]
    assert max(map(len, lines[3:])) <= 80


def test_runs_without_a_common_task_are_not_compared(tmp_path: Path) -> None:
    a = _write_run(tmp_path / "a", {"push": (True,), "pull": (True,)})
    b = _write_run(tmp_path / "b", {"lift": (True,), "reach": (True,)})
    with pytest.raises(WorldloopError, match="no task in common"):
        _compare(a, b)
