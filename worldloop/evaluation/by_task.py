"""Figures of each task, and over all of them.

A record holds the figures over all tasks at its top, and those of each task under ``tasks`` where there are several.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from worldloop.core.types import Episode

Outcomes = Mapping[str, Sequence[bool]]  # task -> success on each of its states, always in the same order of states


class Figures(Protocol):
    """What a record can hold."""

    def to_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class ByTask[FiguresT: Figures]:
    """``overall`` of all tasks, and ``tasks`` by id; with one task both are the same."""

    overall: FiguresT
    tasks: dict[str, FiguresT]

    def to_record(self) -> dict[str, Any]:
        """Plain values: those over all tasks, and with several tasks ``tasks``."""
        return make_record_by_task(self.overall.to_dict(), {task: f.to_dict() for task, f in self.tasks.items()})


def make_record_by_task(overall: dict[str, Any], tasks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """``overall`` alone with one task, else with ``tasks`` beside it, task by task."""
    return overall if len(tasks) < 2 else overall | {"tasks": tasks}


def measure_by_task[FiguresT: Figures](
    measure: Callable[[Collection[str]], FiguresT], tasks: Collection[str]
) -> ByTask[FiguresT]:
    """``measure(tasks)`` of each of ``tasks`` alone, and of all together."""
    alone = {task: measure((task,)) for task in tasks}
    return ByTask(measure(tasks) if len(alone) > 1 else next(iter(alone.values())), alone)


def group_outcomes(success: Iterable[bool], tasks: Iterable[str]) -> dict[str, tuple[bool, ...]]:
    """Task -> its ``success``, in order; both have one entry per state."""
    grouped: dict[str, list[bool]] = {}
    for solved, task in zip(success, tasks, strict=True):
        grouped.setdefault(task, []).append(bool(solved))
    return {task: tuple(outcomes) for task, outcomes in grouped.items()}


def group_success(episodes: Sequence[Episode]) -> dict[str, tuple[bool, ...]]:
    """Task -> whether each of its episodes was solved, in order."""
    return group_outcomes([episode.is_success for episode in episodes], [episode.meta.task for episode in episodes])


def pool_outcomes(outcomes: Outcomes, tasks: Collection[str]) -> np.ndarray:
    """bool [n] of ``tasks`` together, in order of their ids, which a trip through JSON does not change.

    Raises ``ValueError`` where tasks have different numbers of states: a rate over all would weigh them differently.
    """
    counts = {task: len(outcomes[task]) for task in sorted(tasks)}
    if len(set(counts.values())) > 1:
        raise ValueError(f"every task needs as many states as the others, got {counts}")
    return np.concatenate([np.asarray(outcomes[task], dtype=bool) for task in counts])


def find_worst(values: Mapping[str, float | None]) -> str | None:
    """The task of the lowest value, the first of equals; ``None`` where no task is worse than another."""
    known = {task: value for task, value in values.items() if value is not None}
    return min(known, key=lambda task: known[task]) if len(set(known.values())) > 1 else None
