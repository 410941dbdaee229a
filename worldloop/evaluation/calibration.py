"""What held-out episodes say of a world model's heads: how to read them, and whether to trust them.

The policy's own episodes decide where there are enough of both outcomes, since they are what the success head will
judge; else all episodes do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from worldloop.core.statistics import auc, best_threshold, fit_temperature
from worldloop.core.success import Calibration, Trust
from worldloop.evaluation.fidelity import compute_mean_psnr
from worldloop.evaluation.open_loop import Branches, ImaginedEpisodes

MIN_EPISODES = 8  # of each outcome
MIN_THRESHOLD, MAX_THRESHOLD = 0.2, 0.8  # probabilities; few episodes may suggest any threshold


@dataclass(frozen=True)
class CalibratedSuccess:
    """``probability`` f [n] of success of each episode, and the ``threshold`` f [n] from which it counts as one."""

    probability: np.ndarray
    threshold: np.ndarray


def choose_sources(by_source: Mapping[str, ImaginedEpisodes]) -> tuple[str, ...]:
    """The sources that calibration and trust look at: ``on_policy`` if it has enough episodes, else all."""
    own = by_source.get("on_policy")
    is_enough = own is not None and min(own.is_success.sum(), (~own.is_success).sum()) >= MIN_EPISODES
    return ("on_policy",) if is_enough else tuple(by_source)


def calibrate(by_source: Mapping[str, ImaginedEpisodes], floor_quantile: float = 0.05) -> Calibration:
    """Platt scaling and the threshold of best balanced accuracy; the identity without both outcomes.

    On the same episodes: the bias of the frames' expected PSNR, and its ``floor_quantile`` in [0, 1).
    """
    chosen = [by_source[name] for name in choose_sources(by_source)]
    if not chosen:
        return Calibration()
    success = fit_calibration(np.concatenate([e.logit for e in chosen]), np.concatenate([e.is_success for e in chosen]))
    expected, actual = (torch.cat(parts) for parts in zip(*(_pair_psnr(e.branches) for e in chosen), strict=True))
    if not len(expected):
        return success
    bias = float((expected - actual).mean())
    floor = float(torch.quantile(expected, floor_quantile)) - bias
    return replace(success, psnr_bias_db=round(bias, 4), floor_db=round(floor, 4))


def _pair_psnr(branches: Branches) -> tuple[Tensor, Tensor]:
    """Expected and actual PSNR in dB, f32 [n], of all valid frames; none where the model does not say."""
    if branches.expected_psnr_db is None:
        return torch.zeros(0), torch.zeros(0)
    valid = branches.truth.valid
    return branches.expected_psnr_db[valid], compute_mean_psnr(branches)[valid]


def fit_calibration(logit: np.ndarray, is_success: np.ndarray) -> Calibration:
    """From logits f [n] and verdicts bool [n]; the identity where all verdicts are the same."""
    from scipy.special import expit

    if len(is_success) == 0 or is_success.all() or not is_success.any():
        return Calibration()
    scale, bias = fit_temperature(logit, is_success)
    probability = expit(scale * logit + bias)
    threshold = float(np.clip(best_threshold(probability, is_success), MIN_THRESHOLD, MAX_THRESHOLD))
    return Calibration(round(scale, 6), round(bias, 6), round(threshold, 6))


def apply_calibration(episodes: ImaginedEpisodes, calibration: Calibration, cross_fit: bool) -> CalibratedSuccess:
    """Read the logits of n ``episodes``.

    With ``cross_fit``, for episodes that ``calibration`` was itself fitted on, each half of them is read with a
    calibration that is fitted on the other half. So no figure judges what it was tuned on.
    """
    n = len(episodes)
    halves = [(np.arange(n) % 2 == i, calibration) for i in range(2)]
    if cross_fit:
        halves = [(half, fit_calibration(episodes.logit[~half], episodes.is_success[~half])) for half, _ in halves]
    probability, threshold = np.zeros(n), np.zeros(n)
    for half, used in halves:
        probability[half] = used.probability(torch.from_numpy(episodes.logit[half])).numpy()
        threshold[half] = used.threshold
    return CalibratedSuccess(probability, threshold)


def judge_trust(by_source: Mapping[str, ImaginedEpisodes], required_auc: float) -> Trust:
    """Trusted where the success head's AUC is at least ``required_auc``, or where too few episodes tell."""
    chosen = [by_source[name] for name in choose_sources(by_source)]
    logit = np.concatenate([np.zeros(0), *(e.logit for e in chosen)])
    is_success = np.concatenate([np.zeros(0, dtype=bool), *(e.is_success for e in chosen)])
    if min(is_success.sum(), (~is_success).sum()) < MIN_EPISODES:
        return Trust(True)
    reached = auc(logit, is_success)
    if reached >= required_auc:
        return Trust(True)
    return Trust(False, f"AUC {reached:.3f} is below check_world_model.required_auc {required_auc}")
