"""Reward alignment: does the world model's reward head agree with the simulator about an episode's outcome?

World-VLA-Loop (arXiv:2602.06508) reports the share of 20 samples a task that agree; one sample is then 5 points and
a head that always says "failure" looks good on failures. Here: balanced accuracy and AUC, with counts and 95 %
intervals, also for each outcome, since near-successes are what a reward model gets wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from worldloop.core.statistics import (
    Rate,
    auc,
    balanced_accuracy,
    bootstrap_interval,
    compute_reliability,
    expected_calibration_error,
)
from worldloop.core.types import OUTCOMES, Outcome


def compute_alignment(
    scores: np.ndarray, is_success: np.ndarray, outcomes: Sequence[Outcome], threshold: float | np.ndarray
) -> dict[str, Any]:
    """Alignment of n imagined episodes with what the simulator said of the same actions.

    Args:
        scores: f [n], the reward head's score of an episode (e.g. its largest success probability).
        is_success: bool [n], the simulator's verdict.
        outcomes: n of success | near_success | failure.
        threshold: score >= threshold counts as predicted success; one number, or one per episode f [n] where
            thresholds were cross-fitted (their mean is reported).

    Returns plain numbers, ready for JSON: ``n, num_success, threshold``; ``balanced_accuracy`` and ``auc`` as
    ``{"value", "low", "high"}`` (bootstrap over episodes); ``true_positive_rate``, ``false_positive_rate`` and
    ``accuracy`` as ``{"k", "n", "rate", "low", "high"}`` (Wilson); ``by_outcome``: outcome -> such a rate of
    *correct* predictions; ``precision`` at the threshold (recall is the true-positive rate);
    ``expected_calibration_error``, scores taken as probabilities, and its bins as ``reliability``, see
    `compute_reliability`; ``precision_recall_curve``: a list of
    ``{"threshold", "precision", "recall"}``. What cannot be had (a class without episodes) is ``None``.

    Raises ``ValueError`` where lengths differ, nothing is given, or outcomes contradict ``is_success``.
    """
    scores, is_success = np.asarray(scores, dtype=float), np.asarray(is_success, dtype=bool)
    if not len(scores) == len(is_success) == len(outcomes) or len(scores) == 0:
        raise ValueError(
            f"alignment needs one length > 0, got {len(scores)} scores, {len(is_success)} verdicts, "
            f"{len(outcomes)} outcomes"
        )
    if not np.isfinite(scores).all():
        raise ValueError("alignment scores contain NaN or infinity")
    labels = np.asarray(outcomes)
    if not np.isin(labels, OUTCOMES).all() or (is_success != (labels == "success")).any():
        raise ValueError(f"outcomes must be of {OUTCOMES} and be 'success' exactly where is_success holds")
    predicted = scores >= threshold
    correct = predicted == is_success
    return {
        "n": len(scores),
        "num_success": int(is_success.sum()),
        "threshold": round(float(np.mean(threshold)), 6),
        "balanced_accuracy": with_interval(balanced_accuracy, predicted, is_success),
        "auc": with_interval(auc, scores, is_success),
        "accuracy": _rate(correct),
        "true_positive_rate": _rate(predicted[is_success]),
        "false_positive_rate": _rate(predicted[~is_success]),
        "by_outcome": {outcome: _rate(correct[labels == outcome]) for outcome in OUTCOMES},
        "precision": _rate(is_success[predicted]),
        "expected_calibration_error": with_interval(expected_calibration_error, scores, is_success),
        "reliability": [
            {name: round(value, 6) for name, value in entry.items()}
            for entry in compute_reliability(scores, is_success)
        ],
        "precision_recall_curve": trace_precision_recall(scores, is_success),
    }


def trace_precision_recall(
    scores: np.ndarray, is_success: np.ndarray, num_points: int = 20
) -> list[dict[str, float]] | None:
    """Precision and recall at ``num_points`` thresholds, evenly spread over the ranks of the scores, highest first."""
    if not is_success.any():
        return None
    ranked = np.sort(scores)[::-1]
    chosen = np.unique(np.linspace(0, len(ranked) - 1, num_points).round().astype(int))
    points = []
    for threshold in dict.fromkeys(ranked[chosen].tolist()):
        predicted = scores >= threshold
        hits = int((predicted & is_success).sum())
        precision, recall = hits / int(predicted.sum()), hits / int(is_success.sum())
        points.append({"threshold": round(threshold, 6), "precision": round(precision, 6), "recall": round(recall, 6)})
    return points


def _rate(outcomes: np.ndarray) -> dict[str, float] | None:
    return Rate.of(outcomes).to_dict() if outcomes.size else None


def with_interval(statistic: Any, values: np.ndarray, labels: np.ndarray) -> dict[str, float | None] | None:
    """``statistic(values, labels)`` with its bootstrap interval; ``None`` where one class is missing."""
    if labels.all() or not labels.any():
        return None
    low, high = bootstrap_interval(statistic, values, labels, seed=0)
    bounds = {key: None if np.isnan(x) else round(x, 6) for key, x in (("low", low), ("high", high))}
    return {"value": round(statistic(values, labels), 6), **bounds}
