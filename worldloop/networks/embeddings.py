"""Embeddings of time and of points on an image."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from worldloop.networks.blocks import make_mlp


def embed_time(t: Tensor, dim: int, max_period: float = 1000.0) -> Tensor:
    """Sine and cosine embedding f32 [B, dim] of ``t`` [B] in [0, 1], dim even (Vaswani et al., arXiv:1706.03762)."""
    half = dim // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=t.device) / half)
    angles = t.float()[:, None] * max_period * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class PoseMaps(nn.Module):
    """Draw local coordinate systems, placed by a vector, as maps: ``forward([B, D]) -> [B, channels, height, width]``.

    A small network maps the vector (a robot's proprio) to ``num_poses`` affine maps of image coordinates, which are -1
    to 1 from edge to edge. Each affine map draws a Gaussian window, and sines and cosines of its two local coordinates
    multiplied by the window. ``FREQUENCIES`` are in half periods per unit (Fourier features, Tancik et al. 2020,
    arXiv:2006.10739). In its own local coordinates a rigid part looks the same wherever it is, so a convolution can
    paint it. A vector broadcast over the image would not tell a pixel where in the part it lies. The poses are learned
    from the image loss.
    """

    grid: Tensor
    FREQUENCIES = (1, 2, 4)  # octaves: each follows from the one before by the double-angle formulas
    GAIN = 3.0  # poses must become exact long before the image network does

    def __init__(self, input_dim: int, num_poses: int, size: int | tuple[int, int], hidden_dim: int = 128) -> None:
        """``size``: one number for square maps, or (height, width)."""
        super().__init__()
        self.size = (size, size) if isinstance(size, int) else size
        self.num_poses = num_poses
        self.channels = num_poses * (1 + 4 * len(self.FREQUENCIES))
        self.poses = make_mlp(input_dim, hidden_dim, 6 * num_poses, gain=self.GAIN)
        self.log_width = nn.Parameter(torch.full((num_poses, 1), math.log(0.4)))
        y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in self.size), indexing="ij")
        self.register_buffer("grid", torch.stack([x, y, torch.ones_like(x)]).flatten(1), persistent=False)
        affine = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).repeat(num_poses, 1, 1)
        affine[:, :, 2] = torch.rand(num_poses, 2) * 1.2 - 0.6  # windows all over the image
        with torch.no_grad():
            last = self.poses[-1]
            last.weight.mul_(0.1)  # type: ignore[operator]
            last.bias.copy_(affine.flatten() / self.GAIN)  # type: ignore[operator]

    def forward(self, vector: Tensor) -> Tensor:
        with torch.autocast(vector.device.type, enabled=False):  # bfloat16 would blur poses by a tenth of a pixel
            return self._draw(self.poses(vector.float()).reshape(len(vector), 2 * self.num_poses, 3))

    def _draw(self, affine: Tensor) -> Tensor:
        local = (affine @ self.grid).unflatten(1, (self.num_poses, 2))  # [B, num_poses, (u, v), pixels]
        window = torch.exp(-local.square().sum(2, keepdim=True) / (2 * self.log_width.exp().square()[:, None]))
        sine, cosine = (local * math.pi).sin(), (local * math.pi).cos()
        waves = [sine, cosine]
        for _ in self.FREQUENCIES[1:]:
            sine, cosine = 2 * sine * cosine, 1 - 2 * sine.square()
            waves += [sine, cosine]
        maps = torch.cat([window, *(wave * window for wave in waves)], dim=2)
        return maps.reshape(len(affine), self.channels, *self.size)


def find_points(maps: Tensor, sharpness: Tensor | float) -> Tensor:
    """The expected position (y, x) of each feature map, f32 [B, N, 2] in [-1, 1], by spatial softmax.

    ``maps`` [B, N, h, w] are first standardised over the image. Source: Levine et al. 2016, arXiv:1504.00702.
    """
    height, width = maps.shape[-2:]
    flat = maps.flatten(2).float()
    flat = (flat - flat.mean(dim=-1, keepdim=True)) / (flat.std(dim=-1, keepdim=True) + 1e-4)
    weight = torch.softmax(sharpness * flat, dim=-1).unflatten(2, (height, width))
    y, x = (torch.linspace(-1, 1, n, device=maps.device) for n in (height, width))
    return torch.stack([(weight.sum(3) * y).sum(-1), (weight.sum(2) * x).sum(-1)], dim=-1)
