"""Rewards of generated video, for its alignment: is its motion executable, or does it follow its actions? (EVA)

Both are differentiable. Shapes: B videos, T frames, s actions per frame, J joints; ``video``: camera -> float
[B, T, 3, h, w] in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from worldloop.executability.inverse_dynamics import InverseDynamics
from worldloop.executability.reward import (
    ExecutabilityReward,
    RewardConfig,
    compute_path_length,
    measure_envelope,
    require_joints,
    score_following,
)

Breakdown = dict[str, Tensor]  # name -> f32 [B], for logs


@dataclass(frozen=True)
class ExecutabilityScorer:
    """R of the motion that ``inverse_dynamics`` reads; with ``guards`` times the guard against standing still."""

    inverse_dynamics: InverseDynamics
    reward: ExecutabilityReward
    guards: bool = True

    @classmethod
    def calibrated(
        cls,
        inverse_dynamics: InverseDynamics,
        config: RewardConfig,
        real: Mapping[str, Tensor],
        generated: Mapping[str, Tensor],
        guards: bool,
    ) -> ExecutabilityScorer:
        """With the envelope of ``real`` video, and P0 the mean penalty of ``generated`` video before any alignment.

        Raises ``WorldloopError`` for a robot without joints.
        """
        robot, dt_s = inverse_dynamics.spec.robot, 1 / inverse_dynamics.spec.frames_per_second
        require_joints(robot)
        with torch.no_grad():
            joints, _ = _read(inverse_dynamics, real)
            scorer = cls(
                inverse_dynamics,
                ExecutabilityReward(robot, dt_s, config, measure_envelope(joints, _all(joints), dt_s)),
                guards,
            )
            joints, actions = _read(inverse_dynamics, generated)
            penalties = scorer.reward.compute_penalty(joints, actions, _all(joints))
        return cls(inverse_dynamics, scorer.reward.calibrate(penalties), guards)

    def measure_path(self, video: Mapping[str, Tensor]) -> Tensor:
        """f32 [B]: the path of all joints, for the guard."""
        joints, _ = _read(self.inverse_dynamics, video)
        return compute_path_length(joints, _all(joints))

    def score(self, video: Mapping[str, Tensor], real_path: Tensor) -> tuple[Tensor, Breakdown]:
        """The reward f32 [B]; ``real_path`` f32 [B] is `measure_path` of the real video of each start."""
        joints, actions = _read(self.inverse_dynamics, video)
        guarded, breakdown = self.reward.score(joints, actions, _all(joints), real_path)
        if self.guards:
            return guarded, breakdown
        return self.reward.score(joints, actions, _all(joints))[0], breakdown


@dataclass(frozen=True)
class FollowingScorer:
    """How well a video does what its actions say: exp(-mse / temperature)."""

    inverse_dynamics: InverseDynamics
    temperature: float

    def score(self, video: Mapping[str, Tensor], actions: Tensor) -> tuple[Tensor, Breakdown]:
        """The reward f32 [B]; the first two frames are real, ``actions`` f32 [B, T - 2, s, A] lead to the others.

        Actions are in environment units.
        """
        model = self.inverse_dynamics
        middle, half = (model.action_high + model.action_low) / 2, (model.action_high - model.action_low) / 2
        read, given = ((values - middle) / half for values in (model.infer(video).actions[:, 1:], actions.to(middle)))
        valid = torch.ones(read.shape[:2], dtype=torch.bool, device=read.device)
        reward = score_following(read, given, valid, self.temperature)
        return reward, {"action_mse": (read - given).detach().square().flatten(1).mean(1)}


def _read(model: InverseDynamics, video: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Joints f32 [B, T, J] and actions f32 [B, T - 1, s, A]."""
    motion = model.infer(video)
    columns = [model.spec.robot.proprio_names.index(joint.name) for joint in model.spec.robot.joints]
    return motion.proprio[..., columns], motion.actions


def _all(joints: Tensor) -> Tensor:
    return torch.ones(joints.shape[:2], dtype=torch.bool, device=joints.device)
