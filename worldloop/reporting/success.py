"""Log lines about success: over all tasks, then for each task with the worst one marked."""

from __future__ import annotations

from collections.abc import Mapping

from worldloop.core.statistics import Rate
from worldloop.evaluation.by_task import ByTask, find_worst
from worldloop.evaluation.outcomes import OutcomeComparison, PolicySuccess, SwappedSuccess
from worldloop.evaluation.promotion import Verdict


def describe_simulated(success: ByTask[PolicySuccess]) -> list[str]:
    """E.g. ``simulated success 0.500 (0.352-0.648), 20/40``; with several tasks also one line per task."""
    rates = {task: figures.simulated for task, figures in success.tasks.items()}
    return [f"simulated success {success.overall.simulated}", *_describe_tasks(rates)]


def describe_imagined(comparison: ByTask[OutcomeComparison]) -> list[str]:
    """E.g. ``imagined success  0.500 (0.352-0.648), 20/40``; with several tasks also one line per task."""
    rates = {task: figures.imagined for task, figures in comparison.tasks.items()}
    return [f"imagined success  {comparison.overall.imagined}", *_describe_tasks(rates)]


def describe_swapped(swapped: ByTask[SwappedSuccess]) -> list[str]:
    """E.g. ``told to do another task: 0.050 (0.014-0.165), 2/40``, then one line per task."""
    rates = {task: figures.swapped for task, figures in swapped.tasks.items()}
    return [
        f"told to do another task: {swapped.overall.swapped}",
        *(f"  {task}: {rate}" for task, rate in rates.items()),
    ]


def describe_promotion(verdict: Verdict) -> list[str]:
    """Success of candidates and policy, and whether the best is promoted; with several tasks its gain in each."""
    outcome = f"promoted {verdict.best.rsplit('/', 1)[-1]}" if verdict.is_promoted else "rolled back"
    if verdict.lost_tasks:
        outcome += f", worse at {', '.join(verdict.lost_tasks)}"
    figures = verdict.figures.overall
    lines = [f"candidates {', '.join(map(str, figures.success.values()))} against {figures.current}: {outcome}"]
    if len(verdict.figures.tasks) > 1:
        for task, own in verdict.figures.tasks.items():
            gain = own.gain
            lines.append(f"  {task}: gain {gain.gain:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})")
    return lines


def _describe_tasks(rates: Mapping[str, Rate]) -> list[str]:
    if len(rates) < 2:
        return []
    worst = find_worst({task: rate.rate for task, rate in rates.items()})
    return [f"  {task}: {rate}" + (", the worst" if task == worst else "") for task, rate in rates.items()]
