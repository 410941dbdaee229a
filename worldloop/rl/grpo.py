"""Group-relative policy optimisation as pure functions over tensors.

- Group advantages and the k3 KL penalty: GRPO, DeepSeekMath, arXiv:2402.03300 (eq. 3-4).
- The asymmetric clip ("clip-higher") and dropping groups without variance: DAPO, arXiv:2503.14476 (eq. 8, 11).
- Both on a vision-language-action policy with a binary outcome: SimpleVLA-RL, arXiv:2509.09674 (clip 0.2 / 0.28,
  no KL term), the recipe World-VLA-Loop (arXiv:2602.06508) follows inside its world model.

One departure: a sequence's T actions are those *before and with* the first success (``valid``); later ones had no
influence on the return and get no gradient.

Shapes: B rows (N groups x G members), T actions a row (chunks x H). Log-probabilities are summed over action
dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worldloop.core.interfaces import Metrics
from worldloop.core.tensors import check_shape


@dataclass(frozen=True)
class GroupAdvantages:
    """``advantages`` f32 [B], 0 where ``keep`` bool [B] is false (the row's group was dropped)."""

    advantages: Tensor
    keep: Tensor
    num_dropped: int


def compute_group_advantages(returns: Tensor, group_id: Tensor, min_std: float = 1e-6) -> GroupAdvantages:
    """A_i = (R_i - mean(R of its group)) / std(R of its group), GRPO's outcome supervision.

    The standard deviation is the population's. A group whose std is <= ``min_std`` (all succeed, all fail, or of
    one member) carries no signal: it is dropped and counted.

    Args:
        returns: f32 [B].
        group_id: int64 [B], any numbering, rows in any order.

    Example: returns [1, 0, 1, 1], groups [0, 0, 1, 1] -> advantages [1, -1, 0, 0], keep [1, 1, 0, 0], 1 dropped.
    """
    check_shape("group_id", group_id, tuple(returns.shape))
    check_shape("returns", returns, (None,))
    groups, row_group = torch.unique(group_id, return_inverse=True)
    num_groups = len(groups)
    returns = returns.double()
    zeros = returns.new_zeros(num_groups)
    size = zeros.index_add(0, row_group, torch.ones_like(returns))
    mean = zeros.index_add(0, row_group, returns) / size
    centred = returns - mean[row_group]
    std = (zeros.index_add(0, row_group, centred.square()) / size).sqrt()
    keep_group = std > min_std
    keep = keep_group[row_group]
    advantages = torch.where(keep, centred / std[row_group].clamp_min(1e-12), torch.zeros_like(centred))
    return GroupAdvantages(advantages.float(), keep, num_groups - int(keep_group.sum()))


def compute_policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    valid: Tensor,
    clip_ratio_low: float,
    clip_ratio_high: float,
) -> tuple[Tensor, Metrics]:
    """Clipped surrogate, per action: mean of max(-A r, -A clip(r, 1 - low, 1 + high)), r = exp(log_probs - old).

    Every valid action of the batch weighs the same (DAPO), however many its row has.

    Args:
        log_probs, old_log_probs: f32 [B, T]; only ``log_probs`` gets a gradient.
        advantages: f32 [B].
        valid: bool [B, T]; invalid actions (after success, or of dropped groups) count for nothing.
        clip_ratio_low, clip_ratio_high: e.g. 0.2 and 0.28.

    Returns the scalar loss and the metrics of `_policy_metrics`. With nothing valid the loss is 0.
    """
    check_shape("old_log_probs", old_log_probs, tuple(log_probs.shape))
    check_shape("valid", valid, tuple(log_probs.shape))
    check_shape("advantages", advantages, (log_probs.shape[0],))
    # Masked before the exponential: inf * 0 would put NaN into the gradient of the valid part.
    log_ratio = torch.where(valid, log_probs - old_log_probs.detach(), torch.zeros_like(log_probs))
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_ratio_low, 1 + clip_ratio_high)
    advantage = advantages.detach()[:, None]
    per_action = torch.maximum(-advantage * ratio, -advantage * clipped)
    loss = (per_action * valid).sum() / valid.sum().clamp_min(1)
    with torch.no_grad():
        is_clipped = torch.maximum(-advantage * ratio, -advantage * clipped) > -advantage * ratio
        metrics = _policy_metrics(log_ratio, ratio, is_clipped, valid)
    return loss, {"loss_policy": loss.item(), **metrics}


def _policy_metrics(log_ratio: Tensor, ratio: Tensor, is_clipped: Tensor, valid: Tensor) -> Metrics:
    """Over valid actions: share whose gradient the clip removed, k3 estimate of KL(old || new), ratio statistics."""
    if not bool(valid.any()):
        return {"clip_fraction": 0.0, "approx_kl": 0.0, "ratio_mean": 1.0, "ratio_max": 1.0, "ratio_min": 1.0}
    chosen = ratio[valid]
    return {
        "clip_fraction": is_clipped[valid].float().mean().item(),
        # Schulman's k3 with samples of the old policy: (r - 1) - log r.
        "approx_kl": (chosen - 1 - log_ratio[valid]).mean().item(),
        "ratio_mean": chosen.mean().item(),
        "ratio_max": chosen.max().item(),
        "ratio_min": chosen.min().item(),
    }


def compute_kl_penalty(log_probs: Tensor, reference_log_probs: Tensor, valid: Tensor) -> Tensor:
    """KL(policy || reference), GRPO eq. 4, Schulman's k3: mean of q - log q - 1, q = pi_ref / pi; scalar >= 0.

    Unbiased on actions of the policy itself, never negative, zero where both agree. Shapes as in
    `compute_policy_loss`; the reference gets no gradient.
    """
    check_shape("reference_log_probs", reference_log_probs, tuple(log_probs.shape))
    log_q = torch.where(valid, reference_log_probs.detach() - log_probs, torch.zeros_like(log_probs))
    k3 = log_q.exp() - log_q - 1
    return (k3 * valid).sum() / valid.sum().clamp_min(1)


def shuffle_returns(returns: Tensor, generator: torch.Generator) -> Tensor:
    """``returns`` [B] permuted over *all* rows: the control in which the reward says nothing about the actions.

    The distribution of returns stays the same, so any gain under it is not learnt from the reward.
    """
    order = torch.randperm(len(returns), generator=generator, device=generator.device)
    return returns[order.to(returns.device)]
