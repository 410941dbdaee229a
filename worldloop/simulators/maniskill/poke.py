"""Poking: PokeCube-v1, its scripted expert and its perturbations, from privileged poses.

The expert grasps the peg at its back, moves it sideways until it points at the cube, pushes the cube to the goal with
the peg's head, and stands still. The variants' parameters mean: ``progress`` is the share of the way to the goal region
after which it stops, and ``lifts_at_end`` lets go of the peg there. ``lateral_m`` is how far beside the cube's middle
the peg points, ``height_m`` how far above the table it is carried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from worldloop.core.interfaces import Actor
from worldloop.simulators.maniskill.family import CameraPose, ManiSkillTask
from worldloop.simulators.maniskill.robots import ManiSkillRobot
from worldloop.simulators.maniskill.waypoints import (
    CLOSED,
    GRASP_STEPS,
    OPEN,
    Scene,
    Waypoint,
    WaypointPolicy,
    at_height,
    shift,
)
from worldloop.simulators.perturbations import VariantParameters

PEG_HALF_M = 0.12  # length
PEG_Z_M = 0.025  # the peg's middle when it lies on the table
CUBE_HALF_M = 0.02
GRASP_X_M = -0.08  # from the peg's middle to where it is grasped
LIFT_M = 0.006
INSIDE_M = 0.02  # how far within the goal region the cube is to end
GRASPED = 3  # waypoints until the peg is held


@dataclass(frozen=True)
class PokeTask(ManiSkillTask):
    """Push the cube into the goal region with the head of a peg, and stand still."""

    actors = ("table", "object", "tool", "goal")
    marked = ("object", "tool", "goal")

    def make_scripted_policy(self, robot: ManiSkillRobot, parameters: VariantParameters, chunk_length: int) -> Actor:
        return PokeScriptedPolicy(self, robot, parameters, chunk_length)


class PokeScriptedPolicy(WaypointPolicy):
    """Pushes the cube with the peg; one variant per row."""

    def _list_waypoints(self, scene: Scene) -> Sequence[Waypoint]:
        task, p = self._task, self._p
        peg, goal = scene.state[:, task.find_xyz("tool")], scene.state[:, task.goal_xyz]
        lay, began = scene.start[:, task.find_xyz("tool")], scene.start[:, task.object_xyz]
        grasp = at_height(shift(peg, x=GRASP_X_M), PEG_Z_M)
        held = scene.find_held(peg, GRASPED, peg - grasp)
        # where the peg's middle has to be
        height = PEG_Z_M + torch.where(p.height_m > 0, p.height_m, LIFT_M)
        aligned = at_height(torch.stack([lay[:, 0], goal[:, 1] + p.lateral_m, goal[:, 2]], dim=1), height)
        touch_x = began[:, 0] - CUBE_HALF_M - PEG_HALF_M
        way = goal[:, 0] - began[:, 0] - task.goal_radius_m
        share = torch.where(p.progress < 1, p.progress, 1 + INSIDE_M / way)
        poked = torch.cat([(touch_x + share * way)[:, None], aligned[:, 1:]], dim=1)
        drops = (p.progress < 1) & p.lifts_at_end
        return (
            Waypoint(at_height(grasp, 0.1), OPEN),
            Waypoint(grasp, OPEN),
            Waypoint(grasp, CLOSED, steps=GRASP_STEPS),
            Waypoint(at_height(aligned, height) - held, CLOSED),
            Waypoint(poked - held, CLOSED, within_m=0.004),
            Waypoint(poked - held, torch.where(drops, OPEN, CLOSED)),
        )


POKE_CUBE = PokeTask(
    id="PokeCube-v1",
    instructions=(
        "poke the red cube onto the target with the blue peg",
        "use the blue stick to push the red block to the target",
        "take the blue peg and shove the red cube ahead until it lies on the target",
    ),
    camera=CameraPose(eye_m=(0.3, 0.75, 0.75), target_m=(0.13, 0.0, 0.04), fov_rad=0.62),
    goal_actor="goal_region",
    goal_radius_m=0.05,
    max_episode_steps=50,
)
