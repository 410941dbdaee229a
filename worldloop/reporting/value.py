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
    """TensorBoard: the curves ``check_value/auc_at_50`` over iterations, each source in its own run."""
    for source, judgement in judged.items():
        values: dict[str, float] = {}
        for share, figure in judgement.auc.items():
            if figure is not None:
                tag = f"{NAME}/auc_at_{100 * share:.0f}"
                values[tag] = figure.value
                if figure.has_interval:
                    values |= {f"{tag}_low": figure.low, f"{tag}_high": figure.high}
        with reporter.writer(f"{NAME}/{source}", purge_step=iteration) as writer:
            writer.scalars(iteration, values)
