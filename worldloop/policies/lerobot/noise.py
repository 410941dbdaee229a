"""Random numbers of a foreign policy, drawn row by row from noise keys.

LeRobot's policies draw their noise from torch's global generator, each in its own place. Within `draw_by_row` torch's
functions take the numbers of row b from a generator that is seeded from the row's key and step. So a sample depends
neither on the batch nor on what was drawn before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from worldloop.core.errors import WorldloopError
from worldloop.core.randomness import make_row_generators


@contextmanager
def draw_by_row(noise_key: Tensor | None, env_step: Tensor, temperature: float, device: torch.device) -> Iterator[None]:
    """Within this context every random tensor of B rows is a function of each row's (noise_key, env_step), int64 [B].

    Standard deviations are multiplied by ``temperature``. Without keys normal numbers are their mean, and uniform ones
    the middle. Raises `WorldloopError` if something is drawn that has no rows, or that cannot be seeded by row.
    """
    generators = None if noise_key is None else make_row_generators(noise_key, env_step)
    before = _read_global_state(device)
    with _RowNoise(generators, len(env_step), temperature):
        yield
    if any(not torch.equal(old, new) for old, new in zip(before, _read_global_state(device), strict=True)):
        raise WorldloopError(
            "the policy draws random numbers in a way that cannot be seeded by row: it cannot act here"
        )


def _read_global_state(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


class _RowNoise(TorchFunctionMode):
    """See `draw_by_row`; intercepts torch's functions that draw normal and uniform numbers."""

    def __init__(self, generators: Sequence[torch.Generator] | None, num_rows: int, temperature: float) -> None:
        super().__init__()
        self.generators, self.num_rows, self.temperature = generators, num_rows, temperature

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.randn, torch.rand):
            drawn = self._draw(_read_size(args, kwargs), is_normal=func is torch.randn)
            return _place(drawn, kwargs.get("dtype") or torch.get_default_dtype(), kwargs.get("device"))
        if func in (torch.randn_like, torch.rand_like):
            like: Tensor = args[0]
            drawn = self._draw(like.shape, is_normal=func is torch.randn_like)
            return _place(drawn, kwargs.get("dtype") or like.dtype, kwargs.get("device") or like.device)
        if func is torch.normal:
            return self._draw_normal(*args, **kwargs)
        if func is torch.Tensor.normal_:
            mean, std = args[1:] or (kwargs.get("mean", 0.0), kwargs.get("std", 1.0))
            return args[0].copy_(self._draw(args[0].shape, is_normal=True) * std + mean)
        if func is torch.Tensor.uniform_:
            low, high = args[1:] or (kwargs.get("from", 0.0), kwargs.get("to", 1.0))
            return args[0].copy_(low + (high - low) * self._draw(args[0].shape, is_normal=False))
        return func(*args, **kwargs)

    def _draw_normal(self, mean: Any, std: Any = 1.0, size: Any = None, **kwargs: Any) -> Tensor:
        """`torch.normal` in its three forms."""
        like = next((value for value in (mean, std) if isinstance(value, Tensor)), None)
        if like is None:
            drawn = self._draw(size, is_normal=True)
            return _place(drawn, kwargs.get("dtype") or torch.get_default_dtype(), kwargs.get("device")) * std + mean
        shape = torch.broadcast_shapes(*(value.shape for value in (mean, std) if isinstance(value, Tensor)))
        return _place(self._draw(shape, is_normal=True), like.dtype, like.device) * std + mean

    def _draw(self, shape: Sequence[int], is_normal: bool) -> Tensor:
        """f32 ``shape``, on the CPU, times the temperature if normal."""
        if not shape or shape[0] != self.num_rows:
            raise WorldloopError(
                f"the policy draws random numbers of shape {tuple(shape)} for {self.num_rows} rows: they cannot be "
                "seeded by row, and it cannot act here"
            )
        if self.generators is None:
            return torch.full(tuple(shape), 0.0 if is_normal else 0.5)
        draw = torch.randn if is_normal else torch.rand
        drawn = torch.stack([draw(tuple(shape[1:]), generator=generator) for generator in self.generators])
        return self.temperature * drawn if is_normal else drawn


def _read_size(args: Any, kwargs: Any) -> Sequence[int]:
    """The size that `torch.randn` or `torch.rand` was called with."""
    size: Any = kwargs.get("size", args)
    return size[0] if len(size) == 1 and not isinstance(size[0], int) else size  # type: ignore[no-any-return]


def _place(drawn: Tensor, dtype: torch.dtype, device: Any) -> Tensor:
    return drawn.to(dtype=dtype, device=device if device is not None else "cpu")
