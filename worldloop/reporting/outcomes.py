"""How success in the simulator and in imagination reads in the log: over all tasks, then in each of several."""

from __future__ import annotations

from collections.abc import Mapping

from worldloop.core.statistics import Rate
from worldloop.evaluation.by_task import ByTask, find_worst
from worldloop.evaluation.outcomes import OutcomeComparison, PolicySuccess, SwappedSuccess


def describe_success(success: ByTask[PolicySuccess]) -> str:
    return f"simulated success {success.overall.simulated}" + _list_tasks(
        {task: figures.simulated for task, figures in success.tasks.items()}
    )


def describe_comparison(comparison: ByTask[OutcomeComparison]) -> str:
    return f"imagined success  {comparison.overall.imagined}" + _list_tasks(
        {task: figures.imagined for task, figures in comparison.tasks.items()}
    )


def describe_swapped(swapped: ByTask[SwappedSuccess]) -> str:
    return f"told to do another task {swapped.overall.swapped}" + _list_tasks(
        {task: figures.swapped for task, figures in swapped.tasks.items()}
    )


def _list_tasks(rates: Mapping[str, Rate]) -> str:
    """E.g. ``; PushCube-v1 0.750, PullCube-v1 0.250 (the worst)``; nothing for one task."""
    if len(rates) < 2:
        return ""
    worst = find_worst({task: rate.rate for task, rate in rates.items()})
    named = [f"{task} {rate.rate:.3f}" + (" (the worst)" if task == worst else "") for task, rate in rates.items()]
    return "; " + ", ".join(named)
