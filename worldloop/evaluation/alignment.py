"""Reward alignment: does the world model's success head agree with the simulator on the outcome of episodes?

World-VLA-Loop (arXiv:2602.06508) reports the share of 20 samples per task that agree. Then one sample is 5 points, and
a head that always says "failure" looks good on failures. Here the figures are balanced accuracy and AUC, with counts
and 95 % intervals, and the accuracy for each outcome, since success heads mostly fail on near-successes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from worldloop.core.statistics import (
    Estimate,
    Rate,
    ReliabilityBin,
    auc,
    balanced_accuracy,
    compute_reliability,
    estimate_by_label,
    expected_calibration_error,
)
from worldloop.core.types import OUTCOMES, Outcome
from worldloop.evaluation.calibration import CalibratedSuccess
from worldloop.evaluation.open_loop import ImaginedEpisodes

DIGITS = 6  # decimal places of every stored figure


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall in [0, 1] when score >= ``threshold`` predicts a success."""

    threshold: float
    precision: float
    recall: float


@dataclass(frozen=True)
class Alignment:
    """Agreement of n predicted outcomes with the simulator's; a figure is ``None`` if a class has no episodes.

    - ``threshold``: of the scores; the mean if every episode has its own
    - ``balanced_accuracy``, ``auc``, ``expected_calibration_error``: bootstrap intervals over episodes
    - ``accuracy``, ``true_positive_rate`` (recall), ``false_positive_rate``, ``precision``: Wilson intervals
    - ``by_outcome``: rate of *correct* predictions among the episodes of each outcome
    - ``actions_only_auc``: the floor of ``auc``, see `evaluation.actions_only`; ``None`` if it was not measured
    - ``reliability``: with scores as probabilities, see `compute_reliability`
    - ``precision_recall_curve``: from the highest threshold down
    """

    n: int
    num_success: int
    threshold: float
    balanced_accuracy: Estimate | None
    auc: Estimate | None
    accuracy: Rate | None
    true_positive_rate: Rate | None
    false_positive_rate: Rate | None
    by_outcome: dict[Outcome, Rate | None]
    precision: Rate | None
    expected_calibration_error: Estimate | None
    reliability: tuple[ReliabilityBin, ...]
    precision_recall_curve: tuple[PrecisionRecall, ...] | None
    actions_only_auc: Estimate | None = None

    def to_dict(self) -> dict[str, Any]:
        curve = self.precision_recall_curve
        return {
            "n": self.n,
            "num_success": self.num_success,
            "threshold": self.threshold,
            "balanced_accuracy": self.balanced_accuracy and self.balanced_accuracy.to_dict(),
            "auc": self.auc and self.auc.to_dict(),
            "actions_only_auc": self.actions_only_auc and self.actions_only_auc.to_dict(),
            "accuracy": self.accuracy and self.accuracy.to_dict(),
            "true_positive_rate": self.true_positive_rate and self.true_positive_rate.to_dict(),
            "false_positive_rate": self.false_positive_rate and self.false_positive_rate.to_dict(),
            "by_outcome": {outcome: rate and rate.to_dict() for outcome, rate in self.by_outcome.items()},
            "precision": self.precision and self.precision.to_dict(),
            "expected_calibration_error": (
                self.expected_calibration_error and self.expected_calibration_error.to_dict()
            ),
            "reliability": [entry.to_dict() for entry in self.reliability],
            "precision_recall_curve": None if curve is None else [dict(vars(point)) for point in curve],
        }


def align_episodes(
    episodes: ImaginedEpisodes, success: CalibratedSuccess, actions_only: np.ndarray | None = None
) -> Alignment:
    """Alignment of imagined episodes; ``success`` is the result of `apply_calibration`.

    ``actions_only`` f [n] is the result of `score_actions`.

    The AUC is computed on the raw logits. One calibration keeps their order, but cross-fitting mixes two calibrations
    and so would change it.
    """
    alignment = compute_alignment(success.probability, episodes.is_success, episodes.outcomes, success.threshold)
    floor = None
    if actions_only is not None:
        known = ~np.isnan(actions_only)
        floor = estimate_by_label(auc, actions_only[known], episodes.is_success[known], digits=DIGITS)
    return replace(
        alignment,
        auc=estimate_by_label(auc, episodes.logit, episodes.is_success, digits=DIGITS),
        actions_only_auc=floor,
    )


def compute_alignment(
    scores: np.ndarray, is_success: np.ndarray, outcomes: Sequence[Outcome], threshold: float | np.ndarray
) -> Alignment:
    """Alignment of the scores of n episodes with the simulator's outcomes under the same actions.

    Args:
        scores: f [n], e.g. the largest success probability of each episode.
        is_success: bool [n], the simulator's verdict.
        outcomes: n of success | near_success | failure.
        threshold: score >= threshold predicts a success; one number, or f [n], one per episode.

    Raises ``ValueError`` if lengths differ or are 0, a score is not finite, or outcomes contradict ``is_success``.
    """
    scores, is_success = np.asarray(scores, dtype=float), np.asarray(is_success, dtype=bool)
    if not len(scores) == len(is_success) == len(outcomes) or len(scores) == 0:
        raise ValueError(
            f"alignment needs one length > 0, got {len(scores)} scores, {len(is_success)} verdicts, "
            f"{len(outcomes)} outcomes"
        )
    check_finite(scores)
    labels = np.asarray(outcomes)
    if not np.isin(labels, OUTCOMES).all() or (is_success != (labels == "success")).any():
        raise ValueError(f"outcomes must be of {OUTCOMES} and be 'success' exactly where is_success holds")
    predicted = scores >= threshold
    is_correct = predicted == is_success
    return Alignment(
        n=len(scores),
        num_success=int(is_success.sum()),
        threshold=round(float(np.mean(threshold)), DIGITS),
        balanced_accuracy=estimate_by_label(balanced_accuracy, predicted, is_success, digits=DIGITS),
        auc=estimate_by_label(auc, scores, is_success, digits=DIGITS),
        accuracy=_rate(is_correct),
        true_positive_rate=_rate(predicted[is_success]),
        false_positive_rate=_rate(predicted[~is_success]),
        by_outcome={outcome: _rate(is_correct[labels == outcome]) for outcome in OUTCOMES},
        precision=_rate(is_success[predicted]),
        expected_calibration_error=estimate_by_label(expected_calibration_error, scores, is_success, digits=DIGITS),
        reliability=compute_reliability(scores, is_success),
        precision_recall_curve=trace_precision_recall(scores, is_success),
    )


def check_finite(scores: np.ndarray) -> None:
    """Raise ``ValueError`` if a score is NaN or infinite, as after a model has diverged."""
    if not np.isfinite(scores).all():
        raise ValueError("alignment scores contain NaN or infinity")


def trace_precision_recall(
    scores: np.ndarray, is_success: np.ndarray, num_points: int = 20
) -> tuple[PrecisionRecall, ...] | None:
    """Precision and recall at up to ``num_points`` thresholds, evenly spread over the ranked scores, highest first.

    ``None`` if no episode succeeds.
    """
    if not is_success.any():
        return None
    ranked = np.sort(scores)[::-1]
    chosen = np.unique(np.linspace(0, len(ranked) - 1, num_points).round().astype(int))
    points = []
    for threshold in dict.fromkeys(ranked[chosen].tolist()):
        predicted = scores >= threshold
        hits = int((predicted & is_success).sum())
        precision, recall = hits / int(predicted.sum()), hits / int(is_success.sum())
        points.append(PrecisionRecall(*(round(x, DIGITS) for x in (threshold, precision, recall))))
    return tuple(points)


def _rate(outcomes: np.ndarray) -> Rate | None:
    return Rate.of(outcomes) if outcomes.size else None
