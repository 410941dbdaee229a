"""The change of a value around events, by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from worldloop.evaluation.value_at_events import judge_at_events


def make_frames(num_frames: list[int], sources: list[str]) -> Any:
    """Episodes with so many frames, from these sources."""
    return SimpleNamespace(
        metas=[SimpleNamespace(source=source) for source in sources], first=np.cumsum([0, *num_frames])
    )


def test_the_value_after_an_event_is_compared_with_that_before_it() -> None:
    """Spans of two frames: +.2, +.3, +.0 in the first episode and +.1, -.4 in the second; their median is +.1."""
    values = np.array([-0.9, -0.8, -0.7, -0.5, -0.7, -0.6, -0.5, -0.5, -0.9], dtype=np.float32)
    frames = make_frames([5, 4], ["policy", "policy"])
    events = [{"reach": 1, "grasp": 2, "success": 3}, {"reach": 1, "miss": 2}]
    judged = judge_at_events(frames, values, events)
    assert list(judged) == ["on_policy"]
    changes = judged["on_policy"]
    assert set(changes) == {"reach", "grasp", "miss"}, "at a success nothing is to be foreseen any more"
    assert changes["reach"].change.value == pytest.approx((0.2 + 0.1) / 2, abs=1e-4)
    assert changes["reach"].change.n == 2
    assert changes["reach"].detected.value == 0.5, "+.2 is above the median, +.1 is it"
    assert changes["grasp"].change.value == pytest.approx(0.3, abs=1e-4)
    assert changes["grasp"].detected.value == 1
    assert changes["miss"].change.value == pytest.approx(-0.4, abs=1e-4)
    assert changes["miss"].detected.value == 1, "an error is noticed if the value falls"
    assert changes["reach"].floor == pytest.approx(2 / 5)
    assert changes["miss"].floor == pytest.approx(2 / 5)
    assert changes["miss"].to_dict()["change"]["n"] == 1


def test_events_at_the_first_or_last_frame_have_no_before_or_after() -> None:
    values = np.linspace(-1, 0, 4)
    judged = judge_at_events(make_frames([4], ["expert"]), values, [{"reach": 0, "contact": 3, "lift": 2}])
    assert set(judged["scripted"]) == {"lift"}


def test_episodes_too_short_for_a_change_are_left_out() -> None:
    assert judge_at_events(make_frames([2, 1], ["policy", "policy"]), np.zeros(3), [{"reach": 1}, {}]) == {}
