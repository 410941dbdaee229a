"""The only conversion between stored images and what networks see.

Stored: ``uint8`` [..., h, w, 3] in 0..255. Networks: float [..., 3, h, w] in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_network(images: Tensor) -> Tensor:
    """u8 [..., h, w, 3] -> f32 [..., 3, h, w] in [-1, 1]."""
    if images.dtype != torch.uint8 or images.shape[-1] != 3:
        raise ValueError(f"expected uint8 [..., h, w, 3], got {images.dtype} {tuple(images.shape)}")
    return images.movedim(-1, -3).float().contiguous().div_(127.5).sub_(1.0)


def to_uint8(images: Tensor) -> Tensor:
    """float [..., 3, h, w] in [-1, 1] (values outside are clipped) -> u8 [..., h, w, 3]; inverse of `to_network`."""
    if not images.is_floating_point() or images.shape[-3] != 3:
        raise ValueError(f"expected float [..., 3, h, w], got {images.dtype} {tuple(images.shape)}")
    scaled = images.detach().float().add(1.0).mul_(127.5).round_().clamp_(0, 255)
    return scaled.to(torch.uint8).movedim(-3, -1).contiguous()


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """u8 [n, h, w, 3] -> u8 [n, *size, 3], anti-aliased; ``size`` is (height, width). Stretched to it, not cropped."""
    if images.dtype != torch.uint8 or images.shape[-1] != 3:
        raise ValueError(f"expected uint8 [n, h, w, 3], got {images.dtype} {tuple(images.shape)}")
    if images.shape[1:3] == size:
        return images.contiguous()
    scaled = torch.nn.functional.interpolate(
        images.movedim(-1, 1).float(), size, mode="bilinear", antialias=True, align_corners=False
    )
    return scaled.round_().clamp_(0, 255).to(torch.uint8).movedim(1, -1).contiguous()


def join_views(views: Sequence[Tensor]) -> Tensor:
    """Put views u8 [n, h, w, 3] side by side: u8 [n, largest h, sum of w, 3], black below the lower ones."""
    height = max(view.shape[1] for view in views)
    padded = [torch.nn.functional.pad(view, (0, 0, 0, 0, 0, height - view.shape[1])) for view in views]
    return torch.cat(padded, dim=2)


def draw_level(frames: Tensor, level: Tensor, colour: tuple[int, int, int]) -> Tensor:
    """Draw a bar on black along the top of ``frames`` u8 [F, h, w, 3]; ``level`` f32 [F] in [0, 1] is its length."""
    drawn = frames.clone()
    height, width = max(2, frames.shape[1] // 16), frames.shape[2]
    filled = torch.arange(width) < (level.clamp(0, 1) * width).round()[:, None]
    drawn[:, :height] = torch.where(filled[:, None, :, None], torch.tensor(colour, dtype=torch.uint8), 0).to(drawn)
    return drawn
