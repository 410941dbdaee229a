"""Stacking and placing: StackCube-v1, PlaceSphere-v1, their scripted expert and its perturbations.

The expert picks the object up as in `pick`, lifts it, carries it above its place, lowers it, lets go and moves up.
The way from where the object lay to its place is LIFT, CARRY and LOWER in one. The variants' parameters mean:
``progress`` is the share of that way after which it stops, ``lateral_m`` and ``height_m`` where it grasps beside and
above the object. ``lifts_at_end`` opens the fingers of a row that has stopped short; a row of ``lateral_m`` grasps well
instead, and puts the object down beside the middle.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from worldloop.simulators.maniskill.family import ACTION_LIMIT, CameraPose, ManiSkillTask
from worldloop.simulators.maniskill.pick import (
    ABOVE_M,
    APPROACH,
    AT_TARGET_M,
    CLOSED,
    DESCEND,
    GRASP,
    GRASP_STEPS,
    OPEN,
    PickScriptedPolicy,
)
from worldloop.simulators.maniskill.robots import ManiSkillRobot
from worldloop.simulators.perturbations import VariantParameters

CUBE_M = 0.04  # edge of both cubes
REACH_XY_M, REACH_Z_M = 0.0283 + 0.005, 0.005  # what ManiSkill's success allows around the place
LIFT_M = 0.07  # how far above its place the cube is carried
AT_PLACE_M = 0.006
RELEASE_STEPS = 3  # environment steps that opening the fingers takes
LIFT, CARRY, LOWER, RELEASE, FINISH = range(3, 8)


@dataclass(frozen=True)
class StackTask(ManiSkillTask):
    """Put the object onto another one and let go of it; the other one is ``goal`` in the scene.

    ``above_m`` is the object's centre above the other's when it is in its place. ``reach_xy_m`` and ``reach_z_m`` are
    what ManiSkill's success allows around the place.
    """

    above_m: float = CUBE_M
    reach_xy_m: float = REACH_XY_M
    reach_z_m: float = REACH_Z_M

    def measure_gap(self, sim_state: Tensor) -> Tensor:
        gap = sim_state[:, self.object_xyz] - sim_state[:, self.goal_xyz]
        return gap - torch.tensor([0.0, 0.0, self.above_m])

    def measure_distance_m(self, sim_state: Tensor) -> Tensor:
        """Distance f32 [B] of the object's centre to the flat cylinder in which it is in its place, 0 inside."""
        gap = self.measure_gap(sim_state)
        beside = (gap[:, :2].norm(dim=1) - self.reach_xy_m).clamp_min(0.0)
        above = (gap[:, 2].abs() - self.reach_z_m).clamp_min(0.0)
        return torch.hypot(beside, above)

    def make_scripted_policy(
        self, robot: ManiSkillRobot, parameters: VariantParameters, chunk_length: int
    ) -> StackScriptedPolicy:
        return StackScriptedPolicy(self, robot, parameters, chunk_length)


class StackScriptedPolicy(PickScriptedPolicy):
    """Puts one object onto the other; one variant per row. See `PickScriptedPolicy` for what a row keeps."""

    carries_from = LIFT

    def __init__(
        self, task: StackTask, robot: ManiSkillRobot, parameters: VariantParameters, chunk_length: int
    ) -> None:
        super().__init__(task, robot, parameters, chunk_length)
        self._above_m = torch.tensor([0.0, 0.0, task.above_m])

    def _plan(self, tcp: Tensor, cube: Tensor, goal: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """As in `PickScriptedPolicy`; ``goal`` is where the tcp is when the other object's centre is in the fingers."""
        p = self._p
        zero = torch.zeros_like(p.lateral_m)
        beside = torch.stack([zero, p.lateral_m, zero], dim=1)
        misplaces = p.lifts_at_end[:, None]
        grasp = cube + torch.where(misplaces, 0.0, beside) + torch.stack([zero, zero, p.height_m], dim=1)
        above = torch.stack([grasp[:, 0], grasp[:, 1], cube[:, 2] + torch.clamp(p.height_m, min=ABOVE_M)], dim=1)
        placed = goal + torch.where(misplaces, beside, 0.0) + self._above_m
        up, over = self._began_m.clone(), placed.clone()
        up[:, 2] = over[:, 2] = placed[:, 2] + LIFT_M
        way = stop_short((self._began_m, up, over, placed), p.progress)
        self._advance(tcp, above, grasp, way)
        phase = self._phase[:, None]
        target = torch.where(phase == APPROACH, above, torch.where(phase == DESCEND, grasp, tcp))
        for number, point in zip((LIFT, CARRY, LOWER), way, strict=True):
            target = torch.where(phase == number, point, target)
        target = torch.where(phase == FINISH, over, target)
        stopped = (p.progress < 1) & (self._phase >= RELEASE)
        target = torch.where(stopped[:, None], way[2], target)
        target = torch.where(p.wanders[:, None], self._wander(cube, step), target)
        cap = (ACTION_LIMIT * (p.speed + 0.4).clamp_max(1.0))[:, None]
        delta = ((target - tcp) / self._robot.step_m * 0.7).clamp(-cap, cap)
        is_open = (self._phase < GRASP) | (self._phase >= RELEASE) & ~(stopped & ~p.lifts_at_end) | p.wanders
        waits = step < p.wait_steps
        return torch.where(waits[:, None], 0.0, delta), torch.where(is_open, OPEN, CLOSED)

    def _advance(self, tcp: Tensor, above: Tensor, grasp: Tensor, way: tuple[Tensor, ...]) -> None:
        phase = self._phase

        def near(target: Tensor, within_m: float = AT_TARGET_M) -> Tensor:
            return (target - tcp).norm(dim=1) < within_m

        phase = torch.where((phase == APPROACH) & near(above), DESCEND, phase)
        phase = torch.where((phase == DESCEND) & near(grasp), GRASP, phase)
        self._held_for = self._held_for + (phase == GRASP).long()
        phase = torch.where((phase == GRASP) & (self._held_for > GRASP_STEPS), LIFT, phase)
        phase = torch.where((phase == LIFT) & near(way[0]), CARRY, phase)
        phase = torch.where((phase == CARRY) & near(way[1]), LOWER, phase)
        phase = torch.where((phase == LOWER) & near(way[2], AT_PLACE_M), RELEASE, phase)
        self._released_for = torch.where(phase == RELEASE, self._released_for + 1, 0)
        self._phase = torch.where((phase == RELEASE) & (self._released_for > RELEASE_STEPS), FINISH, phase)


def stop_short(points: tuple[Tensor, ...], progress: Tensor) -> tuple[Tensor, ...]:
    """The points [B, 3] after the first, cut at the share ``progress`` [B] of the way along them; 1 and more: all.

    Points beyond the cut are where it is.
    """
    lengths = torch.stack([(b - a).norm(dim=1) for a, b in pairwise(points)], dim=1)
    left = progress * lengths.sum(1)
    left = torch.where(progress < 1, left, torch.inf)
    cut, now = [], points[0]
    for number, end in enumerate(points[1:]):
        share = (left / lengths[:, number].clamp_min(1e-6)).clamp(0, 1)
        now = now + share[:, None] * (end - now)
        left = left - lengths[:, number]
        cut.append(now)
    return tuple(cut)


STACK_CUBE = StackTask(
    id="StackCube-v1",
    instructions=(
        "put the red cube onto the green cube",
        "stack the red block on top of the green one",
        "pick up the red cube, place it on the green cube and let go",
    ),
    camera=CameraPose(eye_m=(0.45, 0.45, 0.55), target_m=(0.0, 0.0, 0.06), fov_rad=0.7),
    goal_actor="",
    goal_radius_m=REACH_XY_M,
    max_episode_steps=60,
)

SPHERE_M = 0.02  # radius
BIN_FLOOR_M = 0.0025  # of the bin, above its own centre

PLACE_SPHERE = StackTask(
    id="PlaceSphere-v1",
    instructions=(
        "put the blue ball into the bin",
        "place the blue sphere in the grey tray and let go",
        "pick up the blue ball and drop it into the small box",
    ),
    camera=CameraPose(eye_m=(0.45, 0.4, 0.5), target_m=(0.0, 0.0, 0.05), fov_rad=0.55),
    goal_actor="",
    goal_radius_m=0.03,
    max_episode_steps=60,
    above_m=BIN_FLOOR_M + SPHERE_M,
    has_cube=False,
    reach_xy_m=0.005,
    reach_z_m=0.005,
)
