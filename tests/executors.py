"""An executor for tests that ask a `Simulation` for episodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


class Here:
    """An `Executor` that works in this process, and takes down its jobs."""

    def __init__(self) -> None:
        self.jobs: list[Any] = []

    def map(self, function: Any, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.jobs.append(item)
            yield function(item)
