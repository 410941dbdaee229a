"""Does a world model know where it is wrong? Compares its expected PSNR with the actual PSNR."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldloop.core.statistics import Estimate, auc, estimate, estimate_by_label, rank_correlation
from worldloop.evaluation.fidelity import CURVE_RESAMPLES, FrameMetric
from worldloop.evaluation.open_loop import Branches


@dataclass(frozen=True)
class Uncertainty:
    """How well expected PSNR predicts errors, over ``num_frames`` valid frames; intervals resample episodes.

    - ``bias_db``: mean of expected minus actual PSNR; above 0 the model is overconfident
    - ``rank_correlation``: Spearman's, between expected and actual PSNR
    - ``state_error_correlation``: landmark -> Spearman's, between expected PSNR and the landmark's error; negative if
      expected PSNR predicts the error
    - ``auc_certain``, ``auc_uncertain``: the success head's AUC over the half of the branches with the higher lowest
      expected PSNR, and over the other half; ``None`` if a half has only one outcome; these intervals resample branches
    """

    num_frames: int
    bias_db: Estimate
    rank_correlation: Estimate
    state_error_correlation: dict[str, Estimate]
    auc_certain: Estimate | None
    auc_uncertain: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "n": self.num_frames,
            "bias_db": self.bias_db.to_dict(),
            "rank_correlation": self.rank_correlation.to_dict(),
            **{
                f"rank_correlation_{landmark}_error_cm": correlation.to_dict()
                for landmark, correlation in self.state_error_correlation.items()
            },
            "auc_by_certainty": {
                "certain": self.auc_certain and self.auc_certain.to_dict(),
                "uncertain": self.auc_uncertain and self.auc_uncertain.to_dict(),
            },
        }


def judge_uncertainty(
    branches: Branches, psnr_db: FrameMetric, state_errors: Mapping[str, FrameMetric]
) -> Uncertainty | None:
    """Judge the expected PSNR of ``branches``; ``None`` if the model has none.

    ``psnr_db``: the actual PSNR of the imagined frames; ``state_errors``: landmark -> its error in these frames.
    """
    if branches.expected_psnr_db is None:
        return None
    valid = branches.truth.valid
    episode = branches.episode[:, None].expand_as(valid)[valid].numpy()
    expected = branches.expected_psnr_db[valid].numpy()

    def compare(statistic: Callable[[np.ndarray, np.ndarray], float], values: Tensor) -> Estimate:
        actual = values[valid].numpy()
        return estimate(statistic, expected, actual, clusters=episode, num_resamples=CURVE_RESAMPLES)

    lowest = branches.expected_psnr_db.masked_fill(~valid, torch.inf).amin(1).numpy()
    score, is_success = branches.best_logit.numpy(), branches.succeeds.numpy()
    certain, uncertain = (
        estimate_by_label(auc, score[half], is_success[half], num_resamples=CURVE_RESAMPLES)
        for half in (lowest > np.median(lowest), lowest <= np.median(lowest))
    )
    return Uncertainty(
        num_frames=len(expected),
        bias_db=compare(_mean_difference, psnr_db.values),
        rank_correlation=compare(rank_correlation, psnr_db.values),
        state_error_correlation={
            landmark: compare(rank_correlation, error.values) for landmark, error in state_errors.items()
        },
        auc_certain=certain,
        auc_uncertain=uncertain,
    )


def _mean_difference(x: np.ndarray, y: np.ndarray) -> float:
    return float((x - y).mean())
