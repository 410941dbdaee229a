"""What the check concludes from held-out episodes: how to read the world model's heads, and whether to trust it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from worldloop.core.statistics import auc, best_threshold, fit_temperature
from worldloop.core.success import Calibration
from worldloop.evaluation.fidelity import compute_psnr
from worldloop.evaluation.held_out import OpenLoop
from worldloop.evaluation.open_loop import Branches

MIN_CALIBRATION_EPISODES = 8  # of each outcome


def is_calibrated_on(result: OpenLoop, by_source: dict[str, OpenLoop]) -> bool:
    """Whether `calibrate` looks at ``result``: at the policy's own episodes where there are enough, else at all."""
    own = by_source.get("on_policy")
    enough = own is not None and min(own.is_success.sum(), (~own.is_success).sum()) >= MIN_CALIBRATION_EPISODES
    return result is own or not enough


def calibrate(by_source: dict[str, OpenLoop], floor_quantile: float = 0.05) -> Calibration:
    """Platt scaling and the threshold of best balanced accuracy; the identity without both outcomes.

    On the policy's own episodes where there are enough of both outcomes, since that is what the reward will judge;
    else on all. On the same episodes: the bias of the frames' expected PSNR, and its ``floor_quantile``.
    """
    used = [r for r in by_source.values() if is_calibrated_on(r, by_source)]
    if not used:
        return Calibration()
    success = fit_calibration(np.concatenate([r.logit for r in used]), np.concatenate([r.is_success for r in used]))
    expected, actual = (torch.cat(parts) for parts in zip(*(_psnr_pairs(r.branches) for r in used), strict=True))
    if not len(expected):
        return success
    bias = float((expected - actual).mean())
    floor = float(torch.quantile(expected, floor_quantile)) - bias
    return replace(success, psnr_bias_db=round(bias, 4), floor_db=round(floor, 4))


def _psnr_pairs(branches: Branches) -> tuple[Tensor, Tensor]:
    """Expected and actual PSNR in dB, f32 [n], of all valid frames; none where the model does not say."""
    if branches.expected_psnr_db is None:
        return torch.zeros(0), torch.zeros(0)
    valid = branches.truth.valid
    return branches.expected_psnr_db[valid], compute_psnr(branches.frames, branches.truth.frames)[valid]


def fit_calibration(logit: np.ndarray, label: np.ndarray) -> Calibration:
    """From logits f [n] and verdicts bool [n]."""
    from scipy.special import expit

    if len(label) == 0 or label.all() or not label.any():
        return Calibration()
    scale, bias = fit_temperature(logit, label)
    probability = expit(scale * logit + bias)
    threshold = float(np.clip(best_threshold(probability, label), 0.2, 0.8))
    return Calibration(round(scale, 6), round(bias, 6), round(threshold, 6))


def find_distrust(by_source: dict[str, OpenLoop], required_auc: float) -> str:
    """Why the model is not good enough to improve a policy in, "" where it is or where too few episodes tell.

    Judged on the policy's own episodes where there are enough of both outcomes, else on all, like `calibrate`.
    """
    used = [r for r in by_source.values() if is_calibrated_on(r, by_source)]
    logit = np.concatenate([np.zeros(0), *(r.logit for r in used)])
    is_success = np.concatenate([np.zeros(0, dtype=bool), *(r.is_success for r in used)])
    if min(is_success.sum(), (~is_success).sum()) < MIN_CALIBRATION_EPISODES:
        return ""
    reached = auc(logit, is_success)
    return (
        "" if reached >= required_auc else f"AUC {reached:.3f} is below check_world_model.required_auc {required_auc}"
    )
