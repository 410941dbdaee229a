"""Figures of each task and over all tasks.

A record holds the figures over all tasks at its top level. With several tasks it holds those of each under ``tasks``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from worldloop.core.types import Episode
from worldloop.rollout.jobs import EpisodeSummary

Outcomes = Mapping[str, Sequence[bool]]  # task -> success on each of its states, in a fixed order of states


class Figures(Protocol):
    """Figures that a record can hold."""

    def to_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class ByTask[FiguresT: Figures]:
    """Figures over all tasks (``overall``) and of each task id (``tasks``); with one task both are the same."""

    overall: FiguresT
    tasks: dict[str, FiguresT]

    def to_record(self) -> dict[str, Any]:
        """Plain values: the figures over all tasks, and with several tasks also ``tasks``."""
        return make_record_by_task(self.overall.to_dict(), {task: f.to_dict() for task, f in self.tasks.items()})


def make_record_by_task(overall: dict[str, Any], tasks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """``overall`` with one task; with several tasks ``overall`` and the entry ``tasks``."""
    return overall if len(tasks) < 2 else overall | {"tasks": tasks}


def measure_by_task[FiguresT: Figures](
    measure: Callable[[Collection[str]], FiguresT], tasks: Collection[str]
) -> ByTask[FiguresT]:
    """Call ``measure`` for each of ``tasks`` alone and for all together."""
    alone = {task: measure((task,)) for task in tasks}
    return ByTask(measure(tasks) if len(alone) > 1 else next(iter(alone.values())), alone)


def group_outcomes(success: Iterable[bool], tasks: Iterable[str]) -> dict[str, tuple[bool, ...]]:
    """Task -> its outcomes in order; ``success`` and ``tasks`` have one entry per state."""
    grouped: dict[str, list[bool]] = {}
    for solved, task in zip(success, tasks, strict=True):
        grouped.setdefault(task, []).append(bool(solved))
    return {task: tuple(outcomes) for task, outcomes in grouped.items()}


def group_success(episodes: Sequence[Episode | EpisodeSummary]) -> dict[str, tuple[bool, ...]]:
    """Task -> whether each of its episodes was solved, in order."""
    return group_outcomes([episode.is_success for episode in episodes], [episode.meta.task for episode in episodes])


def pool_outcomes(outcomes: Outcomes, tasks: Collection[str]) -> np.ndarray:
    """The outcomes of all ``tasks``, bool [n], in order of sorted ids, whatever the order of the mapping.

    Raises ``ValueError`` if tasks have different numbers of states: a rate over all would weigh them differently.
    """
    counts = {task: len(outcomes[task]) for task in sorted(tasks)}
    if len(set(counts.values())) > 1:
        raise ValueError(f"every task needs as many states as the others, got {counts}")
    return np.concatenate([np.asarray(outcomes[task], dtype=bool) for task in counts])


def find_worst(values: Mapping[str, float | None]) -> str | None:
    """The task with the lowest value, the first one if equal; ``None`` if all values are equal."""
    known = {task: value for task, value in values.items() if value is not None}
    return min(known, key=lambda task: known[task]) if len(set(known.values())) > 1 else None
