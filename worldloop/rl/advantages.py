"""Advantages of grouped rollouts.

They are GRPO's with outcome supervision (DeepSeekMath, arXiv:2402.03300, section 4.1.2). Groups without variance are
dropped (DAPO, arXiv:2503.14476, eq. 11). So can be groups without a success: their returns are probabilities of the
success head, and the division by their standard deviation would make small differences as large as real ones.
Shapes: B rows (N groups x G members).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worldloop.core.tensors import check_shape


@dataclass(frozen=True)
class GroupAdvantages:
    """The advantages of B rows; where ``keep`` bool [B] is false the row's group was dropped and they are 0.

    ``advantages`` is f32 [B], or [B, C] with one for each chunk, see `shape_by_value`. ``std`` f32 [B] is what the
    returns of the row's group were divided by, 1 without normalisation.
    """

    advantages: Tensor
    keep: Tensor
    num_dropped: int
    std: Tensor


def compute_group_advantages(
    returns: Tensor,
    group_id: Tensor,
    min_std: float = 1e-6,
    *,
    success: Tensor | None = None,
    normalises: bool = True,
) -> GroupAdvantages:
    """A_i = (R_i - mean(R of its group)) / std(R of its group), GRPO's outcome supervision.

    std is the population's standard deviation. A group with std <= ``min_std`` (all succeed, all fail, or one member)
    carries no signal: it is dropped and counted.

    Args:
        returns: f32 [B].
        group_id: int64 [B]; any numbering, rows in any order.
        success: bool [B]; if given, groups without a success are dropped too.
        normalises: false: A_i = R_i - mean(R of its group), as in Dr. GRPO (arXiv:2503.20783).

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
    if success is not None:
        check_shape("success", success, tuple(returns.shape))
        keep_group &= zeros.index_add(0, row_group, success.to(zeros)) > 0
    keep = keep_group[row_group]
    scale = std[row_group].clamp_min(1e-12) if normalises else torch.ones_like(centred)
    advantages = torch.where(keep, centred / scale, torch.zeros_like(centred))
    return GroupAdvantages(advantages.float(), keep, num_groups - int(keep_group.sum()), scale.float())


def shape_by_value(
    groups: GroupAdvantages, returns: Tensor, values: Tensor, valid: Tensor, group_id: Tensor
) -> GroupAdvantages:
    """``groups`` with an advantage for each chunk: A_ic = (R_i - V_ic - mean of that) / std of the group's returns.

    With the potential V, potential-based shaping (Ng, Harada and Russell 1999) adds V(next state) - V(state) to each
    chunk's reward. From chunk c to the end these terms sum to -V_ic, because the potential at the end is 0: so no
    optimum changes. A chunk is compared with the same chunk of the members that still run, which are in other states by
    then; V says how good these already were. At the first chunk all members are in one state, and the advantage is that
    of `compute_group_advantages`.

    Args:
        returns: f32 [B], R.
        values: f32 [B, C], what a critic expects from the state before each chunk, on the scale of ``returns``.
        valid: bool [B, C], the chunks that count; the advantage of the others is 0.
        group_id: int64 [B].

    Example: one group, R = [1, 0], V of the second chunk [.9, .1]: the differences .1 and -.1 are divided by std .5,
    so the second chunk gets [.2, -.2], the first [1, -1].
    """
    check_shape("values", values, (len(returns), None))
    check_shape("valid", valid, tuple(values.shape))
    unique, row_group = torch.unique(group_id, return_inverse=True)
    left = (returns[:, None] - values).double() * valid
    zeros = left.new_zeros(len(unique), values.shape[1])
    size = zeros.index_add(0, row_group, valid.to(left)).clamp_min(1)
    mean = (zeros.index_add(0, row_group, left) / size)[row_group]
    shaped = torch.where(valid & groups.keep[:, None], (left - mean) / groups.std[:, None], torch.zeros_like(left))
    return replace(groups, advantages=shaped.float())


def shuffle_rows(num_rows: int, generator: torch.Generator) -> Tensor:
    """A permutation of *all* rows, int64 [B]: with it the reward says nothing about the actions, for a control.

    The distribution of returns stays the same. So a gain under this control was not learned from the reward.
    """
    return torch.randperm(num_rows, generator=generator, device=generator.device)
