"""What one stage hands to the next survives a trip through JSON, and old files are read."""

import json

import pytest
import torch

from worldloop.core.errors import WorldloopError
from worldloop.core.success import Calibration, Calibrations, Trust
from worldloop.core.types import InitialStates
from worldloop.storage.run_directory import RunDirectory, name_checkpoint
from worldloop.storage.run_state import STATE_SCHEMA_VERSION, UNNAMED_TASK, LoopState

CALIBRATION = Calibration(1.2, -0.3, 0.6, psnr_bias_db=0.5, floor_db=17.0)
STATE = LoopState(
    iteration=1,
    candidates=("a", "b"),
    calibrations=Calibrations({"push": CALIBRATION, "pull": Calibration(floor_db=3.0)}),
    trust={"push": Trust(False, "AUC 0.510 is below 0.7"), "pull": Trust(True)},
    rejected="checkpoints/iteration_001/policy_after_014",
    evaluation_success=(
        {"push": (True, False), "pull": (False, False)},
        {"push": (True, True), "pull": (False, True)},
    ),
    num_scripted_episodes=96,
    env_steps=2559,
    simulator_steps=4711,
).record(x=1, nested={"auc": None})


def test_checkpoints_have_the_names_that_runs_on_disk_have() -> None:
    assert name_checkpoint(0, "policy") == "checkpoints/iteration_000/policy"
    assert name_checkpoint(12, "world_model", fit_number=1) == "checkpoints/iteration_012/world_model"
    assert name_checkpoint(12, "world_model", fit_number=2) == "checkpoints/iteration_012/world_model_2"


@pytest.mark.parametrize("state", [LoopState(), STATE])
def test_a_state_survives_json(state: LoopState) -> None:
    assert LoopState.from_dict(json.loads(json.dumps(state.to_dict(), allow_nan=False))) == state


def test_a_record_is_merged_into_its_iteration() -> None:
    assert STATE.records == ({"iteration": 0}, {"iteration": 1, "x": 1, "nested": {"auc": None}})
    assert STATE.record(x=2, y=3).records[1] == {"iteration": 1, "x": 2, "nested": {"auc": None}, "y": 3}


def test_figures_of_tasks_are_merged_task_by_task() -> None:
    first = LoopState().record(rate=0.5, tasks={"push": {"rate": 0.4, "auc": 0.9}, "pull": {"rate": 0.6}})
    state = first.record(gain=0.1, tasks={"push": {"gain": 0.2, "rate": 0.3}, "lift": {"gain": 0.0}})
    assert state.records[0] == {
        "iteration": 0,
        "rate": 0.5,
        "gain": 0.1,
        "tasks": {"push": {"rate": 0.3, "auc": 0.9, "gain": 0.2}, "pull": {"rate": 0.6}, "lift": {"gain": 0.0}},
    }
    assert first.records[0]["tasks"] == {"push": {"rate": 0.4, "auc": 0.9}, "pull": {"rate": 0.6}}, "as it was"


def _second_version(**changes: object) -> dict[str, object]:
    """What was stored before there were several tasks."""
    values = STATE.to_dict() | {
        "schema_version": 2,
        "calibration": vars(CALIBRATION),
        "trust": {"is_trusted": False, "reason": "AUC 0.510 is below 0.7"},
        "validation_success": [True],
        "evaluation_success": [[True, False], [True, True]],
    }
    del values["calibrations"]
    return json.loads(json.dumps(values | changes))


def _first_version(distrust: str, calibration: dict[str, float] | None) -> dict[str, object]:
    """What was stored before calibration and trust had types, and the scripted episodes a field."""
    values = _second_version(schema_version=1, calibration=calibration, distrust=distrust)
    del values["trust"], values["num_scripted_episodes"]
    values["records"] = [{"iteration": 0, "scripted_episodes": {"failure": 60, "success": 36}}, *STATE.records[1:]]
    return json.loads(json.dumps(values))


def test_a_state_of_the_second_version_has_one_task_without_a_name() -> None:
    state = LoopState.from_dict(_second_version())
    assert state.calibrations == Calibrations({UNNAMED_TASK: CALIBRATION})
    assert state.trust == {UNNAMED_TASK: Trust(False, "AUC 0.510 is below 0.7")}
    assert not hasattr(state, "validation_success"), "those states are used once"
    assert state.evaluation_success == ({UNNAMED_TASK: (True, False)}, {UNNAMED_TASK: (True, True)})
    assert state.schema_version == STATE_SCHEMA_VERSION
    fresh = LoopState.from_dict(_second_version(calibration=None, trust=None, validation_success=[]))
    assert (fresh.calibrations, fresh.trust) == (None, {})


def test_a_state_of_the_third_version_is_read() -> None:
    values = STATE.to_dict() | {"schema_version": 3, "validation_success": {"push": [True]}}
    for name in ("start", "newest", "num_rounds", "rejected"):
        del values[name]
    state = LoopState.from_dict(json.loads(json.dumps(values)))
    assert (state.start, state.newest, state.num_rounds, state.rejected) == ("", "", 0, "")
    assert state.schema_version == STATE_SCHEMA_VERSION


def test_a_state_of_the_fourth_version_counted_only_the_steps_in_sans() -> None:
    values = STATE.to_dict() | {"schema_version": 4}
    for name in ("simulator_steps", "critics", "labels"):
        del values[name]
    state = LoopState.from_dict(json.loads(json.dumps(values)))
    assert (state.simulator_steps, state.critics, state.labels) == (2559, (), "")


def test_a_state_of_the_first_version_is_read() -> None:
    state = LoopState.from_dict(_first_version("AUC 0.510 is below 0.7", vars(CALIBRATION)))
    assert state.calibrations == Calibrations({UNNAMED_TASK: CALIBRATION})
    assert state.trust == {UNNAMED_TASK: Trust(False, "AUC 0.510 is below 0.7")}
    assert state.num_scripted_episodes == 96
    assert state.schema_version == STATE_SCHEMA_VERSION
    assert LoopState.from_dict(_first_version("", vars(CALIBRATION))).trust == {UNNAMED_TASK: Trust(True)}
    unchecked = LoopState.from_dict(_first_version("", None))
    assert (unchecked.calibrations, unchecked.trust) == (None, {})
    begun = LoopState.from_dict(_first_version("", None) | {"records": []})
    assert begun.num_scripted_episodes == 0


@pytest.mark.parametrize(
    "values",
    [
        {"schema_version": 1, "stage": 3},
        {"schema_version": STATE_SCHEMA_VERSION},
        STATE.to_dict() | {"calibrations": {"push": {"scale": -1.0}}},
        STATE.to_dict() | {"calibrations": 3},
        STATE.to_dict() | {"trust": {"push": {"is_trusted": True, "reason": "too low"}}},
        STATE.to_dict() | {"evaluation_success": 0},
        STATE.to_dict() | {"evaluation_success": [[True]]},
        STATE.to_dict() | {"colour": "red"},
    ],
)
def test_anything_else_is_one_clear_error(values: dict[str, object]) -> None:
    with pytest.raises(WorldloopError, match=r"not a worldloop state .*; delete the run directory"):
        LoopState.from_dict(json.loads(json.dumps(values)))


def test_initial_states_are_kept_by_task_and_those_of_before_are_read_for_any(tmp_path) -> None:
    directory = RunDirectory(tmp_path)
    states = InitialStates("evaluation", ("push/0", "push/1"), ("push", "push"), torch.rand(2, 2))
    directory.write_initial_states(states)
    stored = directory.read_initial_states("evaluation", "push")
    assert stored is not None
    assert (stored.ids, stored.tasks, stored.split) == (states.ids, states.tasks, "evaluation")
    assert torch.equal(stored.states, states.states)
    assert directory.read_initial_states("evaluation", "pull") is None
    (tmp_path / "initial_states/evaluation/push.safetensors").rename(tmp_path / "initial_states/evaluation.safetensors")
    old = directory.read_initial_states("evaluation", UNNAMED_TASK)
    assert old is not None
    assert (old.ids, old.tasks) == (states.ids, (UNNAMED_TASK,) * 2)
