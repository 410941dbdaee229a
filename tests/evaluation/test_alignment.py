import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from imagined import make_episodes

from worldloop.core.statistics import ReliabilityBin
from worldloop.core.success import Calibration
from worldloop.evaluation.alignment import PrecisionRecall, align_episodes, compute_alignment
from worldloop.evaluation.calibration import apply_calibration, calibrate

OUTCOMES = ("success", "success", "success", "near_success", "near_success", "failure")
IS_SUCCESS = np.array([1, 1, 1, 0, 0, 0], dtype=bool)
SCORES = np.array([0.9, 0.8, 0.3, 0.7, 0.1, 0.2])
RATES = ("true_positive_rate", "false_positive_rate", "precision", "accuracy")


def test_alignment_by_hand() -> None:
    # A fourth success, at .4: of 4 successes 2 are predicted, of 3 predictions 2 are right.
    scores, is_success = np.append(SCORES, 0.4), np.append(IS_SUCCESS, True)
    result = compute_alignment(scores, is_success, (*OUTCOMES, "success"), threshold=0.5)
    assert (result.n, result.num_success) == (7, 4)
    counts = {name: (getattr(result, name).k, getattr(result, name).n) for name in RATES}
    assert counts == {
        "true_positive_rate": (2, 4), "false_positive_rate": (1, 3), "precision": (2, 3), "accuracy": (4, 7),
    }  # fmt: skip
    assert result.balanced_accuracy.value == pytest.approx((2 / 4 + 2 / 3) / 2, abs=1e-6)
    # Of the 12 (success, other) pairs: .9 and .8 beat all three, .4 and .3 beat .1 and .2 -> 10 / 12.
    assert result.auc.value == pytest.approx(10 / 12, abs=1e-6)
    assert {k: (v.k, v.n) for k, v in result.by_outcome.items()} == {
        "success": (2, 4), "near_success": (1, 2), "failure": (1, 1),
    }  # fmt: skip
    # Bins of a tenth hold one score each: mean of |label - score| = (.1 + .2 + .7 + .7 + .1 + .2 + .6) / 7.
    assert result.expected_calibration_error.value == pytest.approx(2.6 / 7, abs=1e-6)
    assert result.reliability == tuple(
        ReliabilityBin(1, score, rate)
        for score, rate in ((0.1, 0), (0.2, 0), (0.3, 1), (0.4, 1), (0.7, 0), (0.8, 1), (0.9, 1))
    )
    for figure in (result.auc, result.balanced_accuracy):
        assert figure.low <= figure.value <= figure.high
        assert figure.n == 7


def test_what_is_stored_of_an_alignment() -> None:
    figures = compute_alignment(SCORES, IS_SUCCESS, OUTCOMES, threshold=0.5).to_dict()
    assert set(figures) == {
        "n", "num_success", "threshold", "balanced_accuracy", "auc", "actions_only_auc", "accuracy",
        "true_positive_rate", "false_positive_rate", "by_outcome", "precision", "expected_calibration_error",
        "reliability", "precision_recall_curve",
    }  # fmt: skip
    assert set(figures["auc"]) == {"value", "low", "high"}
    assert (figures["precision"]["k"], figures["precision"]["n"]) == (2, 3)
    assert figures["reliability"][0] == {"n": 1, "probability": 0.1, "rate": 0.0}
    assert figures["precision_recall_curve"][0] == {"threshold": 0.9, "precision": 1.0, "recall": round(1 / 3, 6)}
    json.dumps(figures, allow_nan=False)


def test_threshold_is_inclusive_and_perfect_scores_are_one() -> None:
    result = compute_alignment(IS_SUCCESS.astype(float), IS_SUCCESS, OUTCOMES, threshold=1.0)
    assert result.balanced_accuracy.to_dict() == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert result.auc.value == 1.0


def test_precision_recall_curve_by_hand() -> None:
    curve = compute_alignment(SCORES, IS_SUCCESS, OUTCOMES, 0.5).precision_recall_curve
    expected = [
        (0.9, 1, 1 / 3),
        (0.8, 1, 2 / 3),
        (0.7, 2 / 3, 2 / 3),
        (0.3, 3 / 4, 1),
        (0.2, 3 / 5, 1),
        (0.1, 1 / 2, 1),
    ]
    assert curve == tuple(PrecisionRecall(*(round(x, 6) for x in point)) for point in expected)


def test_a_threshold_per_episode() -> None:
    result = compute_alignment(SCORES, IS_SUCCESS, OUTCOMES, np.array([0.5, 0.5, 0.2, 0.8, 0.5, 0.5]))
    assert result.accuracy.rate == 1.0
    assert result.threshold == pytest.approx(0.5)


def test_intervals_shrink_with_n_and_repeat() -> None:
    def width(repeats: int) -> float:
        scores, labels = np.tile(SCORES, repeats), np.tile(IS_SUCCESS, repeats)
        result = compute_alignment(scores, labels, OUTCOMES * repeats, 0.5)
        assert result == compute_alignment(scores, labels, OUTCOMES * repeats, 0.5)
        return result.auc.high - result.auc.low

    assert width(20) < width(3)


def test_one_class_gives_none_instead_of_a_number() -> None:
    result = compute_alignment(np.array([0.9, 0.2]), np.array([True, True]), ("success", "success"), 0.5)
    assert result.auc is None
    assert result.balanced_accuracy is None
    assert result.false_positive_rate is None
    assert result.by_outcome["failure"] is None
    assert result.true_positive_rate.rate == 0.5
    figures = result.to_dict()
    assert figures["auc"] is figures["false_positive_rate"] is figures["by_outcome"]["failure"] is None
    nothing = compute_alignment(np.array([0.9]), np.array([False]), ("failure",), 0.5).to_dict()
    assert nothing["precision_recall_curve"] is None


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValueError, match="length"):
        compute_alignment(SCORES[:3], IS_SUCCESS, OUTCOMES, 0.5)
    with pytest.raises(ValueError, match="is_success"):
        compute_alignment(SCORES, ~IS_SUCCESS, OUTCOMES, 0.5)
    with pytest.raises(ValueError, match="NaN"):
        compute_alignment(SCORES * np.nan, IS_SUCCESS, OUTCOMES, 0.5)


def test_cross_fitting_judges_no_episode_by_its_own_calibration() -> None:
    # Even rows say "success" from logit 2 on, odd rows from logit 12 on: each half is judged by the other's threshold.
    episodes = make_episodes([0.0, 10.0, 4.0, 14.0] * 10, [0, 0, 1, 1] * 10)
    fitted = calibrate({"on_policy": episodes})
    own, other = (align_episodes(episodes, apply_calibration(episodes, fitted, c)) for c in (False, True))
    assert own.auc == other.auc, "no calibration changes the order"
    assert own.auc.value == pytest.approx(0.75)
    assert other.true_positive_rate.rate == pytest.approx(0.5)  # even successes lie below the odd threshold
    assert other.false_positive_rate.rate == pytest.approx(0.5)  # odd failures above the even one


def test_the_auc_is_that_of_the_logits() -> None:
    """Logits far out have probabilities of exactly 1, among which no order is left."""
    episodes = make_episodes([0.0, 200.0, 300.0], [0, 0, 1])
    success = apply_calibration(episodes, Calibration(), cross_fit=False)
    assert success.probability.tolist() == [0.5, 1.0, 1.0]
    assert align_episodes(episodes, success).auc.value == 1.0
    assert align_episodes(replace(episodes, logit=torch.zeros(3).numpy()), success).auc.value == 0.5
