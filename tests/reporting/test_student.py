import numpy as np

from worldloop.core.statistics import Estimate
from worldloop.evaluation.by_task import ByTask
from worldloop.evaluation.student import Loss, StudentComparison
from worldloop.reporting.student import describe_accepted, describe_refused, make_student_record

COMPARISON = StudentComparison(7, Estimate(0.01, -0.02, 0.03, 7), Estimate(-0.1, -0.5, 0.0, 7))


def _alone(comparison: StudentComparison) -> ByTask[StudentComparison]:
    return ByTask(comparison, {"push": comparison})


def test_a_student_that_is_accepted_shows_what_it_lost() -> None:
    expected = "accepted, AUC +0.010 (-0.020 to +0.030), PSNR -0.100 (-0.500 to +0.000) dB, n 7"
    assert describe_accepted(COMPARISON) == expected


def test_a_student_that_is_refused_says_why() -> None:
    expected = "refused, psnr_db -0.100 (-0.500 to +0.000) against the teacher's, n 7, allowed: down to -0.4"
    assert describe_refused(_alone(COMPARISON), Loss("psnr_db"), 0.4) == expected
    missing = _alone(StudentComparison(7, None, None))
    assert describe_refused(missing, Loss("auc"), 0.02) == "refused, no held-out episodes to compare its auc on"
    undefined = _alone(StudentComparison(7, Estimate(0.0, np.nan, np.nan, 7), None))
    assert "auc +0.000 (+nan to +nan)" in describe_refused(undefined, Loss("auc"), 0.02)


def test_a_student_that_loses_one_task_names_it() -> None:
    worse = StudentComparison(3, Estimate(-0.3, -0.4, -0.2, 3), None)
    compared = ByTask(COMPARISON, {"push": COMPARISON, "pull": worse})
    expected = "refused, auc -0.300 (-0.400 to -0.200) in pull against the teacher's, n 3, allowed: down to -0.02"
    assert describe_refused(compared, Loss("auc", "pull"), 0.02) == expected


def test_the_record_has_the_comparison_over_all_tasks_and_in_each() -> None:
    one = make_student_record(_alone(COMPARISON), True, 1)
    assert one == {"distillation": COMPARISON.to_dict() | {"accepted": True, "num_sampler_steps": 1}}
    both = make_student_record(ByTask(COMPARISON, {"push": COMPARISON, "pull": COMPARISON}), False, 2)
    assert not both["distillation"]["accepted"]
    assert both["tasks"]["pull"]["distillation"] == COMPARISON.to_dict()
