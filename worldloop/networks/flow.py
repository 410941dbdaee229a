"""The flow path: t runs from 0 (noise) to 1 (data) along a straight line.

``noisy = (1 - t) noise + t data`` and ``velocity = data - noise`` (Lipman et al. 2023, arXiv:2210.02747, with optimal
transport paths; Liu et al. 2022, arXiv:2209.03003). Papers disagree on which end is x_0 and on the sign of time: code
that uses published weights converts to this convention. ``t`` is f32 [B]; other tensors are [B, ...].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MIN_GAP = 1e-3  # lower bound of 1 - t in divisions: closer to the data the noise cannot be computed


def expand_time(t: Tensor, like: Tensor) -> Tensor:
    """``t`` [B] -> [B, 1, ...] with as many axes as ``like``."""
    return t.to(like.dtype).reshape(-1, *([1] * (like.ndim - 1)))


def interpolate(noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
    """The point of the path at time ``t``: (1 - t) noise + t data."""
    t = expand_time(t, data)
    return (1 - t) * noise + t * data


def velocity_from_data(noisy: Tensor, data: Tensor, t: Tensor) -> Tensor:
    """The velocity of the line that is at ``noisy`` at time t and ends at ``data``: (data - noisy) / (1 - t)."""
    return (data - noisy) / (1 - expand_time(t, noisy)).clamp_min(MIN_GAP)


def data_from_velocity(noisy: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """The end of the line that is at ``noisy`` at time t and has ``velocity``: noisy + (1 - t) velocity."""
    return noisy + (1 - expand_time(t, noisy)) * velocity


def noise_from_data(noisy: Tensor, data: Tensor, t: Tensor) -> Tensor:
    """The start of the line that is at ``noisy`` at time t and ends at ``data``: (noisy - t data) / (1 - t)."""
    t = expand_time(t, noisy)
    return (noisy - t * data) / (1 - t).clamp_min(MIN_GAP)


def euler_step(noisy: Tensor, data: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """Move from ``t`` to ``t_next`` along the line to the predicted ``data``; at t_next = 1 the result is ``data``."""
    reached = noisy + expand_time(t_next - t, noisy) * velocity_from_data(noisy, data, t)
    return torch.where(expand_time(t_next, noisy) >= 1, data, reached)


def sample_times(num_rows: int, zero_share: float, generator: torch.Generator) -> Tensor:
    """f32 [num_rows]: exactly 0 with probability ``zero_share``, else uniform in [0, 1)."""
    uniform = torch.rand(2, num_rows, generator=generator)
    return torch.where(uniform[0] < zero_share, 0.0, uniform[1])


def sde_step(noisy: Tensor, data: Tensor, t: Tensor, t_next: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """Mean and std of a random step in place of `euler_step` (Flow-GRPO, arXiv:2505.05470, section 4.1).

    In this convention (t from noise to data) the mean is noisy + (velocity - s^2 / (2 (1 - t)) noise) dt and the
    standard deviation s sqrt(dt), with s^2 = level^2 (1 - t) / t; velocity and noise are those of the predicted
    ``data``. Marginals agree with those of Euler steps in the limit of small steps. Four steps are far from it: they
    leave more noise. ``t`` f32 [B] must be above 0, since s is infinite there. The std is [B, 1, ...].
    """
    t_wide, dt = expand_time(t, noisy), expand_time(t_next - t, noisy)
    drift = velocity_from_data(noisy, data, t) - level**2 / (2 * t_wide) * noise_from_data(noisy, data, t)
    return noisy + drift * dt, level * ((1 - t_wide) / t_wide * dt).sqrt()


def compute_log_prob(reached: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-density [B] of ``reached`` under N(mean, std^2), the mean over all other dimensions, as in Flow-GRPO."""
    return (-((reached - mean) ** 2) / (2 * std**2) - std.log() - 0.5 * math.log(2 * math.pi)).flatten(1).mean(1)
