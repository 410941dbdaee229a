"""Random variation of real frames in training, so that imagined frames look familiar to the model.

Latents are a dict by camera. Shapes: B rows, K context frames, S proprio. Generators are CPU generators.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from worldloop.core.context_frames import NUM_CONTEXT_FRAMES
from worldloop.networks.augment import shift_images
from worldloop.world_model.landmarks import READ_NOISE_M
from worldloop.world_model.model import VideoWorldModel

JUDGEMENT_NOISE = 0.1  # largest noise (std) on the success head's training input: latents, normalised proprio
JUDGEMENT_SHIFT = 32  # the largest shift of these frames is their shorter side divided by this


def vary_context(context: Mapping[str, Tensor], context_noise: float, generator: torch.Generator) -> dict[str, Tensor]:
    """Vary ``context``, camera -> [B, K, C, h, w], as imagination may find it: a shorter past, and noise.

    For K > 3 a row keeps a random number of its latest frames, at least two, and the oldest one kept is repeated: a
    rollout starts like this, see `fill_context`. The noise has a random level up to ``context_noise``; the episode's
    first frame stays clean. Number and level are drawn per row and are the same for all cameras.
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
    """Vary the training input of the success head's frame reader: latents, camera -> [B, C, h, w], and proprio [B, S].

    Both frames of a camera get the same shift; cameras get different ones. Target and proprio get noise with a level
    drawn per row. Without shifts the reader memorises a few hundred episodes.
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


def vary_landmarks(model: VideoWorldModel, proprio: Tensor, landmarks_m: Tensor, generator: torch.Generator) -> Tensor:
    """``low_dim`` [B, D] of ``proprio`` [B, S] and true positions [B, P], about as inexact as those that are read."""
    if model.landmarks is None:
        return model.normalise(proprio, landmarks_m)
    noise_m = READ_NOISE_M * torch.randn(landmarks_m.shape, generator=generator)
    return model.normalise(proprio, landmarks_m + noise_m.to(model.device))
