"""How a planner's videos compare with the real ones of the same starts: pixels, smoothness, and how much moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldloop.core import images
from worldloop.core.interfaces import Planner
from worldloop.core.statistics import Estimate, estimate, mean
from worldloop.core.types import Episode, Observation
from worldloop.evaluation.fidelity import compute_psnr
from worldloop.executability.inverse_dynamics import InverseDynamics
from worldloop.executability.reward import (
    TERMS,
    ExecutabilityReward,
    RewardConfig,
    compute_path_length,
    measure_envelope,
)
from worldloop.networks.views import map_views
from worldloop.sans.cache import VersionCache


@dataclass(frozen=True)
class PlanJudgement:
    """Planned videos of n starts beside the real successes; intervals resample starts.

    - ``psnr_db``: of planned frames against real ones; ``still_psnr_db``: of the first frame repeated, the floor
    - ``penalty_ratio``: the mean executability penalty of plans over that of real video, as inverse dynamics reads
      both; 1: as smooth as real video. ``None`` if the robot tells no joints
    - ``path_ratio``: the path of the joints over that in real video, the mean; 0: plans that stand still
    - ``terms``: each term of the penalty, the mean over plans and over real videos
    """

    n: int
    psnr_db: Estimate
    still_psnr_db: Estimate
    penalty_ratio: Estimate | None
    path_ratio: Estimate | None
    terms: dict[str, tuple[float, float]]

    def __str__(self) -> str:
        smooth = "" if self.penalty_ratio is None else f", penalty {self.penalty_ratio} times that of real video"
        moved = "" if self.path_ratio is None else f", path {self.path_ratio} times as long"
        still = f"standing still {self.still_psnr_db.value:.1f}"
        return f"{self.psnr_db.value:.1f} dB against real video ({still}){smooth}{moved}"

    def to_dict(self) -> dict[str, Any]:
        optional = {"penalty_ratio": self.penalty_ratio, "path_ratio": self.path_ratio}
        return {
            "n": self.n,
            "psnr_db": self.psnr_db.to_dict(),
            "still_psnr_db": self.still_psnr_db.to_dict(),
            "terms": {name: {"planned": planned, "real": real} for name, (planned, real) in self.terms.items()},
        } | {name: figure and figure.to_dict() for name, figure in optional.items()}


@dataclass(frozen=True)
class PlannedVideos:
    """``planned`` and ``real``, camera -> u8 [n, T, h, w, 3]; both begin with the same real frame."""

    planned: dict[str, Tensor]
    real: dict[str, Tensor]

    def show(self) -> list[Tensor]:
        """A video u8 [T, h, w, 3] of each start: the planned views, then the real ones."""
        views = [*self.planned.values(), *self.real.values()]
        return [images.join_views([view[row] for view in views]) for row in range(len(views[0]))]


def find_successes(cache: VersionCache, num_frames: int, max_episodes: int) -> list[Episode]:
    """The latest held-out successes with ``num_frames`` frame steps or more, ``max_episodes`` at most."""
    chosen = cache.select(split="validation", outcome=("success",))
    chosen = chosen[cache.num_steps[chosen] >= num_frames][-max_episodes:]
    return [cache.episode(number) for number in chosen.tolist()]


def plan_successes(planner: Planner, episodes: Sequence[Episode], num_frames: int, noise_key: Tensor) -> PlannedVideos:
    """Plan ``num_frames`` frames from the first observation of each of ``episodes``, which all have so many steps.

    ``noise_key`` int64 [n] seeds the planner's noise.
    """
    cameras = planner.spec.robot.camera_names
    real = {
        camera: torch.stack([torch.from_numpy(e.frames[camera][: num_frames + 1]) for e in episodes])
        for camera in cameras
    }
    start = Observation(
        frames=map_views(lambda frames: frames[:, :1], real),
        proprio=torch.stack([torch.from_numpy(e.proprio[0]) for e in episodes]),
        task=tuple(e.meta.task for e in episodes),
        instruction=tuple(e.meta.instruction for e in episodes),
        env_step=torch.zeros(len(episodes), dtype=torch.long),
    )
    plan = planner.plan(start, noise_key, num_frames)
    planned = {camera: torch.cat([real[camera][:, :1], plan[camera]], dim=1) for camera in cameras}
    return PlannedVideos(planned, real)


def judge_plans(videos: PlannedVideos, judge: InverseDynamics) -> PlanJudgement:
    """Compare ``videos``, which need three planned frames or more for jerk; ``judge`` reads their motion."""
    psnr, still = (_measure_psnr(frames, videos.real) for frames in (videos.planned, _stand_still(videos.real)))
    robot = judge.spec.robot
    penalty_ratio = path_ratio = None
    terms: dict[str, tuple[float, float]] = {}
    if robot.joints:
        columns = [robot.proprio_names.index(joint.name) for joint in robot.joints]
        planned, real = (judge.infer_frames(frames) for frames in (videos.planned, videos.real))
        joints, real_joints = (motion.proprio[..., columns].cpu() for motion in (planned, real))
        valid = torch.ones(joints.shape[:2], dtype=torch.bool)
        dt_s = 1 / judge.spec.frames_per_second
        reward = ExecutabilityReward(robot, dt_s, RewardConfig(), measure_envelope(real_joints, valid, dt_s))
        weighed, real_weighed = (
            reward.weigh_terms(q, motion.actions.cpu(), valid) for q, motion in ((joints, planned), (real_joints, real))
        )
        terms = {name: (float(weighed[name].mean()), float(real_weighed[name].mean())) for name in TERMS}
        penalties = [torch.stack(list(w.values())).sum(0).double().numpy() for w in (weighed, real_weighed)]
        paths = [compute_path_length(q, valid).double().numpy() for q in (joints, real_joints)]
        penalty_ratio, path_ratio = estimate(_divide_means, *penalties), estimate(_divide_means, *paths)
    return PlanJudgement(len(psnr), estimate(mean, psnr), estimate(mean, still), penalty_ratio, path_ratio, terms)


def _divide_means(of: np.ndarray, by: np.ndarray) -> float:
    return float(of.mean() / by.mean()) if by.mean() > 0 else float("nan")


def _stand_still(real: dict[str, Tensor]) -> dict[str, Tensor]:
    return map_views(lambda frames: frames[:, :1].expand_as(frames), real)


def _measure_psnr(frames: dict[str, Tensor], real: dict[str, Tensor]) -> np.ndarray:
    """f64 [n]: PSNR in dB, the mean over the frames after the first and over cameras."""
    by_camera = [compute_psnr(seen[:, 1:], real[camera][:, 1:]).mean(1) for camera, seen in frames.items()]
    return torch.stack(by_camera).mean(0).double().numpy()
