import json

import numpy as np
import pytest

from worldloop.metrics.alignment import compute_alignment

OUTCOMES = ("success", "success", "success", "near_success", "near_success", "failure")
IS_SUCCESS = np.array([1, 1, 1, 0, 0, 0], dtype=bool)
SCORES = np.array([0.9, 0.8, 0.3, 0.7, 0.1, 0.2])


def test_alignment_by_hand() -> None:
    result = compute_alignment(SCORES, IS_SUCCESS, OUTCOMES, threshold=0.5)
    assert (result["n"], result["num_success"]) == (6, 3)
    assert result["true_positive_rate"]["k"] == 2
    assert result["true_positive_rate"]["n"] == 3
    assert result["false_positive_rate"]["k"] == 1
    assert result["accuracy"]["rate"] == pytest.approx(4 / 6, abs=1e-6)
    assert result["balanced_accuracy"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    # Of the 9 (success, other) pairs: .9 and .8 beat all three, .3 beats .1 and .2 -> 8 / 9.
    assert result["auc"]["value"] == pytest.approx(8 / 9, abs=1e-6)
    assert {k: (v["k"], v["n"]) for k, v in result["by_outcome"].items()} == {
        "success": (2, 3), "near_success": (1, 2), "failure": (1, 1),
    }  # fmt: skip
    assert (result["precision"]["k"], result["precision"]["n"]) == (2, 3)
    # Bins of a tenth hold one score each: mean of |label - score| = (.1 + .2 + .7 + .7 + .1 + .2) / 6.
    assert result["expected_calibration_error"]["value"] == pytest.approx(2.0 / 6, abs=1e-6)
    for key in ("auc", "balanced_accuracy"):
        assert result[key]["low"] <= result[key]["value"] <= result[key]["high"]
    json.dumps(result, allow_nan=False)


def test_threshold_is_inclusive_and_perfect_scores_are_one() -> None:
    result = compute_alignment(IS_SUCCESS.astype(float), IS_SUCCESS, OUTCOMES, threshold=1.0)
    assert result["balanced_accuracy"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert result["auc"]["value"] == 1.0


def test_precision_recall_curve_by_hand() -> None:
    curve = compute_alignment(SCORES, IS_SUCCESS, OUTCOMES, 0.5)["precision_recall_curve"]
    expected = [
        (0.9, 1, 1 / 3),
        (0.8, 1, 2 / 3),
        (0.7, 2 / 3, 2 / 3),
        (0.3, 3 / 4, 1),
        (0.2, 3 / 5, 1),
        (0.1, 1 / 2, 1),
    ]
    assert [tuple(p.values()) for p in curve] == [pytest.approx(p, abs=1e-6) for p in expected]


def test_a_threshold_per_episode() -> None:
    result = compute_alignment(SCORES, IS_SUCCESS, OUTCOMES, np.array([0.5, 0.5, 0.2, 0.8, 0.5, 0.5]))
    assert result["accuracy"]["rate"] == 1.0
    assert result["threshold"] == pytest.approx(0.5)


def test_intervals_shrink_with_n_and_repeat() -> None:
    def width(repeats: int) -> float:
        scores, labels = np.tile(SCORES, repeats), np.tile(IS_SUCCESS, repeats)
        result = compute_alignment(scores, labels, OUTCOMES * repeats, 0.5)
        assert result == compute_alignment(scores, labels, OUTCOMES * repeats, 0.5)
        return result["auc"]["high"] - result["auc"]["low"]

    assert width(20) < width(3)


def test_one_class_gives_none_instead_of_a_number() -> None:
    result = compute_alignment(np.array([0.9, 0.2]), np.array([True, True]), ("success", "success"), 0.5)
    assert result["auc"] is None
    assert result["balanced_accuracy"] is None
    assert result["false_positive_rate"] is None
    assert result["by_outcome"]["failure"] is None
    assert result["true_positive_rate"]["rate"] == 0.5


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValueError, match="length"):
        compute_alignment(SCORES[:3], IS_SUCCESS, OUTCOMES, 0.5)
    with pytest.raises(ValueError, match="is_success"):
        compute_alignment(SCORES, ~IS_SUCCESS, OUTCOMES, 0.5)
    with pytest.raises(ValueError, match="NaN"):
        compute_alignment(SCORES * np.nan, IS_SUCCESS, OUTCOMES, 0.5)
