"""What every ManiSkill task of ours says, and where each pose lies in the flat simulator state.

The flat state is ManiSkill's ``get_state()`` of a tabletop scene with a Panda arm, followed by one number, the
environment step, so that a state restarts an episode exactly, time limit included:

    table 13 | cube 13 | goal 13 | robot root 13, qpos 9, qvel 9 | env_step 1        (D = 71)

An actor's 13 are position 3, quaternion wxyz 4, linear velocity 3, angular velocity 3. No import of mani_skill here.

A family of tasks is a subclass of `ManiSkillTask` with its scripted expert, in a module of its own; a task is an
instance of it and a line in `worldloop.simulators.maniskill.TASKS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from worldloop.core.interfaces import Actor
from worldloop.simulators.perturbations import VariantParameters

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


# The table from x = -0.3 to 0.3 m, from the left, for all tasks alike. From far away, because a gripper may stand on
# either side of the cube, and would hide it on one of them from near.
TABLE_VIEW = CameraPose(eye_m=(0.0, 2.3, 2.14), target_m=(0.0, 0.0, 0.2), fov_rad=0.21)


@dataclass(frozen=True)
class ManiSkillTask(ABC):
    """One registered ManiSkill task with one cube, one goal and a Panda arm.

    ``camera`` is the base camera's close view of this task alone; ``goal_actor`` is what marks the goal in the
    environment. ``tells_goal``: proprio ends with the goal's position.
    """

    id: str
    instructions: tuple[str, ...]
    camera: CameraPose
    goal_actor: str
    goal_radius_m: float
    max_episode_steps: int
    tells_goal: bool = False

    @abstractmethod
    def measure_gap(self, sim_state: Tensor) -> Tensor:
        """f32 [B, 2 or 3]: from the goal's centre to the cube's in metres, for ``sim_state`` [B, 71]."""

    @abstractmethod
    def make_scripted_policy(self, parameters: VariantParameters, chunk_length: int) -> Actor:
        """An expert, or worse, for the rows of ``parameters``."""

    def measure_distance_m(self, sim_state: Tensor) -> Tensor:
        """Distance f32 [B] of the cube's centre to the edge of the goal region, 0 inside."""
        return (torch.linalg.norm(self.measure_gap(sim_state), dim=1) - self.goal_radius_m).clamp_min(0.0)
