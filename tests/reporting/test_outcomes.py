"""Log lines about success: as ever with one task; of several each is named, and the worst."""

from worldloop.evaluation.outcomes import compare_outcomes, measure_success, measure_swapped
from worldloop.reporting.outcomes import describe_comparison, describe_success, describe_swapped

PUSH, PULL = (True, True, True, False), (True, False, False, False)
BOTH = {"push": PUSH, "pull": PULL}


def test_one_task_is_not_named() -> None:
    success, comparison = (
        measure_success({"push": PULL}, {"push": PUSH}),
        compare_outcomes({"push": PULL}, {"push": PUSH}),
    )
    assert describe_success(success) == "simulated success 0.750 (0.301-0.954), 3/4"
    assert describe_comparison(comparison) == "imagined success  0.250 (0.046-0.699), 1/4"


def test_several_tasks_are_listed_and_the_worst_is_named() -> None:
    overall = "0.500 (0.215-0.785), 4/8; push 0.750, pull 0.250 (the worst)"
    assert describe_success(measure_success(BOTH, BOTH)) == f"simulated success {overall}"
    assert describe_comparison(compare_outcomes(BOTH, BOTH)) == f"imagined success  {overall}"
    same = describe_swapped(measure_swapped(BOTH, {"push": (False, False), "pull": (False, False)}))
    assert same == "told to do another task 0.000 (0.000-0.490), 0/4; push 0.000, pull 0.000"
