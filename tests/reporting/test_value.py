"""How the check of the critics is told and drawn."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from worldloop.core.statistics import Estimate
from worldloop.evaluation.episode_values import CriticJudgement
from worldloop.evaluation.value_at_events import EventChange
from worldloop.reporting.progress import SilentDisplay
from worldloop.reporting.reporter import StageReporter
from worldloop.reporting.value import (
    GREEN,
    MARK_PX,
    NOTHING,
    NOW,
    RED,
    STRIP_PX,
    TO_COME,
    choose_episodes,
    describe_critics,
    describe_events,
    draw_values,
    enlarge,
    write_critics,
)

JUDGED = {
    "scripted": CriticJudgement(
        40, {0.25: Estimate(0.61, 0.5, 0.7, 40), 0.5: Estimate(0.875, math.nan, math.nan, 31), 0.75: None}
    ),
    "on_policy": CriticJudgement(12, {0.25: None, 0.5: None, 0.75: None}),
}


def test_each_source_has_a_line() -> None:
    assert describe_critics(JUDGED) == [
        "scripted: AUC of the value 0.610 0.875 - at 25, 50, 75 % of the time, 40 episodes",
        "on_policy: AUC of the value - - - at 25, 50, 75 % of the time, 12 episodes",
    ]


NOTICED = EventChange(Estimate(-0.2, -0.3, -0.1, 25), Estimate(-0.0512, -0.1, 0.0, 25), Estimate(0.8, 0.6, 1.0, 25))


def test_each_source_has_a_run_with_what_is_known(tmp_path: Path) -> None:
    """In real TensorBoard files: a second writer of the same run would purge what the first has written."""
    reporter = StageReporter("check_value", SilentDisplay(), tmp_path, writes=True)
    for iteration in (1, 2):
        write_critics(reporter, iteration, JUDGED, {"scripted": {"miss": NOTICED}})
    scripted, on_policy = (EventAccumulator(str(tmp_path / "check_value" / name)) for name in ("scripted", "on_policy"))
    scripted.Reload()
    on_policy.Reload()
    curves = {
        tag: [(point.step, round(point.value, 4)) for point in scripted.Scalars(tag)]
        for tag in scripted.Tags()["scalars"]
    }
    assert curves == {
        "check_value/auc_at_25": [(1, 0.61), (2, 0.61)],
        "check_value/auc_at_25_low": [(1, 0.5), (2, 0.5)],
        "check_value/auc_at_25_high": [(1, 0.7), (2, 0.7)],
        "check_value/auc_at_50": [(1, 0.875), (2, 0.875)],
        "check_value/change_at_miss": [(1, -0.0512), (2, -0.0512)],
    }
    assert on_policy.Tags()["scalars"] == []


def test_events_are_told_with_how_often_they_are_noticed() -> None:
    assert describe_events({"scripted": {}, "on_policy": {"miss": NOTICED}}) == [
        "on_policy: change of the value above the usual, and share noticed, at miss -0.051 (0.80 of 25)"
    ]


def test_the_worst_and_the_best_valued_episodes_are_shown() -> None:
    """Five episodes of the policy, one frame each, with errors of .1, .5, .2, .4 and .3."""
    frames: Any = SimpleNamespace(
        metas=[SimpleNamespace(source="policy")] * 5, first=np.arange(6), returns=np.zeros(5, dtype=np.float32)
    )
    chosen = choose_episodes(frames, -np.array([0.1, 0.5, 0.2, 0.4, 0.3]), num_videos=3)
    assert chosen["on_policy"] == [("worst_1", 1), ("worst_2", 3), ("best_1", 0)]
    assert chosen["scripted"] == []
    many = choose_episodes(frames, -np.array([0.1, 0.5, 0.2, 0.4, 0.3]), num_videos=20)["on_policy"]
    assert sorted(number for _, number in many) == [0, 1, 2, 3, 4], "each once"
    assert choose_episodes(frames, np.zeros(5), num_videos=0)["on_policy"] == []


def test_values_are_bars_below_the_picture_and_events_marks_below_the_bars() -> None:
    pictures = torch.full((3, 16, 30, 3), 90, dtype=torch.uint8)
    drawn = draw_values(pictures, np.array([-1.0, -0.5, 0.0]), {"reach": 1, "miss": 2})
    assert drawn.shape == (3, 16 + STRIP_PX + MARK_PX, 30, 3)
    assert drawn.dtype == torch.uint8
    middles, bottom = (5, 15, 25), 16 + STRIP_PX - 1

    def count_bar(picture: int, bar: int) -> tuple[int, tuple[int, ...]]:
        column = drawn[picture, 16 : 16 + STRIP_PX, middles[bar]]
        return int((column.sum(1) > 0).sum()), tuple(drawn[picture, bottom, middles[bar]].tolist())

    assert [count_bar(1, bar)[0] for bar in range(3)] == [1, 11, STRIP_PX], "-1 is a line, 0 is full"
    assert [count_bar(1, bar)[1] for bar in range(3)] == [GREEN, NOW, TO_COME]
    marks = [tuple(drawn[0, -1, middle].tolist()) for middle in middles]
    assert marks == [NOTHING, GREEN, RED]
    assert (drawn[0, :16] == 90).all(), "no event at the first picture"
    written = drawn[2, :16].reshape(-1, 3).int()
    assert (written[:, 0] > written[:, 1] + 30).any(), "the name of an error is written into its picture, in red"


def test_small_pictures_are_enlarged_and_keep_their_pixels() -> None:
    picture = torch.arange(2 * 16 * 24 * 3, dtype=torch.uint8).reshape(2, 16, 24, 3)
    larger = enlarge(picture)
    assert larger.shape == (2, 32, 48, 3)
    assert torch.equal(larger[:, ::2, 1::2], picture)
    wide = torch.zeros(1, 64, 128, 3, dtype=torch.uint8)
    assert enlarge(wide).shape == wide.shape


@pytest.mark.parametrize("width", [2, 16])
def test_a_picture_may_be_narrower_than_its_bars(width: int) -> None:
    drawn = draw_values(torch.zeros(10, 8, width, 3, dtype=torch.uint8), np.zeros(10), {})
    assert drawn.shape == (10, 8 + STRIP_PX + MARK_PX, width, 3)
