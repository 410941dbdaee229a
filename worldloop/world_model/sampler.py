"""From noise to data along the flow path, with any denoiser."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from worldloop.networks import flow
from worldloop.world_model.denoiser import DenoiserOutput


def sample(denoise: Callable[[Tensor, Tensor], DenoiserOutput], noise: Tensor, num_steps: int) -> DenoiserOutput:
    """Euler steps at t = 0, 1/n, ..., (n-1)/n from ``noise`` [B, L, C, size, size].

    ``denoise(noisy, t)`` predicts the data. Returns the last prediction, whose data is the sample; one step is the
    prediction at t = 0.
    """
    times = torch.linspace(0, 1, num_steps + 1, device=noise.device)
    noisy = noise
    for t, t_next in pairwise(times):
        output = denoise(noisy, t.expand(len(noise)))
        noisy = flow.euler_step(noisy, output.data, t.expand(len(noise)), t_next.expand(len(noise)))
    return output
