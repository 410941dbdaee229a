"""A `Reporter` that takes down what it is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from worldloop.core.reporting import SilentWriter


@dataclass
class Bar:
    """A progress bar; ``figures`` of every advance. Ctrl-C comes with the advance number ``cut``, 0: never."""

    total: int
    unit: str
    cut: int = 0
    figures: list[dict[str, float]] = field(default_factory=list)
    count: int = 0

    def advance(self, count: int = 1, **figures: float) -> None:
        self.figures.append(figures)
        self.count += count
        if len(self.figures) == self.cut:
            raise KeyboardInterrupt


class RecordingWriter(SilentWriter):
    """``scalars`` by step; what lies from ``purge_step`` on is dropped, as in TensorBoard."""

    def __init__(self, points: dict[int, dict[str, float]], purge_step: int) -> None:
        self.points = points
        for step in [step for step in points if step >= purge_step]:
            del points[step]

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.points[step] = dict(values)


class RecordingReporter:
    """- ``bars`` in the order in which they were opened; ``lines`` that were logged
    - ``curves``: folder of the writer -> step -> tag -> value
    - ``cut``: Ctrl-C at that advance of a bar, 0: never
    """

    def __init__(self, cut: int = 0) -> None:
        self.cut = cut
        self.bars: list[Bar] = []
        self.lines: list[str] = []
        self.curves: dict[str, dict[int, dict[str, float]]] = {}

    @contextmanager
    def progress(self, total: int, unit: str) -> Iterator[Bar]:
        self.bars.append(Bar(total, unit, self.cut))
        yield self.bars[-1]

    @contextmanager
    def writer(self, name: str, purge_step: int) -> Iterator[RecordingWriter]:
        yield RecordingWriter(self.curves.setdefault(name, {}), purge_step)

    def log(self, line: str) -> None:
        self.lines.append(line)
