"""Show the check of a world model: log lines, TensorBoard scalars, curves and videos, and the card's summary.

Each task has its own check (task -> `WorldModelCheck`). The mean over tasks comes first, then each task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldloop.core.images import draw_level, join_views
from worldloop.core.reporting import Reporter, Writer
from worldloop.core.statistics import Estimate
from worldloop.core.success import Calibration
from worldloop.core.types import Outcome
from worldloop.evaluation.alignment import Alignment
from worldloop.evaluation.average import average_checks
from worldloop.evaluation.by_task import find_worst, make_record_by_task
from worldloop.evaluation.judgement import Judgement, OverallFidelity, WorldModelCheck
from worldloop.evaluation.open_loop import ImaginedEpisodes

Checks = Mapping[str, WorldModelCheck]  # task -> its check
Videos = Mapping[str, Mapping[str, "tuple[Video, ...]"]]  # task -> source -> its videos

NAME = "check_world_model"  # the stage, also its TensorBoard folder and tags
GREEN, RED = (60, 200, 90), (210, 70, 60)
ALWAYS_REPORTED = ("scripted", "on_policy")  # sources that are null, with a reason, if they have no episodes


@dataclass(frozen=True)
class Video:
    """A held-out episode to show: its ``row`` in its source, its true outcome and its imagined success probability.

    Example: ``Video("worst_1", row=3, episode=40, outcome="failure", imagined_success=0.91)``.
    """

    name: str
    row: int
    episode: int
    outcome: Outcome
    imagined_success: float

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def describe_checks(checks: Checks) -> list[str]:
    """Log lines: two per source, with several tasks one per task, and why a task is not trusted."""
    lines = []
    for source, judgement in average_checks(checks).judgements.items():
        alignment, others = describe_alignment(judgement.alignment), describe_judgement(judgement)
        lines += [f"{source}: {alignment}", f"{source}: {others}"]
        lines += _describe_tasks(source, checks) if len(checks) > 1 else []
    for task, check in checks.items():
        if not check.trust.is_trusted:
            which = f" for {task}" if len(checks) > 1 else ""
            lines.append(f"not good enough{which}: {check.trust.reason}")
    return lines


def _describe_tasks(source: str, checks: Checks) -> list[str]:
    """One log line per task, e.g. ``on_policy, PullCube-v1: auc 0.843 (0.710-0.932), psnr_db 24.1, the worst``."""
    judged = {task: check.judgements[source] for task, check in checks.items() if source in check.judgements}
    auc = {task: judgement.alignment.auc for task, judgement in judged.items()}
    worst = find_worst({task: figure.value if figure else None for task, figure in auc.items()})
    lines = []
    for task, judgement in judged.items():
        psnr = judgement.fidelity.psnr_db.mean
        figures = f"auc {judgement.alignment.auc or '-'}" + ("" if psnr is None else f", psnr_db {psnr.value:.1f}")
        lines.append(f"{source}, {task}: {figures}" + (", the worst" if task == worst else ""))
    return lines


def describe_alignment(alignment: Alignment) -> str:
    """One log line, e.g. ``auc 0.943 (0.910-0.972), from actions alone 0.871 (0.802-0.930), balanced ..., n 50``."""
    figures = {"auc": alignment.auc}
    if alignment.actions_only_auc is not None:
        figures["from actions alone"] = alignment.actions_only_auc
    figures["balanced accuracy"] = alignment.balanced_accuracy
    return ", ".join([*(f"{name} {figure or '-'}" for name, figure in figures.items()), f"n {alignment.n}"])


def describe_judgement(judgement: Judgement) -> str:
    """One log line, e.g. ``psnr_db 25.1, moving_psnr_db 18.2, object_error_cm at the end 2.1 (floor 0.4)``."""
    metrics, parts = judgement.metrics, []
    for name in ("psnr_db", "moving_psnr_db", "moving_psnr_db_first_frame"):
        if (mean := metrics[name].mean) is not None:
            parts.append(f"{name} {mean.value:.1f}")
    for landmark, error in judgement.state_errors.items():
        imagined, floor = error.imagined.end, error.floor.end
        if imagined is not None and floor is not None:
            parts.append(f"{landmark}_error_cm at the end {imagined.value:.1f} (floor {floor.value:.1f})")
    return ", ".join(parts)


def list_scalars(judgement: Judgement) -> dict[str, float]:
    """Name -> headline figure of one source: image metrics, state errors at the end, AUC by horizon, and more."""
    figures: dict[str, Estimate | None] = {name: m.mean for name, m in judgement.fidelity.metrics.items()}
    for landmark, error in judgement.state_errors.items():
        figures |= {name: metric.end for name, metric in error.name_metrics(landmark).items()}
    figures["auc_from_actions_alone"] = judgement.alignment.actions_only_auc
    for horizon in judgement.horizons:
        figures[f"auc_episodes_{horizon.chunks}_chunks"] = horizon.episodes_auc
        figures[f"auc_branches_{horizon.chunks}_chunks"] = horizon.branches.auc
    if (uncertainty := judgement.uncertainty) is not None:
        figures["uncertainty_bias_db"] = uncertainty.bias_db
        figures["uncertainty_rank_correlation"] = uncertainty.rank_correlation
    if (visual := judgement.visual_alignment) is not None:
        figures["visual_alignment_imagined"] = visual.imagined.balanced_accuracy
        figures["visual_alignment_simulated"] = visual.simulated.balanced_accuracy
    return {name: f.value for name, f in figures.items() if f is not None and not np.isnan(f.value)}


def summarise_for_card(checks: Checks) -> dict[str, Any]:
    """The summary by source for a checkpoint's card; with several tasks, ``tasks`` has the same for each."""
    tasks = {task: _summarise(check.judgements) for task, check in checks.items()}
    return make_record_by_task(_summarise(average_checks(checks).judgements), tasks)


def _summarise(judgements: Mapping[str, Judgement]) -> dict[str, Any]:
    chosen = ("n", "auc", "actions_only_auc", "balanced_accuracy", "expected_calibration_error")
    summary = {}
    for name, judgement in judgements.items():
        alignment = judgement.alignment.to_dict()
        summary[name] = {figure: alignment[figure] for figure in chosen} | list_scalars(judgement)
    return summary


def make_record(checks: Checks, videos: Videos) -> dict[str, Any]:
    """The record of the checks and ``videos`` for results.json."""
    tasks = {}
    for task, check in checks.items():
        tasks[task] = _record(check.judgements, check.fidelity)
        for source, shown in videos[task].items():
            tasks[task]["world_model_check"][source]["videos"] = [video.to_dict() for video in shown]
    if len(tasks) == 1:
        return next(iter(tasks.values()))
    average = average_checks(checks)
    return make_record_by_task(_record(average.judgements, average.fidelity), tasks)


def _record(judgements: Mapping[str, Judgement], fidelity: OverallFidelity) -> dict[str, Any]:
    missing: dict[str, Any] = {}
    for name in ALWAYS_REPORTED:
        if name not in judgements:
            missing |= {name: None, f"{name}_reason": "no validation episodes of this source"}
    alignment = {name: judgement.alignment.to_dict() for name, judgement in judgements.items()}
    figures = {name: judgement.to_dict() for name, judgement in judgements.items()}
    record = {"reward_alignment": missing | alignment, "world_model_check": missing | figures}
    return record | fidelity.to_dict()


def choose_all_videos(checks: Checks, num_videos: int) -> dict[str, dict[str, tuple[Video, ...]]]:
    """`choose_videos` of every task and source."""
    return {
        task: {
            source: choose_videos(episodes, check.calibration, num_videos)
            for source, episodes in check.imagined.items()
        }
        for task, check in checks.items()
    }


def choose_videos(episodes: ImaginedEpisodes, calibration: Calibration, num_videos: int) -> tuple[Video, ...]:
    """Choose the episodes to show: half disagree most with the simulated outcome, half agree best.

    The half that agrees alternates successes and failures, as far as there are both.
    """
    probability = calibration.probability(torch.from_numpy(episodes.logit)).numpy()
    order = np.argsort(-np.abs(probability - episodes.is_success), kind="stable")
    worst = order[: (num_videos + 1) // 2]
    right = [row for row in order[::-1] if row not in worst]
    by_outcome = [[row for row in right if episodes.is_success[row] == outcome] for outcome in (True, False)]
    best = [row for pair in zip_longest(*by_outcome) for row in pair if row is not None]
    chosen = [(f"worst_{n}", row) for n, row in enumerate(worst, 1)]
    chosen += [(f"best_{n}", row) for n, row in enumerate(best[: num_videos - len(worst)], 1)]
    return tuple(
        Video(
            name=name,
            row=int(row),
            episode=int(episodes.branches.episode[row]),
            outcome=episodes.outcomes[row],
            imagined_success=round(float(probability[row]), 4),
        )
        for name, row in chosen
    )


def draw_video(episodes: ImaginedEpisodes, row: int, calibration: Calibration) -> Tensor:
    """u8 [F, h, 2 w, 3]: imagined frames on the left, simulated ones on the right.

    With several cameras the views are side by side and imagined frames are above simulated ones: u8 [F, 2 h, sum of w,
    3]. The bar on imagined frames shows the calibrated success probability; it is green from the threshold on, else
    red. The bar on simulated frames is full once the episode has succeeded.
    """
    branches, truth = episodes.branches, episodes.branches.truth
    length = int(truth.valid[row].sum())
    level = calibration.probability(branches.logit[row, :length])
    counts = (level >= calibration.threshold)[:, None, None, None]
    frames, true_frames = (
        join_views([views[camera][row : row + 1][0, :length] for camera in branches.frames])
        for views in (branches.frames, truth.frames)
    )
    imagined = torch.where(counts, draw_level(frames, level, GREEN), draw_level(frames, level, RED))
    simulated = draw_level(true_frames, truth.success[row, :length], GREEN)
    return torch.cat([imagined, simulated], dim=2 if len(branches.frames) == 1 else 1)


def write_check(reporter: Reporter, iteration: int, checks: Checks, videos: Videos, fps: float) -> None:
    """Write scalars, precision-recall and calibration curves and ``videos`` of every source at step ``iteration``.

    With several tasks the figures are means over tasks, and each task has the same tags in its own TensorBoard run.
    """
    if len(checks) > 1:
        average = average_checks(checks)
        with reporter.writer(NAME, purge_step=iteration) as writer:
            for source, judgement in average.judgements.items():
                _write_figures(writer, iteration, source, judgement, average.is_success[source])
    for task, check in checks.items():
        with reporter.writer(NAME if len(checks) == 1 else f"{NAME}/{task}", purge_step=iteration) as writer:
            for source, episodes in check.imagined.items():
                _write_figures(writer, iteration, source, check.judgements[source], episodes.is_success)
                for video in videos[task][source]:
                    frames = draw_video(episodes, video.row, check.calibration)
                    writer.video(f"{NAME}/{source}_{video.name}", iteration, frames, fps)


def _write_figures(writer: Writer, iteration: int, source: str, judgement: Judgement, is_success: np.ndarray) -> None:
    tag = f"{NAME}/{source}"
    writer.scalars(iteration, {f"{tag}_{name}": value for name, value in list_scalars(judgement).items()})
    writer.judgement(tag, iteration, judgement.success.probability, is_success)
