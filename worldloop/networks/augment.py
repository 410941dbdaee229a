"""Image augmentation for learning from few episodes: random shift (pad and crop) and brightness.

The shift is DrQ's (Kostrikov et al. 2020, arXiv:2004.13649): replicate the border, then crop at a random offset.
"""

from __future__ import annotations

import torch
from torch import Tensor


def augment_frames(frames: Tensor, shift_px: int, brightness: float, generator: torch.Generator) -> Tensor:
    """Shift and brighten ``frames`` u8 [B, K, h, w, 3]; one draw per row, shared by its K frames.

    ``shift_px``: the largest offset in each direction; ``brightness``: pixel values are scaled by
    1 + U(-brightness, brightness).
    """
    B, _, h, w, _ = frames.shape
    # Drawn on the generator's device so that a run is the same on every device that computes it.
    offset = torch.randint(-shift_px, shift_px + 1, (2, B, 1), generator=generator, device=generator.device)
    scale = 1 + brightness * (2 * torch.rand(B, generator=generator, device=generator.device) - 1)
    offset, scale = offset.to(frames.device), scale.to(frames.device)
    if shift_px > 0:
        y = (torch.arange(h, device=frames.device) + offset[0]).clamp(0, h - 1)  # [B, h]; clamping replicates
        x = (torch.arange(w, device=frames.device) + offset[1]).clamp(0, w - 1)
        row = torch.arange(B, device=frames.device)[:, None, None]
        frames = frames.movedim(1, 3)[row, y[:, :, None], x[:, None, :]].movedim(3, 1)
    if brightness > 0:
        frames = (frames.float() * scale[:, None, None, None, None]).round().clamp(0, 255).to(torch.uint8)
    return frames
