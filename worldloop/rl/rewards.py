"""What an imagined rollout is worth: weighted terms, each a function of the rollout.

A new term is one function and one line in `REWARDS`, a long one with a file of its own in ``rl/``;
``improve_policy.reward`` gives its weight.
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
    """f32 [B]: 1 for rows that were declared a success, else the highest confirmed success probability they reached.

    A row that was cut off counts ``last_value`` instead, where given. A declared success counts 1 however sure the head
    was: else groups in which every row succeeds would be taught to please the head.
    """
    probability = torch.cat([step.success_prob for step in rollout.steps], dim=1)
    stride = rollout.valid.shape[1] // probability.shape[1]
    valid = rollout.valid[:, ::stride]
    best = find_highest_confirmed(probability, valid, context.spec.success_confirm_frames).clamp_min(0)
    if context.last_value is not None:
        best = torch.where(rollout.steps[-1].done, best, context.last_value)
    return torch.where(rollout.success, 1.0, best)


def score_certainty(rollout: Rollout, context: RewardContext) -> Tensor:
    """f32 [B]: minus the dB by which the row's least certain frame is expected to lie below its task's ``floor_db``.

    The penalty of MOPO (arXiv:2005.13239), whose uncertainty is here the world model's own expected PSNR.
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
    """Raise ``ValueError`` unless ``weights`` name terms of `REWARDS`, and at least one of them counts."""
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
    """The return of every row, f32 [B], and the mean of each weighted term, by name."""
    terms = {name: weight * REWARDS[name](rollout, context) for name, weight in weights.items() if weight}
    returns = torch.stack(list(terms.values())).sum(0)
    return returns, {name: float(values.mean()) for name, values in terms.items()}
