"""Log lines about success: over all tasks, then for each task with the worst one marked."""

from __future__ import annotations

from collections.abc import Mapping

from worldloop.core.statistics import Rate
from worldloop.evaluation.by_task import ByTask, Outcomes, find_worst, pool_outcomes
from worldloop.evaluation.outcomes import LoggedSuccess, OutcomeComparison, PolicySuccess, SwappedSuccess
from worldloop.evaluation.promotion import Verdict


def describe_simulated(success: ByTask[PolicySuccess]) -> list[str]:
    """E.g. ``simulated success 0.500 (0.352-0.648), 20/40``; with several tasks also one line per task."""
    rates = {task: figures.simulated for task, figures in success.tasks.items()}
    return [f"simulated success {success.overall.simulated}", *_describe_tasks(rates)]


def describe_logged(success: ByTask[LoggedSuccess]) -> list[str]:
    """E.g. ``success on the robot 0.500 (0.352-0.648), 20/40``; with several tasks also one line per task."""
    rates = {task: figures.logged for task, figures in success.tasks.items()}
    return [f"success on the robot {success.overall.logged}", *_describe_tasks(rates)]


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


def describe_candidates(success: Mapping[str, Outcomes]) -> str:
    """E.g. ``candidates: policy_of_successes 28/40, policy_after_014 33/40``."""
    rates = {name.rsplit("/", 1)[-1]: Rate.of(pool_outcomes(own, own)) for name, own in success.items()}
    return "candidates: " + ", ".join(f"{name} {rate.k}/{rate.n}" for name, rate in rates.items())


def describe_promotion(verdict: Verdict) -> list[str]:
    """How the candidate fared against the policy, and the decision; with several tasks its gain in each."""
    outcome = verdict.decision + (f", worse at {', '.join(verdict.lost_tasks)}" if verdict.lost_tasks else "")
    duel, name = verdict.duels.overall, verdict.candidate.rsplit("/", 1)[-1]
    gain = duel.gain
    lines = [
        f"candidate {name} against the current policy: {duel.won} states won, {duel.lost} lost of {duel.current.n}, "
        f"gain {gain.gain:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}): {outcome}"
    ]
    if len(verdict.duels.tasks) > 1:
        for task, own in verdict.duels.tasks.items():
            lines.append(f"  {task}: gain {own.gain.gain:+.3f} ({own.gain.low:+.3f} to {own.gain.high:+.3f})")
    return lines


def _describe_tasks(rates: Mapping[str, Rate]) -> list[str]:
    if len(rates) < 2:
        return []
    worst = find_worst({task: rate.rate for task, rate in rates.items()})
    return [f"  {task}: {rate}" + (", the worst" if task == worst else "") for task, rate in rates.items()]
