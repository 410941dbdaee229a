"""How the check of a world model is shown: log lines, TensorBoard's scalars, curves and videos, the card's summary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldloop.core.images import draw_level
from worldloop.core.interfaces import Writer
from worldloop.core.statistics import Estimate
from worldloop.core.success import Calibration
from worldloop.core.types import Outcome
from worldloop.evaluation.alignment import Alignment
from worldloop.evaluation.judgement import Judgement, WorldModelCheck
from worldloop.evaluation.open_loop import ImaginedEpisodes

GREEN, RED = (60, 200, 90), (210, 70, 60)
ALWAYS_REPORTED = ("scripted", "on_policy")  # sources that are null with a reason where there are no episodes


@dataclass(frozen=True)
class Video:
    """A held-out episode to show: the ``row`` of its source, and how its success was judged.

    Example: ``Video("worst_1", row=3, episode=40, outcome="failure", imagined_success=0.91)``.
    """

    name: str
    row: int
    episode: int
    outcome: Outcome
    imagined_success: float

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def describe_check(check: WorldModelCheck) -> list[str]:
    """The lines of the log: two for each source, and why the model is not trusted."""
    lines = []
    for name, judgement in check.judgements.items():
        lines += [f"{name}: {describe_alignment(judgement.alignment)}", f"{name}: {describe_judgement(judgement)}"]
    return lines if check.trust.is_trusted else [*lines, f"not good enough: {check.trust.reason}"]


def describe_alignment(alignment: Alignment) -> str:
    """One line for the log, e.g. ``auc 0.943 (0.910-0.972), balanced accuracy 0.850 (0.801-0.902), n 50``."""
    figures = {"auc": alignment.auc, "balanced accuracy": alignment.balanced_accuracy}
    return ", ".join([*(f"{name} {figure or '-'}" for name, figure in figures.items()), f"n {alignment.n}"])


def describe_judgement(judgement: Judgement) -> str:
    """One line for the log, e.g. ``psnr_db 25.1, moving_psnr_db 18.2, object_error_cm at the end 2.1 (floor 0.4)``."""
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
    """The headline figures of one source by name: each metric's mean, state errors at the end, and AUC by horizon."""
    figures: dict[str, Estimate | None] = {name: m.mean for name, m in judgement.fidelity.metrics.items()}
    for landmark, error in judgement.state_errors.items():
        figures |= {name: metric.end for name, metric in error.name_metrics(landmark).items()}
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


def summarise_for_card(check: WorldModelCheck) -> dict[str, Any]:
    """By source, what a reader of the checkpoint alone wants to know."""
    chosen = ("n", "auc", "balanced_accuracy", "expected_calibration_error")
    summary = {}
    for name, judgement in check.judgements.items():
        alignment = judgement.alignment.to_dict()
        summary[name] = {figure: alignment[figure] for figure in chosen} | list_scalars(judgement)
    return summary


def make_record(check: WorldModelCheck, videos: Mapping[str, tuple[Video, ...]]) -> dict[str, Any]:
    """What results.json keeps of the check and of the ``videos`` of each source."""
    missing: dict[str, Any] = {}
    for name in ALWAYS_REPORTED:
        if name not in check.judgements:
            missing |= {name: None, f"{name}_reason": "no validation episodes of this source"}
    alignment = {name: judgement.alignment.to_dict() for name, judgement in check.judgements.items()}
    figures = {
        name: judgement.to_dict() | {"videos": [video.to_dict() for video in videos[name]]}
        for name, judgement in check.judgements.items()
    }
    record = {"reward_alignment": missing | alignment, "world_model_check": missing | figures}
    return record | check.fidelity.to_dict()


def choose_all_videos(check: WorldModelCheck, num_videos: int) -> dict[str, tuple[Video, ...]]:
    """`choose_videos` of every source."""
    return {name: choose_videos(episodes, check.calibration, num_videos) for name, episodes in check.imagined.items()}


def choose_videos(episodes: ImaginedEpisodes, calibration: Calibration, num_videos: int) -> tuple[Video, ...]:
    """Whom to show: the half where imagined and simulated outcome disagree most, and the half where they agree best.

    Of the latter as many successes as failures, where there are.
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

    The bar above the imagined frames is their calibrated success probability, green from the threshold on; that above
    the simulated ones is full once the episode has succeeded.
    """
    branches, truth = episodes.branches, episodes.branches.truth
    length = int(truth.valid[row].sum())
    frames, level = branches.frames[row, :length], calibration.probability(branches.logit[row, :length])
    counts = (level >= calibration.threshold)[:, None, None, None]
    imagined = torch.where(counts, draw_level(frames, level, GREEN), draw_level(frames, level, RED))
    simulated = draw_level(truth.frames[row, :length], truth.success[row, :length], GREEN)
    return torch.cat([imagined, simulated], dim=2)


def write_check(
    writer: Writer, iteration: int, check: WorldModelCheck, videos: Mapping[str, tuple[Video, ...]], fps: float
) -> None:
    """Scalars, precision-recall and calibration curves and ``videos`` of every source, at step ``iteration``."""
    for name, judgement in check.judgements.items():
        tag, episodes = f"check_world_model/{name}", check.imagined[name]
        writer.scalars(iteration, {f"{tag}_{k}": v for k, v in list_scalars(judgement).items()})
        writer.judgement(tag, iteration, judgement.success.probability, episodes.is_success)
        for video in videos[name]:
            frames = draw_video(episodes, video.row, check.calibration)
            writer.video(f"{tag}_{video.name}", iteration, frames, fps)
