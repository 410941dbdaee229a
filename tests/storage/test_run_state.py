"""What one stage hands to the next survives a trip through JSON, and old files are read."""

import json

import pytest

from worldloop.core.errors import WorldloopError
from worldloop.core.success import Calibration, Trust
from worldloop.storage.run_state import STATE_SCHEMA_VERSION, LoopState

STATE = LoopState(
    iteration=1,
    candidates=("a", "b"),
    calibration=Calibration(1.2, -0.3, 0.6, psnr_bias_db=0.5, floor_db=17.0),
    trust=Trust(False, "AUC 0.510 is below 0.7"),
    validation_success=(True,),
    evaluation_success=((True, False), (True, True)),
    num_scripted_episodes=96,
    env_steps=2559,
).record(x=1, nested={"auc": None})


@pytest.mark.parametrize("state", [LoopState(), STATE])
def test_a_state_survives_json(state: LoopState) -> None:
    assert LoopState.from_dict(json.loads(json.dumps(state.to_dict(), allow_nan=False))) == state


def test_a_record_is_merged_into_its_iteration() -> None:
    assert STATE.records == ({"iteration": 0}, {"iteration": 1, "x": 1, "nested": {"auc": None}})
    assert STATE.record(x=2, y=3).records[1] == {"iteration": 1, "x": 2, "nested": {"auc": None}, "y": 3}


def _first_version(distrust: str, calibration: dict[str, float] | None) -> dict[str, object]:
    """What was stored before calibration and trust had types, and the scripted episodes a field."""
    values = STATE.to_dict() | {"schema_version": 1, "calibration": calibration, "distrust": distrust}
    del values["trust"], values["num_scripted_episodes"]
    values["records"] = [{"iteration": 0, "scripted_episodes": {"failure": 60, "success": 36}}, *STATE.records[1:]]
    return json.loads(json.dumps(values))


def test_a_state_of_the_first_version_is_read() -> None:
    assert STATE.calibration is not None
    calibration = vars(STATE.calibration).copy()
    state = LoopState.from_dict(_first_version("AUC 0.510 is below 0.7", calibration))
    assert (state.calibration, state.trust) == (STATE.calibration, STATE.trust)
    assert state.num_scripted_episodes == 96
    assert state.schema_version == STATE_SCHEMA_VERSION
    assert LoopState.from_dict(_first_version("", calibration)).trust == Trust(True)
    unchecked = LoopState.from_dict(_first_version("", None))
    assert (unchecked.calibration, unchecked.trust) == (None, None)
    begun = LoopState.from_dict(_first_version("", None) | {"records": []})
    assert begun.num_scripted_episodes == 0


@pytest.mark.parametrize(
    "values",
    [
        {"schema_version": 1, "stage": 3},
        {"schema_version": STATE_SCHEMA_VERSION},
        STATE.to_dict() | {"calibration": {"scale": -1.0}},
        STATE.to_dict() | {"calibration": 3},
        STATE.to_dict() | {"trust": {"is_trusted": True, "reason": "too low"}},
        STATE.to_dict() | {"evaluation_success": 0},
        STATE.to_dict() | {"colour": "red"},
    ],
)
def test_anything_else_is_one_clear_error(values: dict[str, object]) -> None:
    with pytest.raises(WorldloopError, match=r"not a worldloop state .*; delete the run directory"):
        LoopState.from_dict(json.loads(json.dumps(values)))
