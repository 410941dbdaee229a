"""The full check of a world model on held-out episodes of one task: figures by source, calibration and trust."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldloop.core.specs import SimulatorSpec
from worldloop.core.statistics import Estimate
from worldloop.core.success import Calibration, Trust
from worldloop.evaluation.action_following import ActionFollowing, follow_actions
from worldloop.evaluation.alignment import Alignment, align_episodes
from worldloop.evaluation.calibration import (
    CalibratedSuccess,
    apply_calibration,
    calibrate,
    choose_sources,
    judge_trust,
)
from worldloop.evaluation.fidelity import Fidelity, FrameMetric, measure_fidelity
from worldloop.evaluation.frames import split_rows
from worldloop.evaluation.horizon import Horizon
from worldloop.evaluation.lpips import BATCH_SIZE, compute_lpips
from worldloop.evaluation.open_loop import Branches, ImaginedEpisodes
from worldloop.evaluation.uncertainty import Uncertainty, judge_uncertainty
from worldloop.evaluation.visual_state import (
    FittedProbe,
    StateError,
    VisualAlignment,
    compute_visual_alignment,
    locate_landmarks,
    measure_state_errors,
    see,
)
from worldloop.sans.clips import ClipDataset

LPIPS_ROWS_AT_ONCE = BATCH_SIZE  # so that all batches of frames but the last are full


@dataclass(frozen=True)
class Judgement:
    """The figures of the held-out episodes of one source.

    - ``success``: the success head's calibrated probabilities; ``alignment`` judges them
    - ``state_errors`` by landmark, ``visual_alignment``, ``action_following``: empty or ``None`` without a probe
    - ``action_following`` is also ``None`` if no two episodes start in one state
    - ``uncertainty``: ``None`` if the model estimates no PSNR
    """

    success: CalibratedSuccess
    alignment: Alignment
    fidelity: Fidelity
    state_errors: dict[str, StateError]
    visual_alignment: VisualAlignment | None
    action_following: ActionFollowing | None
    uncertainty: Uncertainty | None
    horizons: tuple[Horizon, ...]

    @property
    def metrics(self) -> dict[str, FrameMetric]:
        """All metrics of single frames, by their names in results.json."""
        metrics = self.fidelity.metrics
        for landmark, error in self.state_errors.items():
            metrics |= error.name_metrics(landmark)
        return metrics

    def to_dict(self) -> dict[str, Any]:
        """The entry of ``world_model_check`` in results.json; the alignment is under ``reward_alignment``."""
        figures: dict[str, Any] = {
            "visual_alignment": self.visual_alignment and self.visual_alignment.to_dict(),
            "action_following": self.action_following and self.action_following.to_dict(),
            "uncertainty": self.uncertainty and self.uncertainty.to_dict(),
            "horizon": [horizon.to_dict() for horizon in self.horizons],
        }
        if self.visual_alignment is None:
            figures["probe_reason"] = "check_world_model.probe_steps is 0, or the simulator names no landmarks"
        elif self.action_following is None:
            figures["action_following_reason"] = "no two episodes from one state (seed_dataset.forked_states)"
        return figures | {name: metric.to_dict() for name, metric in self.metrics.items()}


def judge_episodes(
    episodes: ImaginedEpisodes,
    dataset: ClipDataset,
    calibration: Calibration,
    spec: SimulatorSpec,
    task: str,
    *,
    cross_fit: bool,
    probe: FittedProbe | None,
    horizons: tuple[Horizon, ...] = (),
    actions_only: np.ndarray | None = None,
) -> Judgement:
    """Judge ``episodes`` of ``task`` in ``dataset``; set ``cross_fit`` if ``calibration`` was fitted on them.

    ``actions_only`` f [n]: the result of `score_actions`.
    """
    branches = episodes.branches
    success = apply_calibration(episodes, calibration, cross_fit)
    fidelity = measure_fidelity(branches)
    state_errors: dict[str, StateError] = {}
    visual_alignment, action_following = None, None
    if probe is not None:
        imagined, simulated = (
            see(probe.network, branches, frames) for frames in (branches.frames, branches.truth.frames)
        )
        landmarks = spec.task(task).landmarks
        true_m = locate_landmarks(branches, dataset, spec)
        state_errors = measure_state_errors(branches, imagined, simulated, true_m, landmarks)
        visual_alignment = compute_visual_alignment(
            branches, imagined, simulated, episodes.outcomes, probe.success_thresholds[task]
        )
        action_following = follow_actions(branches, dataset, imagined, true_m, landmarks)
    return Judgement(
        success=success,
        alignment=align_episodes(episodes, success, actions_only),
        fidelity=fidelity,
        state_errors=state_errors,
        visual_alignment=visual_alignment,
        action_following=action_following,
        uncertainty=judge_uncertainty(
            branches, fidelity.psnr_db, {landmark: error.imagined for landmark, error in state_errors.items()}
        ),
        horizons=horizons,
    )


@dataclass(frozen=True)
class OverallFidelity:
    """Means over all held-out episodes; ``None`` without episodes, and for LPIPS if it is not available."""

    psnr_db: float | None
    ssim: float | None
    lpips: float | None
    reason: str = ""  # why a figure is None

    def to_dict(self) -> dict[str, Any]:
        figures: dict[str, Any] = {"psnr_db": self.psnr_db, "ssim": self.ssim, "lpips": self.lpips}
        missing = [name for name in ("psnr_db", "lpips") if figures[name] is None]
        return figures | {f"{name}_reason": self.reason for name in missing}


@dataclass(frozen=True)
class WorldModelCheck:
    """The full check of one task: ``imagined`` episodes and ``judgements`` by source, calibration, trust and fidelity.

    A source without held-out episodes is in neither mapping.
    """

    imagined: dict[str, ImaginedEpisodes]
    judgements: dict[str, Judgement]
    calibration: Calibration
    trust: Trust
    fidelity: OverallFidelity


def judge_world_model(
    imagined: dict[str, ImaginedEpisodes],
    horizons: Mapping[str, tuple[Horizon, ...]],
    dataset: ClipDataset,
    spec: SimulatorSpec,
    task: str,
    *,
    probe: FittedProbe | None,
    floor_quantile: float,
    required_auc: float,
    actions_only: Mapping[str, np.ndarray | None] | None = None,
    reads_states: bool = False,
) -> WorldModelCheck:
    """Calibrate on ``imagined`` episodes of ``task`` in ``dataset``, judge each source, and decide on trust.

    ``horizons`` and ``actions_only`` (see `judge_episodes`) are by source; for ``floor_quantile`` and
    ``reads_states`` see `calibrate`, for ``required_auc`` see `judge_trust`.
    """
    calibration = calibrate(imagined, floor_quantile, reads_states)
    calibrated_on = () if reads_states else choose_sources(imagined)
    judgements = {
        name: judge_episodes(
            episodes,
            dataset,
            calibration,
            spec,
            task,
            cross_fit=name in calibrated_on,
            probe=probe,
            horizons=horizons[name],
            actions_only=(actions_only or {}).get(name),
        )
        for name, episodes in imagined.items()
    }
    return WorldModelCheck(
        imagined=imagined,
        judgements=judgements,
        calibration=calibration,
        trust=judge_trust(imagined, required_auc),
        fidelity=average_fidelity(imagined, judgements),
    )


def average_fidelity(by_source: Mapping[str, ImaginedEpisodes], judgements: Mapping[str, Judgement]) -> OverallFidelity:
    """Mean fidelity over the episodes of all sources; both mappings have the same sources."""
    if not by_source:
        return OverallFidelity(None, None, None, reason="no validation episodes")
    fidelity = [judgement.fidelity for judgement in judgements.values()]
    distances = [_average_lpips(episodes.branches) for episodes in by_source.values()]
    values = [value for value, _ in distances if value is not None]
    return OverallFidelity(
        psnr_db=_average([f.psnr_db.mean for f in fidelity]),
        ssim=_average([f.ssim.mean for f in fidelity]),
        lpips=round(float(torch.cat(values).mean()), 4) if values else None,
        reason="" if values else distances[0][1],
    )


def _average_lpips(branches: Branches) -> tuple[Tensor | None, str]:
    """(LPIPS f32 [N], the mean over cameras, ""), or (None, why a camera has none)."""
    by_camera = []
    for camera, frames in branches.frames.items():
        values = []
        for rows in split_rows(frames, LPIPS_ROWS_AT_ONCE):
            truth = branches.truth
            value, reason = compute_lpips(frames[rows], truth.frames[camera][rows], truth.valid[rows])
            if value is None:
                return None, f"{camera}: {reason}" if len(branches.frames) > 1 else str(reason)
            values.append(value)
        by_camera.append(torch.cat(values))
    return torch.stack(by_camera).mean(0), ""


def _average(means: list[Estimate | None]) -> float | None:
    """The mean of ``means``, weighted by their n; ``None`` if all are ``None``."""
    defined = [mean for mean in means if mean is not None]
    if not defined:
        return None
    return round(sum(mean.value * mean.n for mean in defined) / sum(mean.n for mean in defined), 4)
