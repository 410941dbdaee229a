"""Rewards of video, with a reader whose joint is the grey level of the picture."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hand_specs import make_spec
from torch import Tensor, nn

from worldloop.core.errors import WorldloopError
from worldloop.core.specs import JointSpec, SimulatorSpec
from worldloop.executability.inverse_dynamics import Motion
from worldloop.executability.reward import RewardConfig
from worldloop.executability.scoring import ExecutabilityScorer, FollowingScorer


class LevelReader(nn.Module):
    """The joint is the level of the first pixel; every action is the change of it to the next frame."""

    def __init__(self, spec: SimulatorSpec) -> None:
        super().__init__()
        self.spec = spec
        self.action_low, self.action_high = (torch.tensor(b) for b in (spec.robot.action_low, spec.robot.action_high))

    def infer(self, video: dict[str, Tensor]) -> Motion:
        level = video["base"][:, :, 0, 0, 0]
        proprio = torch.stack([level, *[torch.zeros_like(level)] * (self.spec.robot.proprio_dim - 1)], dim=2)
        change = (level[:, 1:] - level[:, :-1])[:, :, None, None]
        return Motion(proprio, change.expand(-1, -1, self.spec.actions_per_frame, self.spec.robot.action_dim))


def make_reader(with_joint: bool = True) -> Any:
    spec = make_spec()
    joints = (JointSpec(spec.robot.proprio_names[0], -10.0, 10.0, 1000.0, 1000.0),) if with_joint else ()
    return LevelReader(replace(spec, robot=replace(spec.robot, joints=joints)))


def make_video(*rows: tuple[float, ...]) -> dict[str, Tensor]:
    return {"base": torch.tensor(rows)[:, :, None, None, None].expand(-1, -1, 3, 4, 4).clone()}


REAL = make_video((0.0, 0.1, 0.21, 0.3, 0.41), (0.0, -0.1, -0.2, -0.31, -0.4))
ROUGH = make_video((0.0, 0.2, 0.1, 0.4, 0.3), (0.0, -0.3, -0.1, -0.4, -0.2))
STILL = make_video((0.0,) * 5, (0.0,) * 5)


def make_scorer(guards: bool = True) -> ExecutabilityScorer:
    return ExecutabilityScorer.calibrated(make_reader(), RewardConfig(), REAL, ROUGH, guards)


def test_smooth_video_is_worth_more_than_rough_video() -> None:
    scorer = make_scorer()
    path = scorer.measure_path(REAL)
    torch.testing.assert_close(path, torch.tensor([0.41, 0.40]))
    real, _ = scorer.score(REAL, path)
    rough, figures = scorer.score(ROUGH, path)
    assert bool((real > rough).all())
    assert bool((real <= 1).all())
    assert float(figures["penalty"].mean()) == pytest.approx(float(scorer.reward.reference_penalty or 0), rel=1e-5)


def test_without_the_guard_standing_still_is_best() -> None:
    path = make_scorer().measure_path(REAL)
    guarded, _ = make_scorer().score(STILL, path)
    free, figures = make_scorer(guards=False).score(STILL, path)
    assert free.tolist() == [1.0, 1.0]
    assert bool((guarded < 1e-3).all())
    assert figures["path_ratio"].tolist() == [0.0, 0.0]


def test_the_reward_has_a_gradient_into_the_picture() -> None:
    video = {camera: frames.clone().requires_grad_(True) for camera, frames in ROUGH.items()}
    scorer = make_scorer()
    scorer.score(video, scorer.measure_path(REAL))[0].sum().backward()  # type: ignore[no-untyped-call]
    assert video["base"].grad is not None
    assert float(video["base"].grad.abs().max()) > 0


def test_a_robot_without_joints_is_named() -> None:
    with pytest.raises(WorldloopError, match="tells no joint limits"):
        ExecutabilityScorer.calibrated(make_reader(with_joint=False), RewardConfig(), REAL, ROUGH, True)


def test_following_compares_the_actions_after_the_frame_now() -> None:
    """Two real frames, then two generated ones; what led to the frame now does not count."""
    reader = make_reader()
    spec = reader.spec
    low, high = reader.action_low, reader.action_high
    middle, half = (high + low) / 2, (high - low) / 2
    read = torch.tensor([[0.1, 0.3]])[:, :, None, None].expand(-1, -1, spec.actions_per_frame, spec.robot.action_dim)
    video = make_video((0.0, 5.0, 5.1, 5.4))
    scorer = FollowingScorer(reader, temperature=0.5)
    reward, figures = scorer.score(video, read)
    assert float(reward) == pytest.approx(1, abs=1e-5)
    assert float(figures["action_mse"]) == pytest.approx(0, abs=1e-6)
    reward, figures = scorer.score(video, read + half)  # wrong by one half of the range in each dimension
    assert float(figures["action_mse"]) == pytest.approx(1, rel=1e-4)
    assert float(reward) == pytest.approx(float(torch.exp(torch.tensor(-2.0))), rel=1e-4)
    assert middle.shape == half.shape
