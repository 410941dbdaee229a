"""The change of a value around events, by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from worldloop.evaluation.value_at_events import judge_at_events


def make_frames(num_frames: list[int], outcomes: list[str], source: str = "policy") -> Any:
    """Episodes of one source with so many frames, which end like this."""
    metas = [SimpleNamespace(source=source, outcome=outcome) for outcome in outcomes]
    return SimpleNamespace(metas=metas, first=np.cumsum([0, *num_frames]))


def test_a_change_is_compared_with_that_of_like_episodes_at_the_same_frame() -> None:
    """Three successes of four frames: from frame 0 to 2 their values change by +.3, +.1 and +.2."""
    values = np.array([-0.9, -0.8, -0.6, -0.7, -0.9, -0.8, -0.8, -0.7, -0.9, -0.8, -0.7, -0.7], dtype=np.float32)
    frames = make_frames([4, 4, 4], ["success"] * 3)
    judged = judge_at_events(frames, values, [{"reach": 1, "success": 3}, {}, {"reach": 3}])
    assert list(judged) == ["on_policy"]
    assert set(judged["on_policy"]) == {"reach"}, "a value is not learned after a success"
    reach = judged["on_policy"]["reach"]
    assert reach.change.value == pytest.approx(0.3, abs=1e-4)
    assert reach.change.n == 1, "at the last frame there is none after it"
    assert reach.above_usual.value == pytest.approx(0.3 - 0.15, abs=1e-4), "the others' median at that frame is +.15"
    assert reach.detected.value == 1
    assert reach.to_dict()["change"]["n"] == 1


def test_an_error_is_noticed_if_the_value_falls_more_than_usual() -> None:
    falls, stays = [-0.5, -0.5, -0.8], [-0.5, -0.5, -0.6]
    values = np.array([*falls, *stays, *stays], dtype=np.float64)
    judged = judge_at_events(make_frames([3, 3, 3], ["failure"] * 3), values, [{"miss": 1}, {}, {}])
    miss = judged["on_policy"]["miss"]
    assert miss.above_usual.value == pytest.approx(-0.2, abs=1e-4)
    assert miss.detected.value == 1
    milestone = judge_at_events(make_frames([3, 3, 3], ["failure"] * 3), values, [{"reach": 1}, {}, {}])
    assert milestone["on_policy"]["reach"].detected.value == 0


def test_episodes_of_the_other_outcome_or_with_the_same_event_then_are_no_comparison() -> None:
    values = np.tile([-0.5, -0.4, -0.3], 3)
    assert judge_at_events(make_frames([3] * 3, ["success", "failure", "failure"]), values, [{"lift": 1}, {}, {}]) == {}
    both = [{"lift": 1}, {"lift": 1}, {"lift": 2}]
    assert judge_at_events(make_frames([3] * 3, ["success"] * 3), values, both) == {}


def test_a_value_that_knows_outcome_and_clock_but_no_events_is_at_chance() -> None:
    """Lifts happen in successes, whose values rise; misses in failures, whose values fall."""
    generator = np.random.default_rng(0)
    outcomes = ["success" if i % 2 == 0 else "failure" for i in range(200)]
    lines = [np.linspace(-0.5, -0.1 if o == "success" else -0.9, 8) + generator.normal(0, 0.01, 8) for o in outcomes]
    events = [{"lift" if o == "success" else "miss": int(generator.integers(1, 7))} for o in outcomes]
    judged = judge_at_events(make_frames([8] * 200, outcomes), np.concatenate(lines), events)["on_policy"]
    for event in ("lift", "miss"):
        assert judged[event].detected.value == pytest.approx(0.5, abs=0.13)
        assert abs(judged[event].above_usual.value) < 0.005
        assert abs(judged[event].change.value) > 0.1, "the change alone would look like foresight"


def test_episodes_too_short_for_a_change_are_left_out() -> None:
    assert judge_at_events(make_frames([2, 1], ["success"] * 2), np.zeros(3), [{"reach": 1}, {}]) == {}
