"""How the gate's verdict reads in the log."""

from __future__ import annotations

from worldloop.evaluation.promotion import Verdict


def describe_verdict(verdict: Verdict) -> list[str]:
    """One line, and with several tasks one for each."""
    overall = verdict.figures.overall
    said = f"promoted {verdict.best.rsplit('/', 1)[-1]}" if verdict.is_promoted else "rolled back"
    if verdict.lost_tasks:
        said += f", worse at {', '.join(verdict.lost_tasks)}"
    lines = [f"candidates {', '.join(map(str, overall.success.values()))} against {overall.current}: {said}"]
    if len(verdict.figures.tasks) > 1:
        lines += [
            f"  {task}: {figures.success[verdict.best]} against {figures.current}"
            for task, figures in verdict.figures.tasks.items()
        ]
    return lines
