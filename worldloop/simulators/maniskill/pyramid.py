"""Building a pyramid: StackPyramid-v1, its scripted expert and its perturbations, from privileged poses.

The expert puts the red cube beside the green one and the blue cube on top of both. The variants' parameters mean:
``progress`` is the share of the blue cube's way after which it stops; ``lifts_at_end`` then lets go of it.
``lateral_m`` and ``height_m`` are where the blue cube is grasped, beside and above its middle; with ``lifts_at_end`` it
is grasped well and put down beside its place instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worldloop.core.interfaces import Actor
from worldloop.simulators.maniskill.family import CameraPose, ManiSkillTask
from worldloop.simulators.maniskill.robots import ManiSkillRobot
from worldloop.simulators.maniskill.stack import CUBE_M, stop_short
from worldloop.simulators.maniskill.waypoints import (
    CLOSED,
    GRASP_STEPS,
    OPEN,
    RELEASE_STEPS,
    Scene,
    Waypoint,
    WaypointPolicy,
    at_height,
    shift,
)
from worldloop.simulators.perturbations import VariantParameters

REACH_XY_M = 0.0566 + 0.005  # between the centres of two cubes that count as neighbours
BESIDE_M = 0.05  # between the centres of the lower cubes as the expert puts them
LIFT_M = 0.07  # how far above the highest cube a cube is carried
AT_PLACE_M = 0.006
BASE_DONE = 8  # waypoints until the red cube is in its place


@dataclass(frozen=True)
class PyramidTask(ManiSkillTask):
    """Put the red cube, ``support``, beside the green one, ``goal``, and the blue one, ``object``, on top of both."""

    actors = ("table", "support", "goal", "object")
    marked = ("object", "support", "goal")

    def measure_gap(self, sim_state: Tensor) -> Tensor:
        """f32 [B, 3]: from above the middle of the two lower cubes to the blue one."""
        support, goal = sim_state[:, self.find_xyz("support")], sim_state[:, self.goal_xyz]
        return sim_state[:, self.object_xyz] - shift((support + goal) / 2, z=CUBE_M)

    def measure_distance_m(self, sim_state: Tensor) -> Tensor:
        """What the red cube lacks beside the green one plus what the blue one lacks above both, f32 [B] in metres."""
        support, goal = sim_state[:, self.find_xyz("support")], sim_state[:, self.goal_xyz]
        top = sim_state[:, self.object_xyz]
        beside = _measure_xy(support, goal)
        above = torch.maximum(_measure_xy(top, support), _measure_xy(top, goal))
        height = (self.measure_gap(sim_state)[:, 2].abs() - CUBE_M / 2).clamp_min(0.0)
        return beside + torch.hypot(above, height)

    def make_scripted_policy(self, robot: ManiSkillRobot, parameters: VariantParameters, chunk_length: int) -> Actor:
        return PyramidScriptedPolicy(self, robot, parameters, chunk_length)


def _measure_xy(a: Tensor, b: Tensor) -> Tensor:
    return ((a - b)[:, :2].norm(dim=1) - REACH_XY_M).clamp_min(0.0)


class PyramidScriptedPolicy(WaypointPolicy):
    """Builds the pyramid; one variant per row."""

    def _list_waypoints(self, scene: Scene) -> Sequence[Waypoint]:
        task, p = self._task, self._p
        red, green = scene.state[:, task.find_xyz("support")], scene.state[:, task.goal_xyz]
        blue, lay = scene.state[:, task.object_xyz], scene.start[:, task.object_xyz]
        side = torch.where(lay[:, 0] > scene.start[:, task.goal_xyz][:, 0], -1.0, 1.0)  # away from the blue cube
        beside = shift(at_height(green, CUBE_M / 2), x=side * BESIDE_M)
        misplaces = p.lifts_at_end
        grasp = shift(blue, y=torch.where(misplaces, 0.0, p.lateral_m), z=p.height_m)
        top = shift((red + green) / 2, y=torch.where(misplaces, p.lateral_m, 0.0), z=CUBE_M)
        way = stop_short((lay, at_height(lay, top[:, 2] + LIFT_M), shift(top, z=LIFT_M), top), p.progress)
        stops = p.progress < 1
        base = _pick_and_place(scene, red, red, _list_way(scene.start[:, task.find_xyz("support")], beside), 0)
        tower = _pick_and_place(scene, blue, grasp, way, len(base), torch.where(stops & ~p.lifts_at_end, CLOSED, OPEN))
        if stops.any():
            end = tower[-1]
            tower = (*tower[:-1], Waypoint(torch.where(stops[:, None], tower[-2].target_m, end.target_m), end.gripper))
        return (*base, *tower)


def _list_way(lay: Tensor, place: Tensor) -> tuple[Tensor, ...]:
    """Up, across and down to ``place``, each f32 [B, 3]."""
    height = place[:, 2] + LIFT_M
    return at_height(lay, height), at_height(place, height), place


def _pick_and_place(
    scene: Scene, cube: Tensor, grasp: Tensor, way: Sequence[Tensor], first: int, release: Tensor | float = OPEN
) -> tuple[Waypoint, ...]:
    """Eight waypoints from ``first`` on: grasp the cube, take it along ``way``, let go, and move up."""
    held = scene.find_held(cube, first + 3, cube - grasp)
    up, over, down = (point - held for point in way)
    return (
        Waypoint(shift(grasp, z=0.08), OPEN),
        Waypoint(grasp, OPEN),
        Waypoint(grasp, CLOSED, steps=GRASP_STEPS),
        Waypoint(up, CLOSED),
        Waypoint(over, CLOSED),
        Waypoint(down, CLOSED, within_m=AT_PLACE_M),
        Waypoint(down, release, steps=RELEASE_STEPS),
        Waypoint(over, release),
    )


STACK_PYRAMID = PyramidTask(
    id="StackPyramid-v1",
    instructions=(
        "put the red cube beside the green cube and the blue cube on top of both",
        "build a pyramid: the red and the green block side by side, the blue one above them",
        "move the red cube next to the green one, then stack the blue cube on the two",
    ),
    camera=CameraPose(eye_m=(0.45, 0.45, 0.55), target_m=(0.0, 0.0, 0.04), fov_rad=0.65),
    goal_actor="",
    goal_radius_m=0.05,
    max_episode_steps=150,
)
