"""The check in the closed loop, as lines, curves and records."""

import json

import numpy as np
from reporters import RecordingReporter

from worldloop.evaluation.closed_loop import ClosedLoop, judge_closed_loop
from worldloop.evaluation.replayed_rollouts import ReplayedRollouts
from worldloop.reporting.closed_loop import (
    describe_closed_loop,
    list_scalars,
    record_closed_loop,
    record_promoted,
    write_closed_loop,
)


def judge(score: list[float], replayed: list[int], own: list[int]) -> ClosedLoop:
    """Two rollouts from each start."""
    rollouts = ReplayedRollouts(
        task=("push",) * len(score),
        start=np.arange(len(score)) // 2,
        score=np.array(score)[:, None],
        replayed=np.array(replayed, dtype=bool)[:, None],
        own=np.array(own, dtype=bool),
    )
    return judge_closed_loop(rollouts, threshold=0.5)


GOOD = judge([0.9, 0.1, 0.8, 0.2], [1, 0, 1, 0], [1, 0])
BAD = judge([0.1, 0.9, 0.8, 0.2], [1, 0, 1, 0], [1, 1])
ALIKE = judge([0.9, 0.6], [1, 1], [1])


def test_lines_of_one_task() -> None:
    lines = describe_closed_loop("checkpoints/iteration_001/policy_after_014", {"push": GOOD})
    assert lines == [
        "closed loop, policy_after_014: AUC within groups 1.000 (1.000-1.000), pooled 1.000, start only 0.000, "
        "true negatives 1.000",
        "closed loop, policy_after_014: success own 0.50, replay 0.50, declared 0.50, 4 rollouts from 2 states",
    ]


def test_lines_of_several_tasks_name_the_worst() -> None:
    lines = describe_closed_loop("policy", {"push": GOOD, "pull": BAD})
    assert "AUC within groups 0.750" in lines[0]
    assert lines[2].startswith("  push: AUC within groups 1.000")
    assert lines[3].startswith("  pull: AUC within groups 0.500")
    assert lines[3].endswith(", the worst")
    assert not lines[2].endswith(", the worst")


def test_what_is_not_defined_is_a_dash_and_no_curve() -> None:
    (first, _) = describe_closed_loop("policy", {"push": ALIKE})
    assert first == "closed loop, policy: AUC within groups -, pooled -, start only -, true negatives -"
    assert "check_closed_loop/within_group_auc" not in list_scalars(ALIKE)
    assert list_scalars(ALIKE)["check_closed_loop/replay"] == 1.0


def test_curves_are_over_updates_and_each_of_several_tasks_has_its_own() -> None:
    reporter = RecordingReporter()
    write_closed_loop(reporter, 14, {"push": GOOD, "pull": BAD})
    assert set(reporter.curves) == {"check_closed_loop", "check_closed_loop/push", "check_closed_loop/pull"}
    assert reporter.curves["check_closed_loop"][14]["check_closed_loop/within_group_auc"] == 0.75
    assert reporter.curves["check_closed_loop/pull"][14]["check_closed_loop/within_group_auc"] == 0.5
    alone = RecordingReporter()
    write_closed_loop(alone, 0, {"push": GOOD})
    assert set(alone.curves) == {"check_closed_loop"}


def test_the_record_holds_every_check_the_last_candidate_and_the_promoted_policy() -> None:
    record = record_closed_loop({}, "start", {"push": GOOD}, is_candidate=False)
    assert (record["last_candidate"], record["last_candidate_reason"]) == (None, "no round has made a candidate")
    record = record_closed_loop(record, "a", {"push": BAD}, is_candidate=True)
    record = record_closed_loop(record, "a", {"push": BAD}, is_candidate=True)
    assert [entry["checkpoint"] for entry in record["checkpoints"]] == ["start", "a"], "a repeated check counts once"
    assert record["last_candidate"]["within_group_auc"]["value"] == 0.5
    assert record_promoted(record, "start")["promoted"]["within_group_auc"]["value"] == 1.0
    kept = record_promoted(record, "an earlier policy")
    assert kept["promoted"] is None
    assert "earlier iteration" in kept["promoted_reason"]
    json.dumps(kept, allow_nan=False)


def test_the_record_of_several_tasks_holds_each() -> None:
    record = record_closed_loop({}, "a", {"push": GOOD, "pull": BAD}, is_candidate=True)
    figures = record["last_candidate"]
    assert figures["within_group_auc"]["value"] == 0.75
    assert {task: own["within_group_auc"]["value"] for task, own in figures["tasks"].items()} == {
        "push": 1.0, "pull": 0.5,
    }  # fmt: skip
