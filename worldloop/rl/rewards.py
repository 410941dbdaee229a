"""The return of an imagined rollout: a weighted sum of terms, each a function of the rollout.

A new term is one function and one line in `REWARDS`; a long term has its own file in ``rl/``. The config gives the
weights (``improve_policy.reward``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from worldloop.core.errors import require_choice
from worldloop.core.success import find_highest_confirmed
from worldloop.core.types import Rollout
from worldloop.rl.reward_context import RewardContext, RewardTerm


def score_success(rollout: Rollout, context: RewardContext) -> Tensor:
    """f32 [B]: 1 for rows with a declared success, else their highest confirmed success probability.

    In a row that was cut off before its end, no frame follows that could confirm the last ones, so they do not count.
    Such a row gets ``last_value`` instead, if it is given. A declared success gets 1, not the head's probability: else
    the policy would learn to please the head in groups where every row succeeds.
    """
    probability = torch.cat([step.success_prob for step in rollout.steps], dim=1)
    stride = rollout.valid.shape[1] // probability.shape[1]
    has_ended, confirm_frames = rollout.steps[-1].done, context.spec.success_confirm_frames
    is_confirmable = torch.arange(probability.shape[1]) < probability.shape[1] - confirm_frames
    valid = rollout.valid[:, ::stride]
    best = find_highest_confirmed(probability, valid, confirm_frames, counts=has_ended[:, None] | is_confirmable)
    best = best.clamp_min(0)
    if context.last_value is not None:
        best = torch.where(has_ended, best, context.last_value)
    return torch.where(rollout.success, 1.0, best)


def score_certainty(rollout: Rollout, context: RewardContext) -> Tensor:
    """f32 [B]: minus the dB by which a row's lowest expected PSNR is below its task's ``floor_db``; 0 if it is not.

    This is MOPO's penalty (arXiv:2005.13239) with the world model's expected PSNR as the uncertainty.
    """
    lowest = rollout.lowest_expected_psnr_db
    if lowest is None:
        return torch.zeros(len(rollout.group_id))
    floor_db = context.calibrations.column("floor_db", rollout.observations[0].task)
    return -(floor_db - lowest).clamp_min(0)


REWARDS: dict[str, RewardTerm] = {
    "success": score_success,
    "certainty": score_certainty,
}


def check_reward(weights: Mapping[str, float]) -> None:
    """Raise ``ValueError`` unless ``weights`` names terms of `REWARDS`, all finite and at least one of them not 0."""
    for name, weight in weights.items():
        require_choice("improve_policy.reward", name, tuple(REWARDS))
        if not math.isfinite(weight):
            raise ValueError(f"improve_policy.reward.{name} is {weight}, allowed: any finite number")
    if not any(weights.values()):
        raise ValueError(
            f"improve_policy.reward has no term, allowed: weights of {', '.join(REWARDS)}, one of them not 0"
        )


def score_rollout(
    rollout: Rollout, weights: Mapping[str, float], context: RewardContext
) -> tuple[Tensor, dict[str, float]]:
    """The return of every row, f32 [B], and by name the mean of each weighted term."""
    terms = {name: weight * REWARDS[name](rollout, context) for name, weight in weights.items() if weight}
    returns = torch.stack(list(terms.values())).sum(0)
    return returns, {name: float(values.mean()) for name, values in terms.items()}
