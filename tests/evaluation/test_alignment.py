import json

import numpy as np
import pytest

from worldloop.evaluation.alignment import compute_alignment, with_interval

OUTCOMES = ("success", "success", "success", "near_success", "near_success", "failure")
IS_SUCCESS = np.array([1, 1, 1, 0, 0, 0], dtype=bool)
SCORES = np.array([0.9, 0.8, 0.3, 0.7, 0.1, 0.2])
RATES = ("true_positive_rate", "false_positive_rate", "precision", "accuracy")


def test_alignment_by_hand() -> None:
    # A fourth success, at .4: of 4 successes 2 are predicted, of 3 predictions 2 are right.
    scores, is_success = np.append(SCORES, 0.4), np.append(IS_SUCCESS, True)
    result = compute_alignment(scores, is_success, (*OUTCOMES, "success"), threshold=0.5)
    assert (result["n"], result["num_success"]) == (7, 4)
    counts = {name: (result[name]["k"], result[name]["n"]) for name in RATES}
    assert counts == {
        "true_positive_rate": (2, 4), "false_positive_rate": (1, 3), "precision": (2, 3), "accuracy": (4, 7),
    }  # fmt: skip
    assert result["balanced_accuracy"]["value"] == pytest.approx((2 / 4 + 2 / 3) / 2, abs=1e-6)
    # Of the 12 (success, other) pairs: .9 and .8 beat all three, .4 and .3 beat .1 and .2 -> 10 / 12.
    assert result["auc"]["value"] == pytest.approx(10 / 12, abs=1e-6)
    assert {k: (v["k"], v["n"]) for k, v in result["by_outcome"].items()} == {
        "success": (2, 4), "near_success": (1, 2), "failure": (1, 1),
    }  # fmt: skip
    # Bins of a tenth hold one score each: mean of |label - score| = (.1 + .2 + .7 + .7 + .1 + .2 + .6) / 7.
    assert result["expected_calibration_error"]["value"] == pytest.approx(2.6 / 7, abs=1e-6)
    assert [(e["n"], e["probability"], e["rate"]) for e in result["reliability"]] == [
        (1, 0.1, 0), (1, 0.2, 0), (1, 0.3, 1), (1, 0.4, 1), (1, 0.7, 0), (1, 0.8, 1), (1, 0.9, 1),
    ]  # fmt: skip
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


def test_bounds_that_are_not_defined_are_none() -> None:
    """A statistic that only the episodes themselves have, and hardly any resample of them."""

    def only_here(values: np.ndarray, labels: np.ndarray) -> float:
        return 0.25 if np.array_equal(values, SCORES) else float("nan")

    assert with_interval(only_here, SCORES, IS_SUCCESS) == {"value": 0.25, "low": None, "high": None}


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValueError, match="length"):
        compute_alignment(SCORES[:3], IS_SUCCESS, OUTCOMES, 0.5)
    with pytest.raises(ValueError, match="is_success"):
        compute_alignment(SCORES, ~IS_SUCCESS, OUTCOMES, 0.5)
    with pytest.raises(ValueError, match="NaN"):
        compute_alignment(SCORES * np.nan, IS_SUCCESS, OUTCOMES, 0.5)
