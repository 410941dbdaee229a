"""Align the world model: its videos shall show what the actions say.

Smooth motion is no aim here, because some actions are not smooth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worldloop.core.randomness import make_generator, make_row_keys
from worldloop.core.statistics import Estimate, estimate, mean
from worldloop.evaluation.fidelity import compute_psnr
from worldloop.executability.inverse_dynamics import InverseDynamics
from worldloop.executability.scoring import FollowingScorer
from worldloop.sans.clips import ClipDataset
from worldloop.stages.alignment.config import AlignmentConfig
from worldloop.stages.alignment.objective import Mode
from worldloop.stages.alignment.starts import Starts, add_start, draw_starts, find_starts
from worldloop.world_model.model import VideoWorldModel
from worldloop.world_model.tracing import ActionTracer, Sampling, Tracer, trace

NUM_JUDGED = 100  # held-out videos that decide whether the aligned model is kept


class FollowMode(Mode):
    """Videos start anywhere in training episodes, and follow the recorded actions."""

    def __init__(
        self,
        model: VideoWorldModel,
        reference: VideoWorldModel,
        inverse_dynamics: InverseDynamics,
        clips: ClipDataset,
        config: AlignmentConfig,
    ) -> None:
        self.model, self.reference, self.clips, self.config = model, reference, clips, config
        self.index = find_starts(clips, config.num_frames, successes=False)
        self.scorer = FollowingScorer(inverse_dynamics, config.following_temperature)

    def draw_starts(self, generator: torch.Generator, number: int) -> Starts:
        return draw_starts(self.clips, self.index, self.config.num_frames, generator, number)

    def make_tracer(self, starts: Starts | None, *, reference: bool = False) -> Tracer:
        model = self.reference if reference else self.model
        return ActionTracer(model, None if starts is None else starts.clip.actions)

    def score(self, frames: Mapping[str, Tensor], starts: Starts) -> tuple[Tensor, dict[str, Tensor]]:
        return self.scorer.score(add_start(frames, starts, num_real=2), starts.clip.actions)


@dataclass(frozen=True)
class Following:
    """Held-out clips of one model: ``following``, as inverse dynamics reads it that only judges, and ``psnr_db``."""

    n: int
    following: Estimate
    psnr_db: Estimate

    def to_dict(self) -> dict[str, Any]:
        return {"n": self.n, "following": self.following.to_dict(), "psnr_db": self.psnr_db.to_dict()}


@torch.no_grad()
def judge_following(
    model: VideoWorldModel,
    judge: InverseDynamics,
    clips: ClipDataset,
    config: AlignmentConfig,
    seed: int,
) -> Following:
    """How well ``model`` follows the recorded actions after starts that are drawn from ``clips``."""
    index = find_starts(clips, config.num_frames, successes=False)
    generator = make_generator(seed, "align_world_model/judge")
    starts = draw_starts(clips, index, config.num_frames, generator, min(NUM_JUDGED, len(index)))
    keys = make_row_keys(len(starts.clip.valid), seed, "align_world_model/judge")
    tracer = ActionTracer(model, starts.clip.actions)
    frames = trace(tracer, starts.observation, keys, config.num_frames, Sampling(model.config.num_sampler_steps))
    made = {camera: torch.stack([frame.data[camera] for frame in frames], dim=1) for camera in frames[0].data}
    score, _ = FollowingScorer(judge, config.following_temperature).score(
        add_start(made, starts, num_real=2), starts.clip.actions
    )
    shown = model.codec.decode(made)
    psnr = torch.stack([compute_psnr(shown[c].cpu(), starts.clip.frames[c]).mean(1) for c in shown]).mean(0)
    return Following(len(psnr), estimate(mean, score.cpu().numpy()), estimate(mean, psnr.numpy()))


def find_fault(before: Following, after: Following, config: AlignmentConfig) -> str:
    """Why an aligned world model is refused, "" if it is not. Means are compared."""
    loss = before.psnr_db.value - after.psnr_db.value
    if loss > config.max_psnr_loss_db:
        return f"imagined frames lost {loss:.2f} dB, at most {config.max_psnr_loss_db} are allowed"
    if not after.following.value >= before.following.value:
        return "the video follows its actions less well, for the model that only judges"
    return ""
