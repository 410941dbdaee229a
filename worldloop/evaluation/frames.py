"""Frames of many branches, of which only some are in memory at a time."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from worldloop.core.files import disk_errors

BLOCK_BYTES = 2**25  # of frames that are compared at once; as floats and doubles they take up to 24 times as much


class Frames(Protocol):
    """u8 [N, ..., h, w, 3]: a tensor, or frames that are read when rows of them are asked for."""

    @property
    def shape(self) -> Sequence[int]: ...

    def __getitem__(self, key: Any, /) -> Tensor:
        """The rows ``key``: a slice or an index tensor."""
        ...


def split_rows(frames: Frames, most: int) -> tuple[Tensor, ...]:
    """The numbers of all rows of ``frames``, int64, in blocks of at most ``most`` rows and `BLOCK_BYTES`."""
    count, *row = frames.shape
    return torch.arange(count).split(max(1, min(most, BLOCK_BYTES // max(1, math.prod(row)))))


class FrameFile:
    """u8 [N, ...] in a file in ``folder`` that has no name, so that it goes with the process, even if it is killed.

    Raises `WorldloopError` if the disk is full or cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._size = 0
        self._row_shape: tuple[int, ...] = ()
        with disk_errors(f"imagined frames to {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed with the object)

    def append(self, rows: Tensor) -> None:
        """Add ``rows`` u8 [n, ...]."""
        self._row_shape = tuple(rows.shape[1:])
        self._size += len(rows)
        with disk_errors("imagined frames"):
            self._file.seek(0, os.SEEK_END)
            self._file.write(rows.contiguous().numpy().data)
            self._file.flush()

    @property
    def shape(self) -> tuple[int, ...]:
        return (self._size, *self._row_shape)

    def __getitem__(self, key: Tensor | slice) -> Tensor:
        chosen = torch.arange(self._size)[key]
        rows = torch.empty((len(chosen), *self._row_shape), dtype=torch.uint8)
        with disk_errors("imagined frames"):
            for row, number in zip(rows.numpy(), chosen.tolist(), strict=True):
                self._file.seek(number * row.nbytes)
                if self._file.readinto(row.data.cast("B")) != row.nbytes:
                    raise OSError("a file of frames ends too early")
        return rows
