"""Checks of shape and dtype, and `Rows`: dataclasses of tensors whose rows can be selected, replaced and joined."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn


def check_shape(name: str, array: Tensor | np.ndarray, shape: tuple[int | None, ...]) -> None:
    """Raise ``ValueError`` unless ``array.shape`` equals ``shape``; ``None`` in ``shape`` matches any size."""
    actual = tuple(array.shape)
    if len(actual) != len(shape) or any(
        want is not None and want != got for want, got in zip(shape, actual, strict=True)
    ):
        raise ValueError(f"{name} has shape {actual}, expected {shape}")


def check_dtype(name: str, array: Tensor | np.ndarray, dtype: Any) -> None:
    """Raise ``ValueError`` unless ``array.dtype`` equals ``dtype``."""
    if array.dtype != dtype:
        raise ValueError(f"{name} has dtype {array.dtype}, expected {dtype}")


def check_frames(name: str, frames: Mapping[str, Tensor], num_rows: int, num_frames: int | None = None) -> None:
    """Raise ``ValueError`` unless ``frames`` is camera name -> u8 [num_rows, n, h, w, 3] with the same n everywhere."""
    if not frames:
        raise ValueError(f"{name} has no camera")
    for camera, images in frames.items():
        num_frames = images.shape[1] if num_frames is None else num_frames
        check_shape(f"{name}[{camera!r}]", images, (num_rows, num_frames, None, None, 3))
        check_dtype(f"{name}[{camera!r}]", images, torch.uint8)


def prefix(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` with ``name.`` before each key."""
    return {f"{name}.{key}": value for key, value in tensors.items()}


def load_trained(module: nn.Module, tensors: dict[str, Tensor], frozen: Set[str]) -> None:
    """Load ``tensors`` into ``module``; parameters named in ``frozen`` may be missing and then keep their values.

    Raises ``RuntimeError`` for other missing names and for unexpected ones.
    """
    missing, unexpected = module.load_state_dict(tensors, strict=False)
    if unexpected or set(missing) - frozen:
        raise RuntimeError(f"missing {sorted(set(missing) - frozen)[:3]}, unexpected {unexpected[:3]}")


def strip(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `prefix`: the entries whose key begins with ``name.``, with that prefix removed."""
    return {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}


class Rows:
    """Row indexing and device moves for a dataclass whose tensor (and tuple) fields start with B."""

    def _map(self, tensor_fn: Any, tuple_fn: Any) -> Self:
        changes: dict[str, Any] = {}
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                changes[f.name] = tensor_fn(value)
            elif isinstance(value, dict):
                changes[f.name] = {k: tensor_fn(v) if isinstance(v, Tensor) else v for k, v in value.items()}
            elif isinstance(value, tuple):
                changes[f.name] = tuple_fn(value)
            elif isinstance(value, Rows):
                changes[f.name] = value._map(tensor_fn, tuple_fn)
        return replace(self, **changes)  # type: ignore[type-var]

    def rows(self, index: Tensor | list[int]) -> Self:
        """The rows at integer ``index`` [N] (repeats allowed), in that order."""
        index = torch.as_tensor(index, dtype=torch.long)
        return self._map(lambda t: t[index.to(t.device)], lambda t: tuple(t[i] for i in index.tolist()))

    def put(self, index: Tensor, values: Self) -> Self:
        """A copy whose rows at ``index`` int64 [N] are replaced by the N rows of ``values``."""

        def put(old: Any, new: Any) -> Any:
            if isinstance(old, Tensor):
                return old.index_copy(0, index.to(old.device), new.to(old))
            if isinstance(old, dict):
                return {key: put(value, new[key]) for key, value in old.items()}
            if isinstance(old, Rows):
                return old.put(index, new)
            if isinstance(old, tuple):
                replaced = dict(zip(index.tolist(), new, strict=True))
                return tuple(replaced.get(i, value) for i, value in enumerate(old))
            return old

        changes = {f.name: put(getattr(self, f.name), getattr(values, f.name)) for f in fields(self)}  # type: ignore[arg-type]
        return replace(self, **changes)  # type: ignore[type-var]

    def to(self, device: torch.device | str) -> Self:
        """The same value with every tensor on ``device``."""
        return self._map(lambda t: t.to(device), lambda t: t)

    @classmethod
    def cat(cls, parts: list[Self]) -> Self:
        """Concatenate along rows; a field that is ``None`` in one part must be ``None`` in all.

        Raises ``ValueError`` if a dict's keys or a field without rows differ between the parts.
        """
        merged: dict[str, Any] = {}
        for f in fields(cls):  # type: ignore[arg-type]
            values = [getattr(p, f.name) for p in parts]
            first = values[0]
            if isinstance(first, Tensor):
                merged[f.name] = torch.cat(values)
            elif isinstance(first, dict):
                if any(v.keys() != first.keys() for v in values):
                    raise ValueError(f"{cls.__name__}.{f.name} has other keys in one of the parts to concatenate")
                merged[f.name] = {k: torch.cat([v[k] for v in values]) for k in first}
            elif isinstance(first, tuple):
                merged[f.name] = sum(values, ())
            elif isinstance(first, Rows):
                merged[f.name] = type(first).cat(values)
            else:
                if any(v != first for v in values):
                    raise ValueError(f"{cls.__name__}.{f.name} differs between the parts to concatenate")
                merged[f.name] = first
        return cls(**merged)
