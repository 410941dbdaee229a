"""Plans beside real videos: figures by hand, with a judge that reads a grey level as the joint."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hand_specs import make_spec
from torch import Tensor, nn

from worldloop.core.specs import JointSpec, SimulatorSpec
from worldloop.evaluation.plans import PlannedVideos, judge_plans
from worldloop.executability.inverse_dynamics import Motion


class LevelJudge(nn.Module):
    """Reads proprio 0, a joint, as the grey level / 10 of the first camera; actions are 0."""

    def __init__(self, spec: SimulatorSpec) -> None:
        super().__init__()
        self.spec = spec

    def infer_frames(self, frames: dict[str, Tensor]) -> Motion:
        level = next(iter(frames.values()))[..., 0, 0, 0].float() / 10
        proprio = torch.zeros(*level.shape, self.spec.robot.proprio_dim)
        proprio[..., 0] = level
        return Motion(proprio, torch.zeros(len(level), level.shape[1] - 1, self.spec.actions_per_frame, 4))


def make_judge(with_joint: bool = True) -> Any:
    spec = make_spec()
    name = spec.robot.proprio_names[0]
    joints = (JointSpec(name, -100.0, 100.0, 1000.0, 1000.0),) if with_joint else ()
    return LevelJudge(replace(spec, robot=replace(spec.robot, joints=joints)))


def make_video(*levels: int) -> dict[str, Tensor]:
    """Two rows of frames of one grey level each."""
    frames = torch.tensor(levels, dtype=torch.uint8)[None, :, None, None, None].expand(2, -1, 4, 6, 3)
    return {"base": frames.clone()}


REAL = make_video(0, 10, 21, 33, 40)


def test_plans_like_real_video_cannot_be_told_from_it() -> None:
    judged = judge_plans(PlannedVideos(REAL, REAL), make_judge())
    assert judged.n == 2
    assert judged.penalty_ratio is not None
    assert judged.path_ratio is not None
    assert judged.penalty_ratio.value == judged.path_ratio.value == 1
    assert judged.psnr_db.value > 60
    errors = np.square([10, 21, 33, 40]).astype(float)
    assert judged.still_psnr_db.value == pytest.approx(float(np.mean(10 * np.log10(255**2 / errors))), abs=1e-3)
    assert all(planned == real for planned, real in judged.terms.values())


def test_a_plan_that_stands_still_has_no_path_and_no_penalty() -> None:
    judged = judge_plans(PlannedVideos(make_video(0, 0, 0, 0, 0), REAL), make_judge())
    assert judged.path_ratio is not None
    assert judged.penalty_ratio is not None
    assert judged.path_ratio.value == 0
    assert judged.penalty_ratio.value == 0
    assert judged.psnr_db.value == judged.still_psnr_db.value


def test_a_plan_that_jitters_has_more_penalty() -> None:
    judged = judge_plans(PlannedVideos(make_video(0, 20, 5, 40, 30), REAL), make_judge())
    assert judged.penalty_ratio is not None
    assert judged.penalty_ratio.value > 3
    planned, real = judged.terms["jerk"]
    assert planned > real
    assert "times that of real video" in str(judged)


def test_a_robot_without_joints_has_pixels_alone() -> None:
    judged = judge_plans(PlannedVideos(REAL, REAL), make_judge(with_joint=False))
    assert judged.penalty_ratio is None
    assert judged.to_dict()["path_ratio"] is None
    assert "penalty" not in str(judged)


def test_the_videos_show_the_plan_left_of_the_real_one() -> None:
    shown = PlannedVideos(make_video(0, 1, 2, 3, 4), REAL).show()
    assert len(shown) == 2
    assert shown[0].shape == (5, 4, 12, 3)
    assert shown[0][3, 0, :, 0].tolist() == [3] * 6 + [33] * 6
