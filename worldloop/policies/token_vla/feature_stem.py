"""A policy's image encoder on the features of a frozen backbone; it takes the place of `ImageStem`.

As there, the mean over the demonstrations is subtracted at every position, and the contrast is scaled to one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worldloop.core.tensors import check_shape
from worldloop.networks.embeddings import find_points


class FeatureStem(nn.Module):
    """Feature maps [B, K, C, h, w] -> tokens [B, num_tokens, width]; keypoints give the first.

    The others come from the maps, reduced to ``reduced`` channels and flattened, so that they keep absolute position.
    """

    background: Tensor
    contrast: Tensor

    def __init__(
        self,
        size: tuple[int, int, int],
        num_frames: int,
        reduced: int,
        num_tokens: int,
        num_keypoints: int,
        width: int,
    ) -> None:
        super().__init__()
        self.size, self.num_tokens = size, num_tokens
        channels, height, width_cells = size
        self.maps = nn.Conv2d(num_frames * channels, num_keypoints, 1)
        self.sharpness = nn.Parameter(torch.tensor(4.0))
        self.keypoint_token = nn.Sequential(nn.Linear(2 * num_keypoints, width), nn.SiLU(), nn.Linear(width, width))
        self.reduce = nn.Sequential(nn.Conv2d(num_frames * channels, reduced, 1), nn.SiLU())
        num_features = reduced * height * width_cells
        self.norm = nn.LayerNorm(num_features)
        self.project = nn.Linear(num_features, (num_tokens - 1) * width)
        self.register_buffer("background", torch.zeros(size))
        self.register_buffer("contrast", torch.ones(()))

    @torch.no_grad()
    def fit(self, features: Tensor) -> None:
        """Set background and contrast from ``features`` [N, C, h, w]."""
        check_shape("features", features, (None, *self.size))
        self.background.copy_(features.mean(dim=0))
        self.contrast.copy_((features - self.background.to(features)).square().mean().sqrt().clamp_min(1e-3))

    def forward(self, features: Tensor) -> Tensor:
        check_shape("features", features, (None, None, *self.size))
        maps = ((features - self.background) / self.contrast).flatten(1, 2)
        keypoints = self.keypoint_token(find_points(self.maps(maps), self.sharpness).flatten(1))
        tokens = self.project(self.norm(self.reduce(maps).flatten(1)))
        return torch.cat([keypoints[:, None], tokens.unflatten(1, (self.num_tokens - 1, -1))], dim=1)
