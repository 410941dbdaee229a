"""Every random number is a function of (seed, iteration, purpose) or of a row's (key, step).

Nothing in worldloop reads global random state, so results depend neither on batching, nor on the number of
workers, nor on where a run was interrupted. Row noise is drawn on the CPU, so that a row has the same noise on
every device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any mix of integers and strings, stable across processes and versions."""
    digest = hashlib.blake2b("\x1f".join(str(p) for p in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def make_generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator seeded from ``parts``."""
    return torch.Generator(device=device).manual_seed(derive_seed(*parts))


def make_row_keys(num_rows: int, *parts: int | str) -> Tensor:
    """int64 [num_rows]: one independent noise key per row."""
    return torch.tensor([derive_seed(*parts, row) for row in range(num_rows)], dtype=torch.long)


def make_row_generators(keys: Tensor, steps: Tensor) -> list[torch.Generator]:
    """A CPU generator for every row; that of row b is seeded from (keys[b], steps[b]) alone."""
    pairs = zip(keys.tolist(), steps.tolist(), strict=True)
    return [torch.Generator().manual_seed(derive_seed(key, step)) for key, step in pairs]


def row_normal(keys: Tensor, steps: Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normal f32 [B, *shape] on ``keys``' device; row b depends on (keys[b], steps[b]) alone."""
    rows = [torch.randn(tuple(shape), generator=g) for g in make_row_generators(keys, steps)]
    return torch.stack(rows).to(keys.device)


def row_uniform(keys: Tensor, steps: Tensor, shape: Sequence[int]) -> Tensor:
    """Uniform [0, 1) f32 [B, *shape] on ``keys``' device; row b depends on (keys[b], steps[b]) alone."""
    rows = [torch.rand(tuple(shape), generator=g) for g in make_row_generators(keys, steps)]
    return torch.stack(rows).to(keys.device)
