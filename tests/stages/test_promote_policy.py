"""The gate: which candidate replaces the policy, if any."""

import pytest

from worldloop.stages import promote_policy
from worldloop.storage.run_state import LoopState


class _Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def validation(monkeypatch):
    """What each policy achieves on four validation states; the names that were measured."""
    outcomes = {"old": (1, 0, 0, 1), "a": (1, 1, 0, 1), "b": (1, 1, 1, 0), "bad": (0, 0, 0, 1)}
    measured: list[str] = []

    def evaluate(context, split, num_states, block_size, policy, iteration):
        assert (split, num_states) == ("validation", 4)
        measured.append(policy)
        return outcomes[policy]

    monkeypatch.setattr(promote_policy, "evaluate_in_simulator", evaluate)
    monkeypatch.setattr(promote_policy, "success_of", lambda episodes: tuple(bool(e) for e in episodes))
    return measured


def test_the_best_candidate_is_promoted_the_earliest_of_equals(validation) -> None:
    state = LoopState(policy="old", candidates=("bad", "a", "b"))
    after = promote_policy.run(state, promote_policy.PromotePolicyConfig(num_states=4), _Log())  # type: ignore[arg-type]
    assert (after.policy, after.candidates, after.validation_success) == ("a", (), (True, True, False, True))
    assert after.records[0]["promoted"]
    assert after.records[0]["promotion_gain"]["gain"] == 0.25
    assert after.records[0]["validation_success"]["b"]["k"] == 3
    assert validation == ["old", "bad", "a", "b"]


def test_a_worse_candidate_is_rolled_back_and_the_gate_can_be_off(validation) -> None:
    state = LoopState(policy="old", candidates=("bad",), validation_success=(True, False, False, True))
    config = promote_policy.PromotePolicyConfig(num_states=4)
    log = _Log()
    kept = promote_policy.run(state, config, log)  # type: ignore[arg-type]
    assert (kept.policy, kept.candidates, kept.records[0]["promoted"]) == ("old", (), False)
    assert "rolled back" in log.lines[-1]
    assert kept.validation_success == state.validation_success
    assert validation == ["bad"]  # the policy in force is not measured twice
    off = promote_policy.PromotePolicyConfig(num_states=4, gate=False)
    forced = promote_policy.run(LoopState(policy="old", candidates=("a", "bad")), off, _Log())  # type: ignore[arg-type]
    assert (forced.policy, forced.validation_success) == ("bad", ())
    assert validation == ["bad"]


def test_without_a_candidate_nothing_is_measured(validation) -> None:
    config = promote_policy.PromotePolicyConfig(num_states=4)
    kept = promote_policy.run(LoopState(policy="old"), config, _Log())  # type: ignore[arg-type]
    record = kept.records[0]
    assert (kept.policy, record["promoted"], record["promotion_gain"]) == ("old", False, None)
    assert record["promotion_gain_reason"] == "no candidate"
    assert validation == []
