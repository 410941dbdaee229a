"""What every ManiSkill task of ours says, and where each pose lies in the flat simulator state.

The flat state is ManiSkill's ``get_state()`` of the task's scene, followed by one number, the environment step, so that
a state restarts an episode exactly, time limit included. With a Panda and the actors of PushCube-v1 its D = 71 are:

    table 13 | object 13 | goal 13 | robot root 13, qpos 9, qvel 9 | env_step 1

An actor's 13 are position 3, quaternion wxyz 4, linear velocity 3, angular velocity 3. No import of mani_skill here.

A family of tasks is a subclass of `ManiSkillTask` with its scripted expert, in a module of its own; a task is an
instance of it and a line in `worldloop.simulators.maniskill.TASKS`. What depends on the arm is in `robots`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from worldloop.core.interfaces import Actor
from worldloop.core.specs import Landmark
from worldloop.core.types import Observation
from worldloop.simulators.base import list_columns
from worldloop.simulators.maniskill.robots import ManiSkillRobot
from worldloop.simulators.perturbations import VariantParameters

POSE_DIM = 13  # numbers of an actor, or of a robot's root, in the state
ACTION_LIMIT = 0.6  # the range of motion that scripted policies use and policies discretise
GOAL_NAMES = ("goal_x", "goal_y", "goal_z")  # in proprio, where a task tells the goal
BASE_CAMERA = "base_camera"  # ManiSkill's name of the camera that stands beside the table


@dataclass(frozen=True)
class CameraPose:
    """A camera that looks from ``eye_m`` to ``target_m`` (metres, world frame), vertical field of view in radians."""

    eye_m: tuple[float, float, float]
    target_m: tuple[float, float, float]
    fov_rad: float

    def name_directions(self, yaw_rad: float = 0.0) -> tuple[tuple[str, str], tuple[str, str]]:
        """What - and + along x, and along y, look like in the picture; one axis goes across, the other up and down.

        ``yaw_rad``: how far these axes are turned from the world's. An axis that goes both ways counts as what it does
        more, as far as the other axis leaves it.
        """
        forward = turn_back(torch.tensor([self.target_m]) - torch.tensor([self.eye_m]), yaw_rad)[0]
        right = torch.linalg.cross(forward, torch.tensor([0.0, 0.0, 1.0]))
        up = torch.linalg.cross(right / right.norm(), forward / forward.norm())
        (across_x, across_y), (up_x, up_y) = (right / right.norm())[:2].tolist(), up[:2].tolist()
        if abs(across_x) + abs(up_y) >= abs(across_y) + abs(up_x):
            return _across(across_x), _up(up_y)
        return _up(up_x), _across(across_y)


def turn_back(vector: Tensor, yaw_rad: float) -> Tensor:
    """``vector`` f32 [B, 3] as seen along axes that are turned by ``yaw_rad`` about the z axis."""
    cos, sin = math.cos(yaw_rad), math.sin(yaw_rad)
    x, y, z = vector.unbind(1)
    return torch.stack([cos * x + sin * y, cos * y - sin * x, z], dim=1)


def _across(right: float) -> tuple[str, str]:
    return ("left", "right") if right > 0 else ("right", "left")


def _up(up: float) -> tuple[str, str]:
    return ("down", "up") if up > 0 else ("up", "down")


# The table from x = -0.3 to 0.3 m, from the left, for all tasks alike. From far away, because a gripper may stand on
# either side of the cube, and would hide it on one of them from near.
TABLE_VIEW = CameraPose(eye_m=(0.0, 2.3, 2.14), target_m=(0.0, 0.0, 0.2), fov_rad=0.21)


@dataclass(frozen=True)
class ManiSkillTask(ABC):
    """One registered ManiSkill task: an object, a goal, and what else the scene has.

    ``camera`` is the base camera's close view of this task alone; ``goal_actor`` is what marks the goal in the
    environment, "" where no marker does. ``tells_goal``: proprio ends with the goal's position. ``goal_radius_m`` is
    also how close a failure must have come to count as a near-success. ``arm_yaw_rad``: how far the arm's base is
    turned from the world's x axis; actions are along the base's axes. ``has_cube``: the object is a cube, whose edges
    the variations ``size`` and ``shape`` change.

    ``actors`` are those of the family's scene, in the order of the simulator state, and say which of them are the
    ``object`` and the ``goal``; the arm's base, ``robot``, follows them. ``marked`` are the landmarks of the state: all
    that decide about success, and the tools.
    """

    actors: ClassVar[tuple[str, ...]] = ("table", "object", "goal")
    marked: ClassVar[tuple[str, ...]] = ("object", "goal")

    id: str
    instructions: tuple[str, ...]
    camera: CameraPose
    goal_actor: str
    goal_radius_m: float
    max_episode_steps: int
    tells_goal: bool = False
    arm_yaw_rad: float = 0.0
    has_cube: bool = True

    @property
    def object_xyz(self) -> slice:
        """The object's position in the simulator state."""
        return self.find_xyz("object")

    @property
    def goal_xyz(self) -> slice:
        """The goal's position in the simulator state."""
        return self.find_xyz("goal")

    @property
    def scene_kind(self) -> tuple[int, tuple[str, ...], float]:
        """Equal for tasks that can share a run: how long states are, the landmarks, and where the arm stands."""
        return len(self.actors), self.marked, self.arm_yaw_rad

    def state_dim(self, robot: ManiSkillRobot) -> int:
        """Numbers in the simulator state, the environment step included."""
        return POSE_DIM * (len(self.actors) + 1) + 2 * len(robot.joints) + 1

    def measure_gap(self, sim_state: Tensor) -> Tensor:
        """f32 [B, 2 or 3]: from the goal's centre to the object's in metres, for ``sim_state`` [B, D].

        Along the table, unless a family also counts height.
        """
        return (sim_state[:, self.object_xyz] - sim_state[:, self.goal_xyz])[:, :2]

    @abstractmethod
    def make_scripted_policy(self, robot: ManiSkillRobot, parameters: VariantParameters, chunk_length: int) -> Actor:
        """An expert, or worse, that drives ``robot`` in the rows of ``parameters``."""

    def measure_distance_m(self, sim_state: Tensor) -> Tensor:
        """Distance f32 [B] of the object's centre to the edge of the goal region, 0 inside."""
        return (torch.linalg.norm(self.measure_gap(sim_state), dim=1) - self.goal_radius_m).clamp_min(0.0)

    def find_xyz(self, actor: str) -> slice:
        """The position of one of ``actors``, or of the ``robot``, in the simulator state."""
        start = POSE_DIM * (*self.actors, "robot").index(actor)
        return slice(start, start + 3)

    def list_landmarks(self, robot: ManiSkillRobot, tells_goal: bool) -> tuple[Landmark, ...]:
        """Those of the state, and the ``effector``. With ``tells_goal`` the goal is read from the end of proprio."""
        places = {name: self.find_xyz(name) for name in self.marked}
        first = len(robot.proprio_names)
        told = Landmark("goal", "proprio", tuple(range(first, first + len(GOAL_NAMES))))
        return (
            *(
                told if name == "goal" and tells_goal else Landmark(name, "sim_state", list_columns(place))
                for name, place in places.items()
            ),
            Landmark("effector", "proprio", list_columns(robot.tcp_in_proprio)),
        )

    def turn_to_arm(self, motion: Tensor) -> Tensor:
        """``motion`` f32 [B, 3] along the world's axes -> along those of the arm's base."""
        return turn_back(motion, self.arm_yaw_rad)


class ScriptedExpert[TaskT: ManiSkillTask]:
    """What the scripted policies of all families keep; one variant per row.

    Each keeps where its rows are, and rows restart at ``env_step == 0`` by themselves; so use a fresh one for each
    rollout. ``act`` needs ``observation.sim_state``, and does not use its ``noise_key``.
    """

    version = "scripted-1"

    def __init__(self, task: TaskT, robot: ManiSkillRobot, parameters: VariantParameters, chunk_length: int) -> None:
        self._task = task
        self._robot = robot
        self._p = parameters
        self._chunk_length = chunk_length

    def _read(self, observation: Observation) -> tuple[Tensor, Tensor]:
        """The simulator state f32 [B, D], and the tcp's position [B, 3]."""
        state, proprio = observation.sim_state, observation.proprio
        if state is None or proprio is None:
            raise ValueError("a scripted policy needs observation.sim_state and proprio")
        return state, proprio[:, self._robot.tcp_in_proprio].clone()
