"""Sampling: from noise to data along the flow path, with any denoiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch import Tensor

from worldloop.networks import flow
from worldloop.world_model.denoiser import DenoiserOutput


def sample(
    denoise: Callable[[Mapping[str, Tensor], Tensor], DenoiserOutput], noise: Mapping[str, Tensor], num_steps: int
) -> DenoiserOutput:
    """Take Euler steps at t = 0, 1/n, ..., (n-1)/n from ``noise``, camera -> [B, L, C, h, w]; n is ``num_steps``.

    ``denoise(noisy, t)`` predicts the data. Returns the last prediction; its data is the sample. With one step that is
    the prediction at t = 0.
    """
    like = next(iter(noise.values()))
    times = torch.linspace(0, 1, num_steps + 1, device=like.device)[:, None].expand(-1, len(like))
    noisy = noise
    for t, t_next in pairwise(times):
        output = denoise(noisy, t)
        noisy = {c: flow.euler_step(noisy[c], data, t, t_next) for c, data in output.data.items()}
    return output
