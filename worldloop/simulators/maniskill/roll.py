"""Rolling: RollBall-v1, its scripted expert and its perturbations, from privileged poses.

The arm stands at the end of the table. The expert puts the ball down straight before the goal, comes down behind it
with half-open fingers, pushes it with both and stops; the ball rolls on alone. A push at an angle would be shorter and
misses: a ball that is let go loses up to half of its motion sideways. The variants' parameters mean: ``progress`` is
the speed of the push as a share of the expert's, `ASIDE` times ``lateral_m`` how far beside the goal it aims, and
``height_m`` how far above the ball the hand works. ``lifts_at_end`` is not used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from worldloop.core.interfaces import Actor
from worldloop.simulators.maniskill.family import CameraPose, ManiSkillTask
from worldloop.simulators.maniskill.robots import ManiSkillRobot
from worldloop.simulators.maniskill.waypoints import (
    OPEN,
    Scene,
    Waypoint,
    WaypointPolicy,
    at_height,
    shift,
)
from worldloop.simulators.perturbations import VariantParameters

BALL_M = 0.035  # radius
START_Y_M = 0.56  # where the ball is put down before the push
HOLD = 0.55  # the command to the fingers that holds the ball gently: let go of it, it stays where it is
LET_GO = 0.85  # and that just lets go of it
HALF_OPEN = 0.6  # the command to the fingers between which the ball lies as in a fork
BEHIND_M = 0.08  # the tcp behind the ball before the push
TOUCH_M = 0.02  # and when the ball lies between the fingers
PUSH_M = 0.25  # how far it is pushed
ASIDE = 2.5  # the goal is wider than the shifts that suit a cube
ABOVE_M = 0.12  # tcp above the table before it goes down to the ball
HIGH_M = 0.13  # tcp above the table on its way over the ball
GRASPED = 3  # waypoints until the ball is held
PUT_DOWN = 6  # and until it lies in front of the goal


@dataclass(frozen=True)
class RollTask(ManiSkillTask):
    """Roll the ball across the table into the goal region."""

    def make_scripted_policy(self, robot: ManiSkillRobot, parameters: VariantParameters, chunk_length: int) -> Actor:
        return RollScriptedPolicy(self, robot, parameters, chunk_length)


class RollScriptedPolicy(WaypointPolicy):
    """Rolls the ball to the goal; one variant per row."""

    def _list_waypoints(self, scene: Scene) -> Sequence[Waypoint]:
        task, p = self._task, self._p
        aim, ball = shift(scene.state[:, task.goal_xyz], x=ASIDE * p.lateral_m), scene.state[:, task.object_xyz]
        low = BALL_M + p.height_m
        held = scene.find_held(ball, GRASPED, torch.zeros_like(ball))
        put = torch.stack([aim[:, 0], torch.full_like(low, START_Y_M), low], dim=1)
        lies = at_height(torch.where((scene.reached >= PUT_DOWN)[:, None], ball, put), low)
        behind = shift(lies, y=BEHIND_M)
        # between the fingers the ball goes where the hand goes
        line = at_height(aim - ball, 0.0)
        left = (ball[:, 1] - START_Y_M + PUSH_M).clamp_min(0.0)
        end = at_height(scene.tcp + (left / line[:, 1].abs().clamp_min(0.1))[:, None] * line, low)
        speed = torch.where(p.progress < 1, p.progress, 1.0)
        return (
            Waypoint(at_height(ball, ABOVE_M), OPEN),
            Waypoint(at_height(ball, low), OPEN),
            Waypoint(at_height(ball, low), HOLD, steps=3),
            Waypoint(shift(put, z=0.005) - held, HOLD),
            Waypoint(put - held, HOLD, within_m=0.006, steps=5),
            Waypoint(put - held, LET_GO, steps=3),
            Waypoint(at_height(put, HIGH_M), OPEN),
            Waypoint(at_height(behind, HIGH_M), HALF_OPEN),
            Waypoint(behind, HALF_OPEN),
            Waypoint(shift(lies, y=TOUCH_M), HALF_OPEN, speed=0.5),
            Waypoint(end, HALF_OPEN, within_m=0.05, speed=speed),
            Waypoint(at_height(end, 0.15), HALF_OPEN),
        )


ROLL_BALL = RollTask(
    id="RollBall-v1",
    instructions=(
        "roll the blue ball onto the target",
        "push the blue ball so that it rolls across the table to the target",
        "send the blue sphere rolling to the red and white target",
    ),
    camera=CameraPose(eye_m=(1.0, -1.5, 2.0), target_m=(-0.1, -0.02, 0.0), fov_rad=0.68),
    goal_actor="goal_region",
    goal_radius_m=0.1,
    max_episode_steps=180,
    arm_yaw_rad=-math.pi / 2,
    has_cube=False,
)
