"""When is a student of fewer sampler steps as good as its teacher?"""

import numpy as np
import pytest
from imagined import make_episodes

from worldloop.core.statistics import Estimate
from worldloop.evaluation.by_task import ByTask
from worldloop.evaluation.open_loop import ImaginedEpisodes
from worldloop.evaluation.student import Loss, StudentComparison, compare_student, compare_students, find_loss

MAX_AUC_LOSS, MAX_PSNR_LOSS_DB = 0.02, 0.5


def _judged(logit: np.ndarray, success: np.ndarray, error: int) -> dict[str, ImaginedEpisodes]:
    return {"on_policy": make_episodes(logit.tolist(), success.tolist(), error)}


def _find(comparison: StudentComparison, max_auc_loss: float, max_psnr_loss_db: float) -> str | None:
    """In the only task."""
    loss = find_loss(ByTask(comparison, {"push": comparison}), max_auc_loss, max_psnr_loss_db)
    assert loss is None or not loss.task
    return loss and loss.figure


def test_a_student_that_sees_as_well_is_taken_and_a_worse_one_is_not() -> None:
    success = np.arange(200) % 2 == 0
    good = np.where(success, 1.0, -1.0)
    teacher = _judged(good, success, 4)
    same = compare_student(teacher, teacher)
    nothing = {"value": 0.0, "low": 0.0, "high": 0.0}
    assert same.to_dict() == {"n": 200, "auc": nothing, "psnr_db": nothing}
    assert _find(same, MAX_AUC_LOSS, MAX_PSNR_LOSS_DB) is None

    blurred = compare_student(teacher, _judged(good, success, 8))  # twice the error is 6.02 dB
    assert blurred.psnr_db.value == pytest.approx(-20 * np.log10(2), abs=1e-3)
    assert _find(blurred, MAX_AUC_LOSS, MAX_PSNR_LOSS_DB) == "psnr_db"
    assert _find(blurred, MAX_AUC_LOSS, 6.1) is None

    blind = compare_student(teacher, _judged(np.zeros(200), success, 4))
    assert blind.auc == Estimate(-0.5, -0.5, -0.5, n=200)
    assert _find(blind, MAX_AUC_LOSS, MAX_PSNR_LOSS_DB) == "auc"


def test_too_few_episodes_to_tell_are_no_proof() -> None:
    """One of twelve orders reversed may be chance, and may be more than is allowed: the interval decides."""
    success = np.arange(24) % 2 == 0
    student = np.where(success, 1.0, -1.0)
    student[0] = -2.0
    comparison = compare_student(_judged(np.where(success, 1.0, -1.0), success, 4), _judged(student, success, 4))
    assert comparison.auc.low < comparison.auc.value < 0
    assert _find(comparison, 0.1, MAX_PSNR_LOSS_DB) == "auc"
    alike = np.ones(24, dtype=bool)
    only = compare_student(_judged(student, alike, 4), _judged(student, alike, 4))
    assert only.auc is None
    assert _find(only, MAX_AUC_LOSS, MAX_PSNR_LOSS_DB) == "auc"


def test_frames_are_compared_episode_by_episode_where_they_are_valid() -> None:
    """Easy and hard episodes lose nearly as much, so that their differences have a narrow interval."""
    success = [1, 0, 1, 0]
    logit, valid = [1.0, 0.0, 1.0, 0.0], [[True, True], [True, False]] * 2
    teacher, student = (
        {"on_policy": make_episodes(logit, success, error, valid)}
        for error in ([[2, 2], [4, 4], [16, 16], [32, 32]], [[4, 8], [12, 99], [32, 64], [96, 1]])
    )
    # Two of the four have twice the error, then four times, -9.031 dB on average; two three times, -9.542 dB.
    drops = [-20 * np.log10(2 * 4) / 2, -20 * np.log10(3)]
    difference = compare_student(teacher, student).psnr_db
    assert difference.value == pytest.approx(np.mean(drops), abs=1e-3)
    assert drops[1] - 1e-3 < difference.low < difference.high < drops[0] + 1e-3


def test_the_policys_own_episodes_decide_where_there_are_enough_of_them() -> None:
    success = [1, 0] * 8
    few = success[:8]
    teacher = {"scripted": make_episodes(few, few, 4), "on_policy": make_episodes(success, success, 4)}
    student = {"scripted": make_episodes(few, few, 8), "on_policy": teacher["on_policy"]}
    own = compare_student(teacher, student)
    assert (own.n, own.auc.value, own.psnr_db.value) == (16, 0, 0)
    teacher["on_policy"] = make_episodes([1.0, 0.0], [1, 0], 4)
    student["on_policy"] = make_episodes([-1.0, 0.0], [1, 0], 4)
    pooled = compare_student(teacher, student)
    assert pooled.n == 10
    assert pooled.auc.value == pytest.approx(-0.2)  # of 5 successes one falls below all 5 failures: 20 of 25
    assert pooled.psnr_db.value == pytest.approx(-0.8 * 20 * np.log10(2), abs=1e-3)  # 8 of 10: twice the error
    nothing = compare_student({}, {})
    assert nothing.to_dict() == {"n": 0, "auc": None, "psnr_db": None}
    assert _find(nothing, 1.0, 60.0) == "auc"


def test_the_lower_bounds_decide_and_may_be_what_is_allowed() -> None:
    auc, psnr_db = Estimate(0.01, -0.02, 0.03, 7), Estimate(-0.1, -0.5, 0.0, 7)
    assert _find(StudentComparison(7, auc, psnr_db), MAX_AUC_LOSS, MAX_PSNR_LOSS_DB) is None
    for comparison, lost in (
        (StudentComparison(7, Estimate(0.01, -0.021, 0.03, 7), psnr_db), "auc"),
        (StudentComparison(7, auc, Estimate(0.0, -0.6, 0.6, 7)), "psnr_db"),
        (StudentComparison(7, Estimate(0.0, np.nan, np.nan, 7), psnr_db), "auc"),
        (StudentComparison(7, auc, None), "psnr_db"),
    ):
        assert _find(comparison, MAX_AUC_LOSS, MAX_PSNR_LOSS_DB) == lost


def test_several_tasks_are_averaged_and_none_may_lose_for_certain() -> None:
    """Push keeps its AUC of 1 and pull falls to 0; both are twice as far off in dB."""
    success = np.arange(20) % 2 == 0
    good = np.where(success, 1.0, -1.0)
    teacher = {"push": _judged(good, success, 4), "pull": _judged(good, success, 4)}
    student = {"push": _judged(good, success, 8), "pull": _judged(-good, success, 8)}
    compared = compare_students(teacher, student)
    assert compared.overall.n == 40
    assert compared.overall.auc.value == -0.5
    assert compared.overall.psnr_db.value == pytest.approx(-20 * np.log10(2), abs=1e-3)
    assert compared.tasks["push"].auc.value == 0.0
    assert find_loss(compared, MAX_AUC_LOSS, MAX_PSNR_LOSS_DB) == Loss("auc")
    assert find_loss(compared, 0.6, 7.0) == Loss("auc", "pull"), "the mean would do, were it not for one task"
    assert find_loss(compared, 1.0, 7.0) is None
    alone = compare_students({"push": teacher["push"]}, {"push": student["push"]})
    assert alone.overall is alone.tasks["push"]
