"""Calibrate a world model's heads on held-out episodes, and decide whether to trust the model.

Success heads that read states are not calibrated, see `calibrate`. For others the policy's own episodes count if there
are enough of both outcomes, since the head will judge such episodes; else all. Trust needs the policy's own episodes.
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

MIN_EPISODES = 8  # least number of episodes of each outcome
MIN_THRESHOLD, MAX_THRESHOLD = 0.2, 0.8  # probabilities; bounds, because few episodes may give any threshold


@dataclass(frozen=True)
class CalibratedSuccess:
    """``probability`` f [n] of success of each episode, and ``threshold`` f [n], from which it counts as a success."""

    probability: np.ndarray
    threshold: np.ndarray


def choose_sources(by_source: Mapping[str, ImaginedEpisodes]) -> tuple[str, ...]:
    """The sources for calibration: ``on_policy`` if it has `MIN_EPISODES` of each outcome, else all."""
    own = by_source.get("on_policy")
    is_enough = own is not None and min(own.is_success.sum(), (~own.is_success).sum()) >= MIN_EPISODES
    return ("on_policy",) if is_enough else tuple(by_source)


def calibrate(
    by_source: Mapping[str, ImaginedEpisodes], floor_quantile: float = 0.05, reads_states: bool = False
) -> Calibration:
    """Calibrate on the sources of `choose_sources`.

    - Success: see `fit_calibration`. A head that ``reads_states`` keeps its own probabilities and the threshold 1/2:
      in recorded episodes success often slips from an imagined hand. A threshold that was fitted to them declared
      states solved to which the head itself gives .0002 (PickCube-v1, one seed of three, experiment 030).
    - ``psnr_bias_db``: the mean of expected minus actual PSNR over valid frames.
    - ``floor_db``: the quantile ``floor_quantile``, in [0, 1), of the expected PSNR minus that bias.
    """
    chosen = [by_source[name] for name in choose_sources(by_source)]
    if not chosen:
        return Calibration()
    logit, is_success = (np.concatenate([getattr(e, name) for e in chosen]) for name in ("logit", "is_success"))
    success = Calibration() if reads_states else fit_calibration(logit, is_success)
    expected, actual = (torch.cat(parts) for parts in zip(*(_pair_psnr(e.branches) for e in chosen), strict=True))
    if not len(expected):
        return success
    bias = float((expected - actual).mean())
    floor = float(torch.quantile(expected, floor_quantile)) - bias
    return replace(success, psnr_bias_db=round(bias, 4), floor_db=round(floor, 4))


def _pair_psnr(branches: Branches) -> tuple[Tensor, Tensor]:
    """Expected and actual PSNR in dB, f32 [n] each, of all valid frames; n = 0 if the model estimates no PSNR."""
    if branches.expected_psnr_db is None:
        return torch.zeros(0), torch.zeros(0)
    valid = branches.truth.valid
    return branches.expected_psnr_db[valid], compute_mean_psnr(branches)[valid]


def fit_calibration(logit: np.ndarray, is_success: np.ndarray) -> Calibration:
    """Platt scaling and the threshold of best balanced accuracy, from logits f [n] and verdicts bool [n].

    The default `Calibration` if all verdicts are the same.
    """
    from scipy.special import expit

    if len(is_success) == 0 or is_success.all() or not is_success.any():
        return Calibration()
    scale, bias = fit_temperature(logit, is_success)
    probability = expit(scale * logit + bias)
    threshold = float(np.clip(best_threshold(probability, is_success), MIN_THRESHOLD, MAX_THRESHOLD))
    return Calibration(round(scale, 6), round(bias, 6), round(threshold, 6))


def apply_calibration(episodes: ImaginedEpisodes, calibration: Calibration, cross_fit: bool) -> CalibratedSuccess:
    """Turn the logits of n ``episodes`` into success probabilities and thresholds.

    Use ``cross_fit`` for episodes on which ``calibration`` was fitted: each half is then read with a calibration fitted
    on the other half. So no episode is judged by a calibration that was fitted on it.
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
    """Trust the model if its success head's AUC over the policy's own episodes is at least ``required_auc``.

    With fewer than `MIN_EPISODES` of an outcome the model is not trusted: scripted episodes are easier to judge. A
    recording's episodes stand for those of a policy. ``required_auc`` 0 trusts every model.
    """
    if required_auc == 0:
        return Trust(True)
    chosen = [by_source[name] for name in ("on_policy", "recorded") if name in by_source]
    logit = np.concatenate([np.zeros(0), *(e.logit for e in chosen)])
    is_success = np.concatenate([np.zeros(0, dtype=bool), *(e.is_success for e in chosen)])
    num_successes, num_failures = int(is_success.sum()), int((~is_success).sum())
    if min(num_successes, num_failures) < MIN_EPISODES:
        counts = f"{num_successes} successes and {num_failures} failures"
        return Trust(False, f"too few held-out episodes of the policy: {counts}, at least {MIN_EPISODES} of each")
    reached = auc(logit, is_success)
    if reached >= required_auc:
        return Trust(True)
    return Trust(False, f"AUC {reached:.3f} is below check_world_model.required_auc {required_auc}", can_improve=True)
