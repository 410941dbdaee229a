"""Which candidate replaces the policy: by the mean over tasks, unless it loses one."""

import json

from worldloop.evaluation.promotion import judge_candidates


def test_the_candidate_of_most_successes_is_compared_pair_by_pair() -> None:
    current = {"push": (True, False, False, False)}
    candidates = {
        "a": {"push": (True, True, False, False)},
        "b": {"push": (False, True, True, True)},
        "c": {"push": (True, True, True, False)},
    }
    verdict = judge_candidates(current, candidates, min_gain=0.5)
    assert (verdict.best, verdict.is_promoted, verdict.lost_tasks) == ("b", True, ())
    assert verdict.figures.overall.current.k == 1
    assert not judge_candidates(current, candidates, min_gain=0.51).is_promoted
    record = verdict.to_record()
    assert set(record) == {"promoted", "promotion_gain", "validation_success"}
    assert record["promotion_gain"]["gain"] == 0.5
    assert {name: rate["k"] for name, rate in record["validation_success"].items()} == {"a": 2, "b": 3, "c": 3}
    json.dumps(record, allow_nan=False)


def test_the_mean_over_tasks_decides_and_each_task_has_its_gain() -> None:
    """Pull gains two of ten, push loses one, which may be chance."""
    current = {"push": (True,) * 5 + (False,) * 5, "pull": (False,) * 10}
    better = {"push": (False,) + (True,) * 4 + (False,) * 5, "pull": (True,) * 2 + (False,) * 8}
    verdict = judge_candidates(current, {"same": current, "better": better}, min_gain=0.0)
    assert (verdict.best, verdict.is_promoted) == ("better", True)
    record = verdict.to_record()
    assert record["promotion_gain"]["gain"] == 0.05
    assert record["promotion_gain"]["n"] == 20
    assert {task: figures["promotion_gain"]["gain"] for task, figures in record["tasks"].items()} == {
        "push": -0.1, "pull": 0.2,
    }  # fmt: skip
    assert record["tasks"]["pull"]["validation_success"]["better"]["k"] == 2


def test_a_candidate_that_is_worse_at_one_task_is_refused_with_its_name() -> None:
    current = {"push": (True,) * 20, "pull": (False,) * 20}
    traded = {"push": (True,) * 10 + (False,) * 10, "pull": (True,) * 18 + (False,) * 2}
    verdict = judge_candidates(current, {"traded": traded}, min_gain=0.0)
    assert verdict.figures.overall.gain.gain == 0.2
    assert (verdict.is_promoted, verdict.lost_tasks) == (False, ("push",))
    assert verdict.to_record()["promotion_reason"] == "worse at push"
    alone = judge_candidates({"push": current["push"]}, {"traded": {"push": traded["push"]}}, min_gain=-1.0)
    assert alone.is_promoted, "with one task min_gain says all"
