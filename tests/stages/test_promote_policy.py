"""The gate: which candidate replaces the policy, if any."""

from types import SimpleNamespace
from typing import Any

import pytest
from reporters import RecordingReporter

from worldloop.stages import promote_policy
from worldloop.storage.run_state import LoopState

OUTCOMES = {"old": (1, 0, 0, 1), "a": (1, 1, 0, 1), "b": (1, 1, 1, 0), "bad": (0, 0, 0, 1)}
CONFIG = promote_policy.Config(num_states=4)


class _Simulation:
    """What each policy achieves on four validation states; ``measured``: whom it was asked for."""

    def __init__(self) -> None:
        self.measured: list[str] = []

    def evaluate(self, split: str, num_states: int, block_size: int, policy: str, iteration: int) -> list[Any]:
        assert (split, num_states) == ("validation", 4)
        self.measured.append(policy)
        return [SimpleNamespace(is_success=bool(s), meta=SimpleNamespace(task="push")) for s in OUTCOMES[policy]]


@pytest.fixture
def context() -> Any:
    return SimpleNamespace(simulation=_Simulation(), reporter=RecordingReporter())


def test_the_best_candidate_is_promoted_the_earliest_of_equals(context: Any) -> None:
    state = LoopState(policy="old", candidates=("bad", "a", "b"))
    after = promote_policy.run(state, CONFIG, context)
    assert (after.policy, after.candidates) == ("a", ())
    assert after.validation_success == {"push": (True, True, False, True)}
    assert after.records[0]["promoted"]
    assert after.records[0]["promotion_gain"]["gain"] == 0.25
    assert after.records[0]["validation_success"]["b"]["k"] == 3
    assert context.simulation.measured == ["old", "bad", "a", "b"]


def test_a_worse_candidate_is_rolled_back_and_the_gate_can_be_off(context: Any) -> None:
    state = LoopState(policy="old", candidates=("bad",), validation_success={"push": (True, False, False, True)})
    kept = promote_policy.run(state, CONFIG, context)
    assert (kept.policy, kept.candidates, kept.records[0]["promoted"]) == ("old", (), False)
    assert "rolled back" in context.reporter.lines[-1]
    assert kept.validation_success == state.validation_success
    assert context.simulation.measured == ["bad"]  # the policy in force is not measured twice
    off = promote_policy.Config(num_states=4, gate=False)
    forced = promote_policy.run(LoopState(policy="old", candidates=("a", "bad")), off, context)
    assert (forced.policy, forced.validation_success) == ("bad", {})
    assert context.simulation.measured == ["bad"]


def test_without_a_candidate_nothing_is_measured(context: Any) -> None:
    kept = promote_policy.run(LoopState(policy="old"), CONFIG, context)
    record = kept.records[0]
    assert (kept.policy, record["promoted"], record["promotion_gain"]) == ("old", False, None)
    assert record["promotion_gain_reason"] == "no candidate"
    assert context.simulation.measured == []
