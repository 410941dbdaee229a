"""Align the planner: its videos shall show motions that the robot can execute (EVA, arXiv:2603.17808)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from worldloop.core.randomness import make_generator, make_row_keys
from worldloop.core.statistics import Estimate
from worldloop.evaluation.plans import PlanJudgement
from worldloop.executability.inverse_dynamics import InverseDynamics
from worldloop.executability.scoring import ExecutabilityScorer
from worldloop.sans.clips import ClipDataset
from worldloop.stages.alignment.config import AlignmentConfig
from worldloop.stages.alignment.objective import Mode
from worldloop.stages.alignment.starts import Starts, add_start, draw_starts, find_starts, show_real
from worldloop.world_model.planner import VideoPlanner
from worldloop.world_model.tracing import PlanTracer, Sampling, Tracer, trace

NUM_CALIBRATION = 64  # starts from which envelope and P0 are measured


class PlanMode(Mode):
    """Videos start in successes, so that the guard knows how far the robot really went.

    Raises ``WorldloopError`` if no training success has enough frames.
    """

    def __init__(
        self,
        planner: VideoPlanner,
        reference: VideoPlanner,
        inverse_dynamics: InverseDynamics,
        clips: ClipDataset,
        config: AlignmentConfig,
        sampling: Sampling,
        seed: int,
    ) -> None:
        self.planner, self.reference, self.clips, self.config = planner, reference, clips, config
        self.index = find_starts(clips, config.num_frames, successes=True)
        generator = make_generator(seed, "align_world_model/calibration")
        starts = self.draw_starts(generator, NUM_CALIBRATION)
        keys = make_row_keys(NUM_CALIBRATION, seed, "align_world_model/calibration")
        frames = trace(PlanTracer(planner), starts.observation, keys, config.num_frames, Sampling(sampling.num_steps))
        planned = {camera: torch.stack([frame.data[camera] for frame in frames], dim=1) for camera in frames[0].data}
        self.scorer = ExecutabilityScorer.calibrated(
            inverse_dynamics,
            config.reward,
            real=show_real(starts, inverse_dynamics.device),
            generated=add_start(planned, starts, num_real=1),
            guards=config.guard,
        )

    def draw_starts(self, generator: torch.Generator, number: int) -> Starts:
        return draw_starts(self.clips, self.index, self.config.num_frames, generator, number)

    def make_tracer(self, starts: Starts | None, *, reference: bool = False) -> Tracer:
        return PlanTracer(self.reference if reference else self.planner)

    def score(self, frames: Mapping[str, Tensor], starts: Starts) -> tuple[Tensor, dict[str, Tensor]]:
        video = add_start(frames, starts, num_real=1)
        with torch.no_grad():
            real_path = self.scorer.measure_path(show_real(starts, self.scorer.inverse_dynamics.device))
        return self.scorer.score(video, real_path)


def find_fault(before: PlanJudgement, after: PlanJudgement, config: AlignmentConfig) -> str:
    """Why aligned plans are refused, "" if they are not: worse pictures, less smooth, or another length of path.

    Means are compared. The judge's penalty has the default weights, whatever ``config.reward`` has.
    """
    loss = before.psnr_db.value - after.psnr_db.value
    if loss > config.max_psnr_loss_db:
        return f"plans lost {loss:.2f} dB, at most {config.max_psnr_loss_db} are allowed"
    if not _value(after.penalty_ratio) <= _value(before.penalty_ratio):
        return "plans are less smooth for the model that only judges"
    if config.guard and _leaves(_value(after.path_ratio), _value(before.path_ratio), config):
        return f"the joints' path is {_value(after.path_ratio):.2f} times as long as in real video"
    return ""


def _leaves(after: float, before: float, config: AlignmentConfig) -> bool:
    """Whether the ratio of paths is outside the guard's bounds, and further from 1 than before."""
    is_outside = not config.reward.guard_low <= after <= config.reward.guard_high
    return is_outside and abs(np.log(max(after, 1e-6))) > abs(np.log(max(before, 1e-6)))


def _value(figure: Estimate | None) -> float:
    return float("nan") if figure is None else figure.value
