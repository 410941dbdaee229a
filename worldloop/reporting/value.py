"""Show the check of the critics: log lines and TensorBoard curves over iterations."""

from __future__ import annotations

from collections.abc import Mapping

from worldloop.core.interfaces import Reporter
from worldloop.core.statistics import Estimate
from worldloop.evaluation.episode_values import CriticJudgement

NAME = "check_value"  # the stage, also its TensorBoard folder and tags


def describe_critics(judged: Mapping[str, CriticJudgement]) -> list[str]:
    """One log line per source, e.g. ``on_policy: AUC of the value 0.61 0.74 0.88 at 25, 50, 75 % of the time``."""
    return [
        f"{source}: AUC of the value {_show(j.auc)} at {', '.join(f'{100 * share:.0f}' for share in j.auc)} % of the "
        f"time, {j.num_episodes} episodes"
        for source, j in judged.items()
    ]


def _show(figures: Mapping[float, Estimate | None]) -> str:
    return " ".join("-" if figure is None else f"{figure.value:.3f}" for figure in figures.values())


def write_critics(reporter: Reporter, iteration: int, judged: Mapping[str, CriticJudgement]) -> None:
    """TensorBoard: ``check_value/SOURCE/auc_at_50`` over iterations."""
    values = {
        f"{NAME}/{source}/auc_at_{100 * share:.0f}": figure.value
        for source, judgement in judged.items()
        for share, figure in judgement.auc.items()
        if figure is not None
    }
    with reporter.writer(NAME, purge_step=iteration) as writer:
        writer.scalars(iteration, values)
