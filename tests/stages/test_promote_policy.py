"""The gate: which candidate replaces the policy, if any."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from reporters import RecordingReporter

from worldloop.core.types import InitialStates
from worldloop.stages import promote_policy
from worldloop.storage.run_state import LoopState

RATES = {"old": 0.5, "a": 0.6, "b": 0.9, "bad": 0.2}
CONFIG = promote_policy.Config(num_states=20, max_states=40, states_per_look=10, net_wins=4)


class Simulation:
    """Two tasks. A policy solves the first part of every ten states; ``drawn`` and ``measured`` say what was asked."""

    def __init__(self, tasks: tuple[str, ...] = ("push",)) -> None:
        self.tasks = tasks
        self.drawn: list[tuple[Any, ...]] = []
        self.measured: list[tuple[str, int]] = []

    def draw_fresh_states(self, split: str, num_states: int, *key: int | str) -> InitialStates:
        self.drawn.append((split, num_states, *key))
        ids = tuple(f"{task}/{i}" for task in self.tasks for i in range(num_states))
        tasks = tuple(task for task in self.tasks for _ in range(num_states))
        return InitialStates("validation", ids, tasks, torch.zeros(len(ids), 1))

    def judge(self, states: InitialStates, *, block_size: int, purpose: str, iteration: int, policy: str) -> list[Any]:
        self.measured.append((policy, len(states)))
        solved = [int(state_id.split("/")[1]) % 10 < 10 * RATES[policy] for state_id in states.ids]
        metas = [SimpleNamespace(task=task) for task in states.tasks]
        return [SimpleNamespace(is_success=s, meta=meta) for s, meta in zip(solved, metas, strict=True)]


@pytest.fixture
def context() -> Any:
    return SimpleNamespace(simulation=Simulation(), reporter=RecordingReporter(), has_simulator=True)


def test_the_best_candidate_is_tested_on_other_fresh_states_and_promoted(context: Any) -> None:
    state = LoopState(iteration=3, policy="old", candidates=("bad", "b", "a"), start="x", newest="a", num_rounds=2)
    after = promote_policy.run(state, CONFIG, context)
    assert (after.policy, after.candidates, after.rejected) == ("b", (), "a")
    assert (after.start, after.newest, after.num_rounds) == ("", "", 0)
    assert context.simulation.drawn == [
        ("validation", 20, 3, "promote_policy", "choose"), ("validation", 40, 3, "promote_policy", "test"),
    ]  # fmt: skip
    # it leads by four of the first ten states, so no further ones are simulated
    assert context.simulation.measured == [("bad", 20), ("b", 20), ("a", 20), ("old", 10), ("b", 10)]
    record = after.records[3]
    assert record["promoted"]
    assert record["promotion_test"] == {"n": 10, "won": 4, "lost": 0}
    assert {name: rate["k"] for name, rate in record["validation_success"].items()} == {"bad": 4, "b": 18, "a": 12}
    assert context.reporter.lines[0] == "candidates: bad 4/20, b 18/20, a 12/20"
    assert context.reporter.lines[1].startswith(
        "candidate b against the current policy: 4 states won, 0 lost of 10, gain +0.400 ("
    )
    assert context.reporter.lines[1].endswith(": promoted")


def test_one_candidate_needs_no_choice(context: Any) -> None:
    after = promote_policy.run(LoopState(policy="old", candidates=("a",)), CONFIG, context)
    # one state in ten is won: after 40 states it leads by four
    assert context.simulation.measured == [("old", 10), ("a", 10)] * 4
    assert (after.policy, after.rejected) == ("a", "")
    assert "validation_success" not in after.records[0]


def test_a_candidate_without_a_lead_is_not_promoted_and_kept_as_rejected(context: Any) -> None:
    config = promote_policy.Config(num_states=20, max_states=30, states_per_look=10, net_wins=4)
    kept = promote_policy.run(LoopState(policy="old", candidates=("a",)), config, context)
    assert (kept.policy, kept.rejected, kept.candidates) == ("old", "a", ())
    assert (kept.records[0]["promoted"], kept.records[0]["promotion_reason"]) == (False, "undecided")
    assert context.reporter.lines[-1].endswith(": undecided")
    worse = promote_policy.run(LoopState(policy="old", candidates=("bad",)), config, context)
    assert (worse.policy, worse.rejected) == ("old", "bad")
    assert worse.records[0]["promotion_reason"] == "refused"
    assert worse.records[0]["promotion_test"] == {"n": 20, "won": 0, "lost": 6}, "two looks were enough"


def test_every_task_has_as_many_states_in_each_look(context: Any) -> None:
    context.simulation = Simulation(("push", "pull"))
    after = promote_policy.run(LoopState(policy="old", candidates=("b",)), CONFIG, context)
    assert context.simulation.measured == [("old", 20), ("b", 20)]
    assert after.records[0]["tasks"]["pull"]["promotion_test"] == {"n": 10, "won": 4, "lost": 0}


def test_the_gate_can_be_off(context: Any) -> None:
    off = promote_policy.Config(gate=False)
    forced = promote_policy.run(LoopState(policy="old", candidates=("a", "bad")), off, context)
    assert (forced.policy, forced.rejected) == ("bad", "a")
    assert not context.simulation.measured


def test_without_a_candidate_nothing_is_measured(context: Any) -> None:
    kept = promote_policy.run(LoopState(policy="old"), CONFIG, context)
    record = kept.records[0]
    assert (kept.policy, kept.rejected, record["promoted"], record["promotion_gain"]) == ("old", "", False, None)
    assert record["promotion_gain_reason"] == "no candidate"
    assert not context.simulation.measured


def test_the_figures_of_the_promoted_policy_in_the_closed_loop_are_in_the_record(context: Any) -> None:
    checked = [{"checkpoint": name, "n": n} for name, n in (("a", 1), ("b", 2))]
    state = LoopState(policy="old", candidates=("a", "b")).record(closed_loop={"checkpoints": checked})
    after = promote_policy.run(state, CONFIG, context)
    assert after.records[0]["closed_loop"]["promoted"] == {"n": 2}


@pytest.mark.parametrize("name", ["num_states", "max_states", "states_per_look", "net_wins", "block_size"])
def test_the_config_names_the_bad_key(name: str) -> None:
    with pytest.raises(ValueError, match=rf"promote_policy\.{name} must be at least 1, got 0"):
        promote_policy.Config(**{name: 0})
