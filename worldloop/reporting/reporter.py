"""Shows a stage: progress, log lines and TensorBoard, only on the main rank."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from worldloop.core.reporting import SilentWriter, Writer
from worldloop.reporting.progress import Display
from worldloop.reporting.tensorboard import open_writer


class _Bar:
    def __init__(self, display: Display) -> None:
        self._display = display

    def advance(self, count: int = 1, **figures: float) -> None:
        self._display.advance(count, figures)


class StageReporter:
    """The `Reporter` of the stage called ``stage``; with ``writes`` false it writes no TensorBoard events."""

    def __init__(self, stage: str, display: Display, log_dir: Path, writes: bool) -> None:
        self.stage, self.display, self.log_dir, self.writes = stage, display, log_dir, writes

    @contextmanager
    def progress(self, total: int, unit: str) -> Iterator[_Bar]:
        self.display.open(self.stage, total, unit)
        try:
            yield _Bar(self.display)
        finally:
            self.display.close()

    def writer(self, name: str, purge_step: int) -> AbstractContextManager[Writer]:
        if not self.writes:
            return nullcontext(SilentWriter())
        return open_writer(self.log_dir / name, purge_step)

    def log(self, line: str) -> None:
        self.display.log(f"  {line}")
