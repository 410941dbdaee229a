"""How the check of the critics is told and drawn."""

from __future__ import annotations

import math

from reporters import RecordingReporter

from worldloop.core.statistics import Estimate
from worldloop.evaluation.episode_values import CriticJudgement
from worldloop.reporting.value import describe_critics, write_critics

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


def test_each_source_has_a_run_with_what_is_known() -> None:
    reporter = RecordingReporter()
    write_critics(reporter, 3, JUDGED)
    assert reporter.curves["check_value/on_policy"] == {3: {}}
    assert reporter.curves["check_value/scripted"][3] == {
        "check_value/auc_at_25": 0.61,
        "check_value/auc_at_25_low": 0.5,
        "check_value/auc_at_25_high": 0.7,
        "check_value/auc_at_50": 0.875,
    }
