"""DiffusionNFT: reinforcement learning on the forward process (arXiv:2509.16117, eq. 5 and algorithm 1).

Generated samples are noised again. The prediction moves towards samples of positive advantage, and its mirror image at
the old prediction moves towards the others. No sampler step needs a likelihood.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from worldloop.core.tensors import check_shape

SMALLEST_ERROR = 1e-5  # below it an error does not raise the weight further


def compute_nft_loss(
    predicted: Mapping[str, Tensor],
    old: Mapping[str, Tensor],
    data: Mapping[str, Tensor],
    advantages: Tensor,
    *,
    strength: float,
    max_advantage: float,
) -> Tensor:
    """[n]: (m / b) [r |x+ - x0|^2 / w+ + (1 - r) |x- - x0|^2 / w-], the mean over cameras, b ``strength``.

    x+- = old +- b (predicted - old) are predictions of the clean sample; r = (A clipped to +-m) / 2m + 1/2 with m
    ``max_advantage``; w+- are the means of |x+- - x0|, without gradients.

    Args:
        predicted, old, data: camera -> [n, C, h, w]; only ``predicted`` gets a gradient. ``data`` is x0.
        advantages: f32 [n].
    """
    m, b = max_advantage, strength
    r = advantages.clamp(-m, m) / (2 * m) + 0.5
    by_camera = []
    for camera, sample in data.items():
        check_shape(f"predicted[{camera!r}]", predicted[camera], tuple(sample.shape))
        change = b * (predicted[camera] - old[camera])
        errors = [old[camera] + sign * change - sample for sign in (1, -1)]
        towards, away = (
            error.square().flatten(1).mean(1) / error.detach().abs().flatten(1).mean(1).clamp_min(SMALLEST_ERROR)
            for error in errors
        )
        by_camera.append(m / b * (r * towards + (1 - r) * away))
    return torch.stack(by_camera).mean(0)
