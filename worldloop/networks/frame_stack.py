"""Encode a few frames together: the first and the present one, or a window of neighbours."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldloop.networks.blocks import fold_patches
from worldloop.networks.embeddings import find_points

GRID = 16  # at least so many patches along the longer side of the image, if it has that many pixels
NUM_KEYPOINTS = 16
CONTRAST = 4.0  # multiplies frames minus background, which have small values


class FrameStackEncoder(nn.Module):
    """Convolutions and keypoints: ``forward(*frames)``, each [B, channels, h, w] -> f32 [B, ``dim``].

    There are ``num_frames`` frames, e.g. the first one of the episode and the one now.
    ``size`` is (h, w), or one number for a square. ``background`` [channels, h, w], the mean frame, is subtracted,
    because most pixels never change. With ``only_keypoints`` the output is only keypoint positions (y, x in [-1, 1]);
    with the features of every cell a network could memorise a few hundred episodes.
    """

    background: Tensor | None

    def __init__(
        self,
        channels: int,
        size: int | tuple[int, int],
        background: Tensor | None = None,
        width: int = 32,
        only_keypoints: bool = False,
        num_frames: int = 2,
        num_layers: int = 2,
        num_keypoints: int = NUM_KEYPOINTS,
    ) -> None:
        super().__init__()
        self.register_buffer("background", None if background is None else background.float())
        height, width_px = (size, size) if isinstance(size, int) else size
        largest = max(1, max(height, width_px) // GRID)
        self.patch = next(p for p in range(largest, 0, -1) if height % p == width_px % p == 0)
        self.stem = nn.Conv2d(num_frames * channels * self.patch**2, width, 1)
        self.fine = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(num_layers))
        self.maps = nn.Conv2d(width, num_keypoints, 3, padding=1)
        self.sharpness = nn.Parameter(torch.tensor([4.0]))  # one dimension: FSDP2 shards no scalars
        self.dim = 2 * num_keypoints
        self.down: nn.Conv2d | None = None
        if not only_keypoints:
            self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
            rows, columns = ((side // self.patch + 1) // 2 for side in (height, width_px))
            self.dim += 2 * width * rows * columns

    def forward(self, *frames: Tensor) -> Tensor:
        if self.background is not None:
            frames = tuple((frame - self.background) * CONTRAST for frame in frames)
        h = self.stem(fold_patches(torch.cat(frames, dim=1), self.patch))
        for layer in self.fine:
            h = h + layer(functional.silu(h))
        h = functional.silu(h)
        points = find_points(self.maps(h), self.sharpness).flatten(1)
        if self.down is None:
            return points
        return torch.cat([functional.silu(self.down(h)).flatten(1).float(), points], dim=1)
