"""Picking: PickCube-v1, its scripted expert and its perturbations, from privileged poses.

Above the cube with open fingers, down, close, and then straight to the goal in the air, where it stands still. Like
`push_pull` it plans a whole chunk open loop and measures anew at each chunk. The variants' parameters mean:
``progress`` is the share of the way to the goal after which it stops, ``lateral_m`` and ``height_m`` where it grasps
beside and above the cube, and ``lifts_at_end`` opens the fingers of a row that has stopped short.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worldloop.core.types import ActionChunk, Observation
from worldloop.simulators.maniskill.family import ACTION_LIMIT, CameraPose, ManiSkillTask, ScriptedExpert
from worldloop.simulators.maniskill.robots import ManiSkillRobot
from worldloop.simulators.perturbations import VariantParameters, smooth_noise

ABOVE_M = 0.08  # tcp above the cube before it goes down
GRASP_STEPS = 4  # environment steps that closing the fingers takes
AT_TARGET_M = 0.012
OPEN, CLOSED = 1.0, -1.0
APPROACH, DESCEND, GRASP, CARRY, FINISH = range(5)


@dataclass(frozen=True)
class PickTask(ManiSkillTask):
    """Grasp the cube and hold it still at a goal in the air."""

    def measure_gap(self, sim_state: Tensor) -> Tensor:
        return sim_state[:, self.object_xyz] - sim_state[:, self.goal_xyz]

    def make_scripted_policy(
        self, robot: ManiSkillRobot, parameters: VariantParameters, chunk_length: int
    ) -> PickScriptedPolicy:
        return PickScriptedPolicy(self, robot, parameters, chunk_length)


class PickScriptedPolicy(ScriptedExpert[ManiSkillTask]):
    """Grasps the cube and holds it at the goal; it keeps a phase per row."""

    carries_from = CARRY  # from this phase on what is held steers the arm

    def __init__(
        self, task: ManiSkillTask, robot: ManiSkillRobot, parameters: VariantParameters, chunk_length: int
    ) -> None:
        super().__init__(task, robot, parameters, chunk_length)
        rows = len(parameters.progress)
        self._phase = torch.zeros(rows, dtype=torch.long)
        self._held_for = torch.zeros(rows, dtype=torch.long)
        self._released_for = torch.zeros(rows, dtype=torch.long)
        self._began_m = torch.zeros(rows, 3)

    def act(self, observation: Observation, noise_key: Tensor | None = None) -> ActionChunk:
        """H actions f32 [B, H, 4], motion within +-``ACTION_LIMIT``; ``noise_key`` is not used."""
        state, tcp = self._read(observation)
        cube, goal = state[:, self._task.object_xyz], state[:, self._task.goal_xyz]
        starts = observation.env_step == 0
        self._phase = torch.where(starts, APPROACH, self._phase)
        self._held_for = torch.where(starts, 0, self._held_for)
        self._released_for = torch.where(starts, 0, self._released_for)
        self._began_m = torch.where(starts[:, None], cube, self._began_m)
        held = torch.where((self._phase >= self.carries_from)[:, None], cube - tcp, torch.zeros_like(cube))
        held = held * (held.norm(dim=1, keepdim=True) < 0.03)  # what is not in the fingers does not steer them
        actions = []
        for h in range(self._chunk_length):
            step = observation.env_step + h
            delta, gripper = self._plan(tcp, cube, goal - held, step)
            delta = delta + self._p.noise_scale[:, None] * smooth_noise(self._p.noise_phase, step, 3)
            delta = delta.clamp(-ACTION_LIMIT, ACTION_LIMIT)
            tcp = tcp + self._robot.step_m * delta
            actions.append(torch.cat([delta, gripper[:, None]], dim=1))
        return ActionChunk(torch.stack(actions, dim=1), policy_version=self.version)

    def _plan(self, tcp: Tensor, cube: Tensor, goal: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Motion f32 [B, 3] towards the present phase's target and gripper command [B], after advancing the phase."""
        p = self._p
        zero = torch.zeros_like(p.lateral_m)
        grasp = cube + torch.stack([zero, p.lateral_m, p.height_m], dim=1)
        above = torch.stack([grasp[:, 0], grasp[:, 1], cube[:, 2] + torch.clamp(p.height_m, min=ABOVE_M)], dim=1)
        # the cube moves with the fingers: the way is measured from where it lay
        share = torch.where(p.progress < 1, p.progress, 1.0)[:, None]
        carry = self._began_m + share * (goal - self._began_m)
        self._advance_phase(tcp, above, grasp, carry)
        phase = self._phase[:, None]
        target = torch.where(phase == APPROACH, above, torch.where(phase == DESCEND, grasp, tcp))
        target = torch.where(phase >= CARRY, carry, target)
        target = torch.where(p.wanders[:, None], self._wander(cube, step), target)
        cap = (ACTION_LIMIT * (p.speed + 0.4).clamp_max(1.0))[:, None]
        delta = ((target - tcp) / self._robot.step_m * 0.7).clamp(-cap, cap)
        waits = step < p.wait_steps
        drops = (self._phase == FINISH) & (p.progress < 1) & p.lifts_at_end
        gripper = torch.where((self._phase >= GRASP) & ~drops & ~p.wanders, CLOSED, OPEN)
        return torch.where(waits[:, None], torch.zeros_like(delta), delta), gripper

    def _advance_phase(self, tcp: Tensor, above: Tensor, grasp: Tensor, carry: Tensor) -> None:
        phase = self._phase

        def near(target: Tensor) -> Tensor:
            return (target - tcp).norm(dim=1) < AT_TARGET_M

        phase = torch.where((phase == APPROACH) & near(above), DESCEND, phase)
        phase = torch.where((phase == DESCEND) & near(grasp), GRASP, phase)
        self._held_for = self._held_for + (phase == GRASP).long()
        phase = torch.where((phase == GRASP) & (self._held_for > GRASP_STEPS), CARRY, phase)
        self._phase = torch.where((phase == CARRY) & near(carry), FINISH, phase)

    def _wander(self, cube: Tensor, step: Tensor) -> Tensor:
        """A slowly moving point in the air that keeps at least 12 cm from the cube's place."""
        phase = self._p.noise_phase
        angle = 2 * torch.pi * phase[:, 0] + (phase[:, 1] - 0.5) * 0.12 * step
        distance = 0.13 + 0.05 * phase[:, 2]
        x = (cube[:, 0] + distance * torch.cos(angle)).clamp(-0.25, 0.15)
        y = cube[:, 1] + distance * torch.sin(angle)
        return torch.stack([x, y, 0.05 + 0.2 * phase[:, 3] + 0.02 * torch.sin(0.3 * step)], dim=1)


PICK_CUBE = PickTask(
    id="PickCube-v1",
    instructions=(
        "pick up the red cube and hold it at the green ball",
        "grasp the red block and lift it to the green sphere",
        "take the red cube up to the green ball and keep it there",
    ),
    # Wider than for pushing: the cube may have to go 0.3 m up.
    camera=CameraPose(eye_m=(0.45, 0.45, 0.6), target_m=(0.0, 0.0, 0.15), fov_rad=0.62),
    goal_actor="goal_site",
    goal_radius_m=0.025,
    max_episode_steps=50,
    # ManiSkill tells every observation mode where the goal is; one camera could not say how far away it is.
    tells_goal=True,
)
