"""The ManiSkill tasks: instruction, camera, goal, and where each pose lies in the flat simulator state.

The flat state is ManiSkill's ``get_state()`` of a tabletop scene with a Panda arm, followed by one number, the
environment step, so that a state restarts an episode exactly, time limit included:

    table 13 | cube 13 | goal 13 | robot root 13, qpos 9, qvel 9 | env_step 1        (D = 71)

An actor's 13 are position 3, quaternion wxyz 4, linear velocity 3, angular velocity 3. No import of mani_skill here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

MANISKILL_STATE_DIM = 70
STATE_DIM = MANISKILL_STATE_DIM + 1
CUBE_XYZ = slice(13, 16)
GOAL_XYZ = slice(26, 29)
QPOS = slice(52, 61)
QVEL = slice(61, 70)
TCP_IN_PROPRIO = slice(18, 21)
ACTION_LIMIT = 0.6  # the range of motion that scripted policies use and policies discretise
STEP_M = 0.04  # metres the tcp moves per step and unit of action


@dataclass(frozen=True)
class CameraPose:
    """A camera that looks from ``eye_m`` to ``target_m`` (metres, world frame), vertical field of view in radians."""

    eye_m: tuple[float, float, float]
    target_m: tuple[float, float, float]
    fov_rad: float


@dataclass(frozen=True)
class ManiSkillTask:
    """One task.

    ``slide``: move the cube along the table, along x by the sign ``direction``, until its centre is in the goal region.
    ``lift``: grasp the cube and hold it still at a goal in the air.
    """

    name: str
    instruction: str
    kind: Literal["slide", "lift"]
    goal_radius_m: float
    camera: CameraPose
    max_episode_steps: int
    direction: float = 0.0
    goal_offset_m: float = 0.0


# From the front left and above, close: both table axes are seen at full resolution, and so are the fingers beside the
# cube.
_PUSH_CAMERA = CameraPose(eye_m=(0.3, 0.33, 0.58), target_m=(0.05, 0.0, 0.02), fov_rad=0.5)

# From the left and a little behind the cube: a gripper that pulls stands in front of it, and would hide it there.
_PULL_CAMERA = CameraPose(eye_m=(-0.2, 0.48, 0.5), target_m=(-0.07, 0.0, 0.03), fov_rad=0.6)

# Wider: the cube may have to go 0.3 m up.
_LIFT_CAMERA = CameraPose(eye_m=(0.45, 0.45, 0.6), target_m=(0.0, 0.0, 0.15), fov_rad=0.62)

TASKS: dict[str, ManiSkillTask] = {
    task.name: task
    for task in (
        ManiSkillTask(
            "PushCube-v1", "push the blue cube forward onto the target", "slide", goal_radius_m=0.1,
            camera=_PUSH_CAMERA, max_episode_steps=50, direction=1.0, goal_offset_m=0.2,
        ),
        ManiSkillTask(
            "PullCube-v1", "pull the blue cube backward onto the target", "slide", goal_radius_m=0.1,
            camera=_PULL_CAMERA, max_episode_steps=50, direction=-1.0, goal_offset_m=0.2,
        ),
        ManiSkillTask(
            "PickCube-v1", "pick up the red cube and hold it at the green ball", "lift", goal_radius_m=0.025,
            camera=_LIFT_CAMERA, max_episode_steps=50,
        ),
    )
}  # fmt: skip


def compute_distance_m(sim_state: Tensor, task: ManiSkillTask) -> Tensor:
    """Distance f32 [B] of the cube's centre to the edge of the goal region, on the table or in the air, 0 inside."""
    gap = sim_state[:, CUBE_XYZ] - sim_state[:, GOAL_XYZ]
    if task.kind == "slide":
        gap = gap[:, :2]
    return (torch.linalg.norm(gap, dim=1) - task.goal_radius_m).clamp_min(0.0)
