"""Pushing and pulling: PushCube-v1, PullCube-v1, their scripted expert and its perturbations, from privileged poses.

The arm moves as a person would: above the table to behind the cube, down, then straight through it to the goal.
It plans a whole chunk open loop by integrating its own commands (`pd_ee_delta_pos`: an action of 1 commands 0.1 m,
of which the arm realises about 0.04 m within the step), and measures anew at each chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worldloop.core.types import ActionChunk, Observation
from worldloop.simulators.maniskill.family import ACTION_LIMIT, CameraPose, ManiSkillTask, ScriptedExpert
from worldloop.simulators.maniskill.robots import ManiSkillRobot
from worldloop.simulators.perturbations import VariantParameters, smooth_noise

TRAVEL_Z_M = 0.085  # tcp height while moving above the table
PUSH_Z_M = 0.02  # tcp height while pushing, the cube's middle
CONTACT_M = 0.032  # tcp to cube centre while pushing
CLEARANCE_M = 0.055  # tcp to cube centre, behind it, before pushing
APPROACH, DESCEND, PUSH, FINISH = range(4)


@dataclass(frozen=True)
class PushPullTask(ManiSkillTask):
    """Move the cube along the table until its centre is in the goal region.

    It has to go along x by the sign ``direction``; the goal's centre is ``goal_offset_m`` from where it begins.
    """

    direction: float = 1.0
    goal_offset_m: float = 0.2

    def make_scripted_policy(
        self, robot: ManiSkillRobot, parameters: VariantParameters, chunk_length: int
    ) -> PushPullScriptedPolicy:
        return PushPullScriptedPolicy(self, robot, parameters, chunk_length)


class PushPullScriptedPolicy(ScriptedExpert[PushPullTask]):
    """Pushes or pulls the cube; it keeps a phase per row."""

    def __init__(
        self, task: PushPullTask, robot: ManiSkillRobot, parameters: VariantParameters, chunk_length: int
    ) -> None:
        super().__init__(task, robot, parameters, chunk_length)
        self._phase = torch.zeros(len(parameters.progress), dtype=torch.long)

    def act(self, observation: Observation, noise_key: Tensor | None = None) -> ActionChunk:
        """H actions f32 [B, H, 4] within +-0.6; the randomness is in the row keys, ``noise_key`` is not used."""
        state, tcp = self._read(observation)
        cube, goal = state[:, self._task.object_xyz], state[:, self._task.goal_xyz]
        self._phase = torch.where(observation.env_step == 0, APPROACH, self._phase)
        actions = []
        for h in range(self._chunk_length):
            step = observation.env_step + h
            delta = self._wander(tcp, cube, step) if self._p.wanders.all() else self._plan(tcp, cube, goal, step)
            if self._p.wanders.any() and not self._p.wanders.all():
                delta = torch.where(self._p.wanders[:, None], self._wander(tcp, cube, step), delta)
            delta = delta + self._p.noise_scale[:, None] * smooth_noise(self._p.noise_phase, step, 3)
            delta = self._limit(delta, tcp)
            tcp = tcp + self._robot.step_m * delta
            tcp[:, 2] = tcp[:, 2].clamp_min(0.0)
            actions.append(torch.cat([delta, torch.full((len(tcp), 1), -ACTION_LIMIT)], dim=1))
        return ActionChunk(torch.stack(actions, dim=1), policy_version=self.version)

    def _plan(self, tcp: Tensor, cube: Tensor, goal: Tensor, step: Tensor) -> Tensor:
        """The action f32 [B, 3] towards the present phase's target, after advancing the phase."""
        p, d = self._p, self._task.direction
        start_x = goal[:, 0] - d * self._task.goal_offset_m
        line_y = goal[:, 1] + p.lateral_m
        way = self._task.goal_offset_m - self._task.goal_radius_m
        final_x = start_x + d * (p.progress * way - CONTACT_M)
        behind_x = start_x - d * CLEARANCE_M
        work_z = torch.where(p.height_m > 0, p.height_m, PUSH_Z_M)
        travel_z = torch.maximum(work_z, torch.tensor(TRAVEL_Z_M))
        is_behind = d * (tcp[:, 0] - start_x) < -(CLEARANCE_M - 0.010)
        self._advance_phase(tcp, is_behind, line_y, work_z, d * (final_x - tcp[:, 0]))
        phase = self._phase
        target_z = torch.where(phase == APPROACH, travel_z, work_z)
        target_z = torch.where((phase == FINISH) & p.lifts_at_end, travel_z + 0.04, target_z)
        target_x = torch.where(phase >= PUSH, final_x, behind_x)
        delta = (torch.stack([target_x, line_y, target_z], dim=1) - tcp) / self._robot.step_m * 0.7
        pushing = (phase == PUSH) & (p.progress > 1)  # no braking when the cube is to go all the way
        delta[:, 0] = torch.where(pushing, d * ACTION_LIMIT, delta[:, 0])
        cap = (ACTION_LIMIT * p.speed)[:, None]
        delta = delta.clamp(-cap, cap)
        return torch.where((step < p.wait_steps)[:, None], torch.zeros_like(delta), delta)

    def _advance_phase(
        self, tcp: Tensor, is_behind: Tensor, line_y: Tensor, work_z: Tensor, remaining_x: Tensor
    ) -> None:
        phase = self._phase
        aligned = (tcp[:, 1] - line_y).abs() < 0.015
        phase = torch.where((phase == APPROACH) & is_behind & aligned, DESCEND, phase)
        phase = torch.where((phase == DESCEND) & (tcp[:, 2] < work_z + 0.012), PUSH, phase)
        self._phase = torch.where((phase == PUSH) & (remaining_x < 0.003), FINISH, phase)

    def _wander(self, tcp: Tensor, cube: Tensor, step: Tensor) -> Tensor:
        """Towards a slowly moving point on the table that keeps at least 12 cm from the cube."""
        phase = self._p.noise_phase
        angle = 2 * torch.pi * phase[:, 0] + (phase[:, 1] - 0.5) * 0.12 * step
        distance = 0.13 + 0.08 * phase[:, 2]
        x = (cube[:, 0] + distance * torch.cos(angle)).clamp(-0.25, 0.15)
        y = cube[:, 1] + distance * torch.sin(angle)
        z = 0.03 + 0.14 * phase[:, 3] + 0.02 * torch.sin(0.3 * step)
        delta = (torch.stack([x, y, z], dim=1) - tcp) / self._robot.step_m * 0.5
        return delta.clamp(-ACTION_LIMIT * 0.7, ACTION_LIMIT * 0.7)

    def _limit(self, delta: Tensor, tcp: Tensor) -> Tensor:
        """Within the action range, and forward no further than inverse kinematics can reach."""
        delta = delta.clamp(-ACTION_LIMIT, ACTION_LIMIT)
        reach = ((self._robot.reach_x_m - tcp[:, 0]) / 0.1).clamp(-0.2, ACTION_LIMIT)
        return torch.cat([torch.minimum(delta[:, :1], reach[:, None]), delta[:, 1:]], dim=1)


PUSH_CUBE = PushPullTask(
    id="PushCube-v1",
    instructions=(
        "push the blue cube forward onto the target",
        "slide the blue block away from the robot to the target",
        "move the blue cube ahead until it lies on the target",
    ),
    # From the front left and above, close: both table axes are seen at full resolution, and so are the fingers beside
    # the cube.
    camera=CameraPose(eye_m=(0.3, 0.33, 0.58), target_m=(0.05, 0.0, 0.02), fov_rad=0.5),
    goal_actor="goal_region",
    goal_radius_m=0.1,
    max_episode_steps=50,
    direction=1.0,
)

PULL_CUBE = PushPullTask(
    id="PullCube-v1",
    instructions=(
        "pull the blue cube backward onto the target",
        "drag the blue block towards the robot to the target",
        "move the blue cube back until it lies on the target",
    ),
    # From the left and a little behind the cube: a gripper that pulls stands in front of it, and would hide it there.
    camera=CameraPose(eye_m=(-0.2, 0.48, 0.5), target_m=(-0.07, 0.0, 0.03), fov_rad=0.6),
    goal_actor="goal_region",
    goal_radius_m=0.1,
    max_episode_steps=50,
    direction=-1.0,
)
