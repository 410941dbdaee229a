"""Embeddings of numbers: time, and points on an image."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def embed_time(t: Tensor, dim: int, max_period: float = 1000.0) -> Tensor:
    """Sines and cosines f32 [B, dim] of ``t`` [B] in [0, 1] (Vaswani et al. 2017, arXiv:1706.03762); dim is even."""
    half = dim // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=t.device) / half)
    angles = t.float()[:, None] * max_period * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class KeypointMaps(nn.Module):
    """Where on the image a vector points to: ``forward(vector [B, D]) -> [B, num_points, size, size]`` in [0, 1].

    A small network maps the vector (a robot's proprio) to points, drawn as Gaussian bumps. It tells a convolution
    where the arm will be, which a globally broadcast vector does not. The camera is learned from the video loss.
    """

    def __init__(self, input_dim: int, num_points: int, size: int, hidden_dim: int = 128) -> None:
        super().__init__()
        self.num_points = num_points
        self.points = nn.Sequential(nn.Linear(input_dim, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, 2 * num_points))
        self.log_width = nn.Parameter(torch.full((num_points,), math.log(0.2)))
        self.register_buffer("axis", torch.linspace(-1, 1, size), persistent=False)

    def forward(self, vector: Tensor) -> Tensor:
        points = self.points(vector).float().reshape(len(vector), self.num_points, 2, 1)
        squared = (self.axis - points).square() / (2 * self.log_width.exp().square()[:, None, None] + 1e-6)
        bumps = torch.exp(-squared)  # [B, num_points, (x, y), size]
        return bumps[:, :, 1, :, None] * bumps[:, :, 0, None, :]


def find_points(maps: Tensor, sharpness: Tensor | float) -> Tensor:
    """The expected place of each feature map, f32 [B, N, 2] as (y, x) in [-1, 1], by spatial softmax.

    ``maps`` [B, N, h, w] are standardised over the image first; the inverse of `KeypointMaps` (Levine et al. 2016,
    arXiv:1504.00702).
    """
    height, width = maps.shape[-2:]
    flat = maps.flatten(2).float()
    flat = (flat - flat.mean(dim=-1, keepdim=True)) / (flat.std(dim=-1, keepdim=True) + 1e-4)
    weight = torch.softmax(sharpness * flat, dim=-1).unflatten(2, (height, width))
    y, x = (torch.linspace(-1, 1, n, device=maps.device) for n in (height, width))
    return torch.stack([(weight.sum(3) * y).sum(-1), (weight.sum(2) * x).sum(-1)], dim=-1)
