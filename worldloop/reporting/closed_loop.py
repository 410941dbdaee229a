"""Show the check in the closed loop: log lines, TensorBoard curves over updates, and the record of an iteration.

The record ``closed_loop`` holds the figures of every checked policy in order (``checkpoints``), and again those of the
improvement's last candidate and of the promoted policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worldloop.core.reporting import Reporter
from worldloop.core.statistics import Estimate
from worldloop.evaluation.by_task import find_worst, make_record_by_task
from worldloop.evaluation.closed_loop import ClosedLoop, average_closed_loops

NAME = "check_closed_loop"  # the stage, also its TensorBoard folder and tags
CURVES = (
    "within_group_auc",
    "auc",
    "start_only_auc",
    "true_negative_rate",
    "own",
    "replay",
    "declared",
    "imagined_minus_simulated",
)


def describe_closed_loop(checkpoint: str, judged: Mapping[str, ClosedLoop]) -> list[str]:
    """Two or three log lines about the policy ``checkpoint`` over all tasks, then with several tasks one for each."""
    mean = average_closed_loops(list(judged.values()))
    name = checkpoint.rsplit("/", 1)[-1]
    lines = [
        f"closed loop, {name}: {_show_alignment(mean)}",
        f"closed loop, {name}: success own {mean.own.value:.2f}, replay {mean.replay.value:.2f}, "
        f"declared {mean.declared.value:.2f}, {mean.n} rollouts from {mean.num_starts} states",
    ]
    if mean.swapped_minus_own:
        costs = ", ".join(f"{part} {loss.value:+.2f}" for part, loss in mean.swapped_minus_own.items())
        lines.append(f"closed loop, {name}: success with a part imagined, minus own: {costs}")
    if len(judged) > 1:
        within = {task: own.within_group_auc for task, own in judged.items()}
        worst = find_worst({task: auc.value if auc else None for task, auc in within.items()})
        lines += [
            f"  {task}: {_show_alignment(own)}" + (", the worst" if task == worst else "")
            for task, own in judged.items()
        ]
    return lines


def _show_alignment(judged: ClosedLoop) -> str:
    """E.g. ``AUC within groups 0.562 (0.518-0.615), pooled 0.600, start only 0.840, true negatives 0.28``."""
    return (
        f"AUC within groups {judged.within_group_auc or '-'}, pooled {_show(judged.auc)}, "
        f"start only {_show(judged.start_only_auc)}, true negatives {_show(judged.true_negative_rate)}"
    )


def _show(figure: Estimate | None) -> str:
    return "-" if figure is None else f"{figure.value:.3f}"


def write_closed_loop(reporter: Reporter, num_updates: int, judged: Mapping[str, ClosedLoop]) -> None:
    """Write the curves at step ``num_updates``: means over tasks, and each of several tasks in its own run."""
    runs = {NAME: average_closed_loops(list(judged.values()))}
    if len(judged) > 1:
        runs |= {f"{NAME}/{task}": own for task, own in judged.items()}
    for run, figures in runs.items():
        with reporter.writer(run, purge_step=num_updates) as writer:
            writer.scalars(num_updates, list_scalars(figures))


def list_scalars(judged: ClosedLoop) -> dict[str, float]:
    """Tag -> value: each of `CURVES` that is defined, with its bounds."""
    values: dict[str, float] = {}
    for name in CURVES:
        figure: Estimate | None = getattr(judged, name)
        if figure is not None:
            values[f"{NAME}/{name}"] = figure.value
            if figure.has_interval:
                values |= {f"{NAME}/{name}_low": figure.low, f"{NAME}/{name}_high": figure.high}
    values |= {f"{NAME}/swapped_minus_own_{part}": loss.value for part, loss in judged.swapped_minus_own.items()}
    return values


def record_closed_loop(
    before: Mapping[str, Any], checkpoint: str, judged: Mapping[str, ClosedLoop], is_candidate: bool
) -> dict[str, Any]:
    """The record after the check of ``checkpoint``; ``before`` is the record so far, {} at first.

    ``is_candidate``: a round made the checkpoint, so it is the last candidate so far.
    """
    mean = average_closed_loops(list(judged.values()))
    figures = make_record_by_task(mean.to_dict(), {task: own.to_dict() for task, own in judged.items()})
    checked = [entry for entry in before.get("checkpoints", []) if entry["checkpoint"] != checkpoint]
    record = dict(before) | {"checkpoints": [*checked, {"checkpoint": checkpoint, **figures}]}
    if is_candidate:
        return record | {"last_candidate": figures}
    return record | {"last_candidate": None, "last_candidate_reason": "no round has made a candidate"}


def record_promoted(before: Mapping[str, Any], policy: str) -> dict[str, Any]:
    """The record with the figures of the ``policy`` that is in place after promotion."""
    for entry in before["checkpoints"]:
        if entry["checkpoint"] == policy:
            return dict(before) | {"promoted": {name: own for name, own in entry.items() if name != "checkpoint"}}
    reason = "the policy of an earlier iteration stays; it was not checked in this world model"
    return dict(before) | {"promoted": None, "promoted_reason": reason}
