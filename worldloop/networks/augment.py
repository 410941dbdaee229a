"""Image augmentation for learning from few episodes: random shift (pad and crop) and brightness.

The shift is DrQ's (Kostrikov et al. 2020, arXiv:2004.13649): replicate the border, then crop at a random offset.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def augment_frames(
    frames: Mapping[str, Tensor], shift_px: int, brightness: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Randomly shift and brighten the frames of every camera, u8 [B, K, h, w, 3]; a row's K frames share one draw.

    ``shift_px``: the largest offset in each direction; ``brightness``: pixel values are scaled by
    1 + U(-brightness, brightness).
    """
    return {camera: _augment(images, shift_px, brightness, generator) for camera, images in frames.items()}


def _augment(images: Tensor, shift_px: int, brightness: float, generator: torch.Generator) -> Tensor:
    images = shift_images(images.movedim(-1, -3), shift_px, generator).movedim(-3, -1)
    scale = 1 + brightness * (2 * torch.rand(len(images), generator=generator, device=generator.device) - 1)
    if brightness > 0:
        scale = scale.to(images.device)[:, None, None, None, None]
        images = (images.float() * scale).round().clamp(0, 255).to(torch.uint8)
    return images


def shift_images(images: Tensor, shift_px: int, generator: torch.Generator) -> Tensor:
    """Shift ``images`` [B, K, C, h, w] by up to ``shift_px`` in each direction; a row's K images shift together."""
    B, _, _, h, w = images.shape
    # Drawn on the generator's device, so that a run is the same on every device.
    offset = torch.randint(-shift_px, shift_px + 1, (2, B, 1), generator=generator, device=generator.device)
    if shift_px == 0:
        return images
    offset = offset.to(images.device)
    y = (torch.arange(h, device=images.device) + offset[0]).clamp(0, h - 1)  # [B, h]; clamping replicates the border
    x = (torch.arange(w, device=images.device) + offset[1]).clamp(0, w - 1)
    row = torch.arange(B, device=images.device)[:, None, None]
    pixels = images.movedim((1, 2), (3, 4))  # [B, h, w, K, C]
    return pixels[row, y[:, :, None], x[:, None, :]].movedim((3, 4), (1, 2))
