"""Log lines about success: as ever with one task; with several each has a line."""

from worldloop.evaluation.outcomes import compare_outcomes, measure_success, measure_swapped
from worldloop.evaluation.promotion import judge_candidate
from worldloop.reporting.success import (
    describe_candidates,
    describe_imagined,
    describe_promotion,
    describe_simulated,
    describe_swapped,
)

PUSH, PULL = (True, True, True, False), (True, False, False, False)


def test_one_task_is_one_line() -> None:
    assert describe_simulated(measure_success({"push": PULL}, {"push": PUSH})) == [
        "simulated success 0.750 (0.301-0.954), 3/4"
    ]
    assert describe_imagined(compare_outcomes({"push": PULL}, {"push": PUSH})) == [
        "imagined success  0.250 (0.046-0.699), 1/4"
    ]
    verdict = judge_candidate("x/policy_2", {"push": PULL}, {"push": PUSH}, net_wins=2)
    assert describe_promotion(verdict) == [
        "candidate policy_2 against the current policy: 2 states won, 0 lost of 4, "
        "gain +0.500 (+0.000 to +1.000): promoted"
    ]
    assert describe_candidates({"x/policy_1": {"push": PULL}, "x/policy_2": {"push": PUSH}}) == (
        "candidates: policy_1 1/4, policy_2 3/4"
    )


def test_each_of_several_tasks_has_a_line_and_the_worst_is_named() -> None:
    both = {"push": PUSH, "pull": PULL}
    lines = describe_simulated(measure_success(both, both))
    assert lines == [
        "simulated success 0.500 (0.215-0.785), 4/8",
        "  push: 0.750 (0.301-0.954), 3/4",
        "  pull: 0.250 (0.046-0.699), 1/4, the worst",
    ]
    assert describe_imagined(compare_outcomes({"push": PULL, "pull": PUSH}, both))[1].endswith(", the worst")


def test_what_the_policy_does_when_told_another_task_is_shown_by_task() -> None:
    told = {"push": PUSH, "pull": PULL}
    swapped = {"push": (True, False), "pull": (False, False)}
    assert describe_swapped(measure_swapped(told, swapped)) == [
        "told to do another task: 0.250 (0.046-0.699), 1/4",
        "  push: 0.500 (0.095-0.905), 1/2",
        "  pull: 0.000 (0.000-0.658), 0/2",
    ]


def test_a_candidate_that_loses_a_task_says_so() -> None:
    lost = {"push": (False,) * 4, "pull": (True,) * 4}
    lines = describe_promotion(judge_candidate("a", {"push": (True,) * 4, "pull": (False,) * 4}, lost, net_wins=0))
    assert lines[0].endswith(": refused, worse at push")
    assert lines[1] == "  push: gain -1.000 (-1.000 to -1.000)"
    assert lines[2] == "  pull: gain +1.000 (+1.000 to +1.000)"
