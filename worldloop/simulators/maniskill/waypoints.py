"""A scripted expert that goes from waypoint to waypoint: what the families with several objects share.

It plans a whole chunk open loop, by integrating its own commands, and measures anew at each chunk. The waypoints are
made anew at each chunk too, so that they follow what has moved. How far a row has come along them is kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worldloop.core.types import ActionChunk, Observation
from worldloop.simulators.maniskill.family import ACTION_LIMIT, ManiSkillTask, ScriptedExpert
from worldloop.simulators.maniskill.robots import ManiSkillRobot
from worldloop.simulators.perturbations import VariantParameters, smooth_noise

OPEN, CLOSED = 1.0, -1.0
GRASP_STEPS = 5  # environment steps that closing the fingers takes
RELEASE_STEPS = 4  # and opening them
AT_WAYPOINT_M = 0.012


@dataclass(frozen=True)
class Waypoint:
    """The tcp goes to ``target_m`` f32 [B, 3], and counts as there within ``within_m``; then it stays for ``steps``.

    ``gripper`` f32 [B] or one number is the command to the fingers on the way and there. ``speed``, [B]
    or one number, is the largest action as a share of the row's own.
    """

    target_m: Tensor
    gripper: Tensor | float
    within_m: float = AT_WAYPOINT_M
    steps: int = 0
    speed: Tensor | float = 1.0


@dataclass(frozen=True)
class Scene:
    """What a row's waypoints are made from, B rows: the state now and at the start f32 [B, D], and the tcp now [B, 3].

    ``reached`` int64 [B]: how many waypoints are behind it.
    """

    state: Tensor
    start: Tensor
    tcp: Tensor
    reached: Tensor

    def find_held(self, position: Tensor, since: int, planned: Tensor) -> Tensor:
        """From the tcp to what it holds at ``position``, f32 [B, 3]; ``planned`` before ``since`` waypoints."""
        return torch.where((self.reached >= since)[:, None], position - self.tcp, planned)


class WaypointPolicy(ScriptedExpert[ManiSkillTask], ABC):
    """Follows the waypoints of a family; it keeps which one each row goes to."""

    def __init__(
        self, task: ManiSkillTask, robot: ManiSkillRobot, parameters: VariantParameters, chunk_length: int
    ) -> None:
        super().__init__(task, robot, parameters, chunk_length)
        rows = len(parameters.progress)
        self._reached = torch.zeros(rows, dtype=torch.long)
        self._stayed = torch.zeros(rows, dtype=torch.long)
        self._start: Tensor | None = None

    @abstractmethod
    def _list_waypoints(self, scene: Scene) -> Sequence[Waypoint]:
        """The whole way, always with the same number of waypoints; a row stays at the last one."""

    def act(self, observation: Observation, noise_key: Tensor | None = None) -> ActionChunk:
        """H actions f32 [B, H, 4], motion within +-``ACTION_LIMIT``; ``noise_key`` is not used."""
        state, tcp = self._read(observation)
        begins = observation.env_step == 0
        self._start = state if self._start is None else torch.where(begins[:, None], state, self._start)
        self._reached = torch.where(begins, 0, self._reached)
        self._stayed = torch.where(begins, 0, self._stayed)
        waypoints = self._list_waypoints(Scene(state, self._start, tcp, self._reached))
        actions = []
        for h in range(self._chunk_length):
            step = observation.env_step + h
            delta, gripper = self._follow(waypoints, tcp, step)
            delta = delta + self._p.noise_scale[:, None] * smooth_noise(self._p.noise_phase, step, 3)
            delta = delta.clamp(-ACTION_LIMIT, ACTION_LIMIT)
            tcp = tcp + self._robot.step_m * delta
            actions.append(torch.cat([self._task.turn_to_arm(delta), gripper[:, None]], dim=1))
        return ActionChunk(torch.stack(actions, dim=1), policy_version=self.version)

    def _follow(self, waypoints: Sequence[Waypoint], tcp: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Motion f32 [B, 3] towards each row's waypoint, world frame, and gripper command [B], after advancing."""
        p, rows, last = self._p, torch.arange(len(tcp)), len(waypoints) - 1
        targets = torch.stack([w.target_m for w in waypoints])
        within = torch.tensor([w.within_m for w in waypoints])[self._reached]
        is_there = (targets[self._reached, rows] - tcp).norm(dim=1) < within
        self._stayed = self._stayed + (is_there | (self._stayed > 0)).long()
        goes_on = self._stayed > torch.tensor([w.steps for w in waypoints])[self._reached]
        self._reached = torch.where(goes_on, self._reached + 1, self._reached).clamp_max(last)
        self._stayed = torch.where(goes_on, 0, self._stayed)
        target = torch.where(p.wanders[:, None], self._wander(step), targets[self._reached, rows])
        cap = ACTION_LIMIT * (p.speed + 0.4).clamp_max(1.0) * self._choose([w.speed for w in waypoints])
        delta = (target - tcp) / self._robot.step_m * 0.7
        delta = delta * (cap / delta.abs().amax(dim=1).clamp_min(1e-6)).clamp_max(1.0)[:, None]  # a straight line
        gripper = torch.where(p.wanders, OPEN, self._choose([w.gripper for w in waypoints]))
        return torch.where((step < p.wait_steps)[:, None], 0.0, delta), gripper

    def _choose(self, values: Sequence[Tensor | float]) -> Tensor:
        """Of one value a waypoint, [B] or one number, that of each row's waypoint: f32 [B]."""
        rows = len(self._reached)
        return torch.stack([torch.as_tensor(v).expand(rows) for v in values])[self._reached, torch.arange(rows)]

    def _wander(self, step: Tensor) -> Tensor:
        """A slowly moving point in the air, f32 [B, 3], at least 12 cm beside and 10 cm above where the object lay."""
        assert self._start is not None
        place, phase = self._start[:, self._task.object_xyz], self._p.noise_phase
        angle = 2 * torch.pi * phase[:, 0] + (phase[:, 1] - 0.5) * 0.12 * step
        distance = 0.13 + 0.05 * phase[:, 2]
        x = place[:, 0] + distance * torch.cos(angle)
        y = place[:, 1] + distance * torch.sin(angle)
        return torch.stack([x.clamp(max=0.15), y, 0.1 + 0.15 * phase[:, 3] + 0.02 * torch.sin(0.3 * step)], dim=1)


def shift(position: Tensor, x: float | Tensor = 0.0, y: float | Tensor = 0.0, z: float | Tensor = 0.0) -> Tensor:
    """``position`` f32 [B, 3] moved by as many metres; each [B] or one number."""
    parts = [torch.as_tensor(part, dtype=position.dtype).expand(len(position)) for part in (x, y, z)]
    return position + torch.stack(parts, dim=1)


def at_height(position: Tensor, z: float | Tensor) -> Tensor:
    """``position`` f32 [B, 3] with another height in metres, [B] or one number."""
    height = torch.as_tensor(z, dtype=position.dtype).expand(len(position))
    return torch.cat([position[:, :2], height[:, None]], dim=1)
