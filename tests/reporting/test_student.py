import numpy as np

from worldloop.core.statistics import Estimate
from worldloop.evaluation.student import StudentComparison
from worldloop.reporting.student import describe_accepted, describe_refused

COMPARISON = StudentComparison(7, Estimate(0.01, -0.02, 0.03, 7), Estimate(-0.1, -0.5, 0.0, 7))


def test_a_student_that_is_accepted_shows_what_it_lost() -> None:
    expected = "accepted, AUC +0.010 (-0.020 to +0.030), PSNR -0.100 (-0.500 to +0.000) dB, n 7"
    assert describe_accepted(COMPARISON) == expected


def test_a_student_that_is_refused_says_why() -> None:
    expected = "refused, psnr_db -0.100 (-0.500 to +0.000) against the teacher's, n 7, allowed: down to -0.4"
    assert describe_refused(COMPARISON, "psnr_db", 0.4) == expected
    missing = StudentComparison(7, None, None)
    assert describe_refused(missing, "auc", 0.02) == "refused, no held-out episodes to compare its auc on"
    undefined = StudentComparison(7, Estimate(0.0, np.nan, np.nan, 7), None)
    assert "auc +0.000 (+nan to +nan)" in describe_refused(undefined, "auc", 0.02)
