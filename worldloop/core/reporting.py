"""How a stage shows itself: progress, log lines and TensorBoard, as the code below `worldloop.reporting` sees them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
from torch import Tensor


class Progress(Protocol):
    """A progress bar; ``advance`` raises ``KeyboardInterrupt`` after the user has interrupted the run."""

    def advance(self, count: int = 1, **figures: float) -> None: ...


class Writer(Protocol):
    """Writes the TensorBoard events of one stage, from the ``purge_step`` of `Reporter.writer` on."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def judgement(self, tag: str, step: int, probability: np.ndarray, is_success: np.ndarray) -> None:
        """Precision-recall curve and reliability diagram of ``probability`` f [n] against ``is_success`` bool [n]."""
        ...

    def video(self, tag: str, step: int, frames: Tensor, fps: float) -> None:
        """``frames`` u8 [F, h, w, 3]."""
        ...


class Reporter(Protocol):
    """Shows a stage to the user: progress, log lines, TensorBoard. Only the main rank shows or writes anything."""

    def progress(self, total: int, unit: str) -> AbstractContextManager[Progress]: ...

    def writer(self, name: str, purge_step: int) -> AbstractContextManager[Writer]:
        """A writer to the folder ``name``; earlier events from ``purge_step`` on are dropped."""
        ...

    def log(self, line: str) -> None: ...


class SilentWriter:
    """A `Writer` that writes nothing."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def judgement(self, tag: str, step: int, probability: np.ndarray, is_success: np.ndarray) -> None:
        pass

    def video(self, tag: str, step: int, frames: Tensor, fps: float) -> None:
        pass
