"""Building blocks that several leaf packages share.

Shapes: B rows, N tokens, C channels, E condition. On a CPU, attention is plain matrix products: there the backward pass
of `scaled_dot_product_attention` in bfloat16 is several times slower.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


def num_groups(channels: int) -> int:
    """The largest power of two up to 8 that divides ``channels``."""
    return next(g for g in (8, 4, 2, 1) if channels % g == 0)


class FilmResBlock(nn.Module):
    """Residual block of two 3x3 convolutions; the condition scales and shifts in between (FiLM, arXiv:1709.07871)."""

    def __init__(self, channels: int, condition_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(num_groups(channels), channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(num_groups(channels), channels)
        self.film = nn.Linear(condition_dim, 2 * channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """``x`` [B, C, h, w], ``condition`` [B, E] -> [B, C, h, w]."""
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(functional.silu(self.norm1(x)))
        h = self.norm2(h) * (1 + scale) + shift
        return x + self.conv2(functional.silu(h))


def fold_patches(x: Tensor, patch: int) -> Tensor:
    """[B, C, h, w] -> [B, C patch^2, h / patch, w / patch]: `pixel_unshuffle`, several times faster on a CPU."""
    B, C, h, w = x.shape
    cells = x.reshape(B, C, h // patch, patch, w // patch, patch)
    return cells.permute(0, 1, 3, 5, 2, 4).reshape(B, C * patch**2, h // patch, w // patch)


def join_channels(images: Sequence[Tensor]) -> Tensor:
    """Concatenate [B, C_i, h, w] to [B, sum C_i, h, w]; under autocast cast first, so that less memory is copied."""
    device = images[0].device.type
    if torch.is_autocast_enabled(device):
        images = [image.to(torch.get_autocast_dtype(device)) for image in images]
    return torch.cat(list(images), dim=1)


def attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention softmax(query keys^T / sqrt(head_dim)) values; all are [B, heads, T, head_dim]."""
    if query.is_cuda:
        return functional.scaled_dot_product_attention(query, keys, values)
    scores = (query * query.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    return scores.softmax(-1).to(values.dtype) @ values


class Attention(nn.Module):
    """Multi-head self-attention [B, N, C] -> [B, N, C]."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = attend(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(B, N, C))


class TransformerBlock(nn.Module):
    """Pre-norm transformer block [B, N, C] -> [B, N, C]: attention, then an MLP."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_ratio * dim), nn.SiLU(), nn.Linear(mlp_ratio * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class CrossAttention(nn.Module):
    """Multi-head attention of tokens [B, N, C] to others [B, M, C] -> [B, N, C]."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.query, self.keys_values = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, others: Tensor) -> Tensor:
        B, N, C = x.shape
        query = self.query(x).reshape(B, N, self.num_heads, -1).transpose(1, 2)
        keys, values = (
            self.keys_values(others).reshape(B, others.shape[1], 2, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        )
        return self.out(attend(query, keys, values).transpose(1, 2).reshape(B, N, C))


class CrossBlock(nn.Module):
    """`TransformerBlock` whose tokens [B, N, C], after attending to each other, attend to others [B, M, C]."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention, self.cross = Attention(dim, num_heads), CrossAttention(dim, num_heads)
        self.norm3 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_ratio * dim), nn.SiLU(), nn.Linear(mlp_ratio * dim, dim))

    def forward(self, x: Tensor, others: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        x = x + self.cross(self.norm2(x), others)
        return x + self.mlp(self.norm3(x))


class AttentionPool(nn.Module):
    """Pool tokens [B, N, C] -> [B, C] by attention with one learned query."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Parameter(torch.randn(dim) * dim**-0.5)
        self.value = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.norm(tokens)
        weights = (tokens.float() @ self.query).softmax(-1)
        return (weights[:, None].to(tokens.dtype) @ self.value(tokens))[:, 0]


class BoostedLinear(nn.Linear):
    """A linear layer that learns ``gain`` times faster than its neighbours under one Adam.

    Adam moves every stored weight by about the learning rate, whatever its gradient. Here the effective weight is
    ``gain`` times the stored one, as in equalised learning rates (Karras et al. 2018, arXiv:1710.10196).
    """

    def __init__(self, input_dim: int, output_dim: int, gain: float) -> None:
        super().__init__(input_dim, output_dim)
        self.gain = gain
        with torch.no_grad():
            self.weight.div_(gain)
            self.bias.div_(gain)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight * self.gain, self.bias * self.gain)


class PatchProjection(nn.Module):
    """The sum of two maps of every pixel's channels: a linear one, and one with a hidden layer that starts at zero.

    After pixel-unshuffle a pixel stands for a patch of the image. The hidden layer can recognise kinds of patches, such
    as an edge of the arm, which a linear map cannot.
    """

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Conv2d(in_channels, out_channels, 1)
        self.hidden = nn.Conv2d(in_channels, hidden_channels, 1)
        self.out = nn.Conv2d(hidden_channels, out_channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, h, w] -> [B, out_channels, h, w]."""
        return self.linear(x) + self.out(functional.silu(self.hidden(x)))


def make_mlp(input_dim: int, hidden_dim: int, output_dim: int, num_hidden: int = 2, gain: float = 1.0) -> nn.Sequential:
    """An MLP with ``num_hidden`` hidden layers and SiLU between them; ``gain``: see `BoostedLinear`."""
    layers: list[nn.Module] = []
    width = input_dim
    for _ in range(num_hidden):
        layers += [BoostedLinear(width, hidden_dim, gain), nn.SiLU()]
        width = hidden_dim
    return nn.Sequential(*layers, BoostedLinear(width, output_dim, gain))
