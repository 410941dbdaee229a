"""Log lines about the gate: one with one task, one more for each of several."""

from worldloop.evaluation.promotion import judge_candidates
from worldloop.reporting.promotion import describe_verdict

PUSH, PULL = (True, True, True, False), (True, False, False, False)


def test_one_task_is_one_line() -> None:
    verdict = judge_candidates({"push": PULL}, {"x/policy_2": {"push": PUSH}}, 0.0)
    assert describe_verdict(verdict) == [
        "candidates 0.750 (0.301-0.954), 3/4 against 0.250 (0.046-0.699), 1/4: promoted policy_2"
    ]
    assert describe_verdict(judge_candidates({"push": PUSH}, {"a": {"push": PULL}}, 0.0))[0].endswith(": rolled back")


def test_a_candidate_that_loses_a_task_says_so() -> None:
    lost = {"push": (False,) * 4, "pull": (True,) * 4}
    lines = describe_verdict(judge_candidates({"push": (True,) * 4, "pull": PULL}, {"a": lost}, -1.0))
    assert lines == [
        "candidates 0.500 (0.215-0.785), 4/8 against 0.625 (0.306-0.863), 5/8: rolled back, worse at push",
        "  push: 0.000 (0.000-0.490), 0/4 against 1.000 (0.510-1.000), 4/4",
        "  pull: 1.000 (0.510-1.000), 4/4 against 0.250 (0.046-0.699), 1/4",
    ]
