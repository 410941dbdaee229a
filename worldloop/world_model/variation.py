"""What training varies in its real frames, so that imagination meets nothing it has not seen.

Latents are a dict by camera. Shapes: B rows, K context frames, S proprio. Generators are CPU generators.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from worldloop.core.context_frames import NUM_CONTEXT_FRAMES
from worldloop.networks.augment import shift_images

JUDGEMENT_NOISE = 0.1  # largest noise on what the success head learns from: [-1, 1] images, normalised proprio
JUDGEMENT_SHIFT = 32  # the largest shift of those frames is their side's length over this


def vary_context(context: Mapping[str, Tensor], context_noise: float, generator: torch.Generator) -> dict[str, Tensor]:
    """What imagination may find instead of ``context``, camera -> [B, K, C, h, w]: less of a past, and noise.

    A rollout starts with the latest two frames and fills up, see `fill_context`. Noise is of a level up to
    ``context_noise``; the episode's first frame stays clean. Length and level are drawn per row, for all cameras alike.
    """
    B, K = next(iter(context.values())).shape[:2]
    varied = dict(context)
    if K > NUM_CONTEXT_FRAMES:
        oldest = torch.randint(1, K - 1, (B, 1), generator=generator)
        order = torch.arange(K).expand(B, -1)
        order = torch.where(order == 0, order, torch.maximum(order, oldest))
        rows = torch.arange(B)[:, None]
        varied = {c: frames[rows.to(frames.device), order.to(frames.device)] for c, frames in varied.items()}
    if not context_noise:
        return varied
    noise = {c: torch.randn(frames[:, 1:].shape, generator=generator) for c, frames in varied.items()}
    level = torch.rand(B, 1, 1, 1, 1, generator=generator) * context_noise
    return {
        c: torch.cat([frames[:, :1], frames[:, 1:] + (noise[c] * level).to(frames)], dim=1)
        for c, frames in varied.items()
    }


def vary_judged(
    first: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    proprio: Tensor,
    generator: torch.Generator,
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """What the success head's frame reader learns from: latents, camera -> [B, C, h, w], and proprio [B, S].

    The two frames of a camera are shifted together, each camera apart. Target and proprio get noise whose level is
    drawn per row. Without shifts the reader learns a few hundred episodes by heart.
    """
    shifted = {}
    for camera, latents in target.items():
        pair = torch.stack([first[camera], latents], dim=1)
        shifted[camera] = shift_images(pair, min(latents.shape[-2:]) // JUDGEMENT_SHIFT, generator).unbind(1)
    level = torch.rand(len(proprio), generator=generator) * JUDGEMENT_NOISE

    def add_noise(values: Tensor) -> Tensor:
        noise = torch.randn(values.shape, generator=generator)
        return values + (noise * level.reshape(-1, *[1] * (values.ndim - 1))).to(values)

    noisy = {camera: add_noise(pair[1]) for camera, pair in shifted.items()}
    return {camera: pair[0] for camera, pair in shifted.items()}, noisy, add_noise(proprio)
