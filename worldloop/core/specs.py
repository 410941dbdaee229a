"""Descriptions of a robot, its cameras and its tasks, known before the first frame."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

# Words in the names of control modes.
_TARGETS = {"pos", "position", "positions", "pose", "qpos", "joint", "joints", "absolute", "abs", "target", "recorded"}
_RELATIVE = {"delta", "relative", "rel", "vel", "velocity", "velocities", "effort", "torque", "force"}


@dataclass(frozen=True)
class CameraSpec:
    """A camera: its name, and the height and width of its stored images in pixels."""

    name: str
    height: int
    width: int


@dataclass(frozen=True)
class Landmark:
    """A point to keep track of, e.g. ``object`` or ``effector``.

    Its 2 or 3 coordinates are the ``columns`` of ``source``; times ``metres_per_unit`` they are metres.
    """

    name: str
    source: Literal["sim_state", "proprio"]
    columns: tuple[int, ...]
    metres_per_unit: float = 1.0


@dataclass(frozen=True)
class JointSpec:
    """A joint that proprio tells the position of, under ``name``, and what it can do.

    Units are those of proprio (rad, or m), per second and per second squared.
    """

    name: str
    low: float
    high: float
    max_velocity: float
    max_acceleration: float

    def __post_init__(self) -> None:
        if not self.low < self.high or self.max_velocity <= 0 or self.max_acceleration <= 0:
            raise ValueError(f"joint {self.name!r} needs low < high, and positive limits of velocity and acceleration")


@dataclass(frozen=True)
class RobotSpec:
    """One robot: its proprio, its actions and its cameras. A run has one robot.

    ``action_low`` and ``action_high`` bound each action dimension, in environment units; ``hz`` is the rate of
    environment steps. ``joints``: those whose limits are known, which executability needs; may be empty.
    ``control_mode`` says what an action is, see `holds_targets`. ``action_labels`` say what the lowest and the highest
    value of each dimension do, e.g. ``("left", "right")`` as a fixed camera shows it; may be empty.
    """

    name: str
    proprio_names: tuple[str, ...]
    action_names: tuple[str, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    control_mode: str
    hz: float
    cameras: tuple[CameraSpec, ...]
    joints: tuple[JointSpec, ...] = ()
    action_labels: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not self.cameras or len(set(self.camera_names)) != len(self.cameras):
            raise ValueError(f"robot {self.name!r} needs one or more cameras with names of their own")
        if not len(self.action_names) == len(self.action_low) == len(self.action_high):
            raise ValueError(f"robot {self.name!r}: action names and bounds differ in number")
        if self.action_labels and len(self.action_labels) != len(self.action_names):
            raise ValueError(f"robot {self.name!r}: action names and labels differ in number")
        for joint in self.joints:
            if joint.name not in self.proprio_names:
                raise ValueError(f"robot {self.name!r}: joint {joint.name!r} is not in proprio")

    @property
    def holds_targets(self) -> bool:
        """Whether an action is a target to hold, e.g. joint positions, so that 0 does not mean "no motion".

        So are positions and poses, and recorded actions, unless ``control_mode`` says that they are relative.
        """
        words = set(re.split("[^a-z]+", self.control_mode.lower()))
        return bool(words & _TARGETS) and not words & _RELATIVE

    @property
    def proprio_dim(self) -> int:
        return len(self.proprio_names)

    @property
    def gripper_proprio(self) -> list[int]:
        """The dimensions of proprio that are fingers or a gripper, by the names in our simulators and LeRobot's."""
        return [i for i, name in enumerate(self.proprio_names) if "finger" in name or "gripper" in name]

    @property
    def gripper_actions(self) -> list[int]:
        """The dimensions of an action that open and close a gripper: their names begin with "gripper"."""
        return [i for i, name in enumerate(self.action_names) if name.startswith("gripper")]

    @property
    def action_dim(self) -> int:
        return len(self.action_names)

    @property
    def camera_names(self) -> tuple[str, ...]:
        return tuple(camera.name for camera in self.cameras)


@dataclass(frozen=True)
class TaskSpec:
    """One task. Rows, episodes and figures name it by its ``id``.

    ``instructions`` are paraphrases; an episode has one of them, `instruction` is the first. ``success_radius_m`` is
    the distance at which the task counts as solved, 0 if unknown; ``max_episode_steps`` is in environment steps.
    ``landmarks`` may be empty. The check of a world model reads them, and with ``world_model.landmarks`` its training:
    its imagination reads those of ``sim_state`` from pictures. No policy reads them.
    """

    id: str
    instructions: tuple[str, ...]
    success_radius_m: float
    max_episode_steps: int
    landmarks: tuple[Landmark, ...] = ()

    @property
    def instruction(self) -> str:
        return self.instructions[0]


@dataclass(frozen=True)
class HalfTurn:
    """What else changes when a scene is turned by half a turn about the vertical, and x and y change their signs.

    A two-finger gripper looks the same then, with its fingers swapped. Without ``reversed_actions`` it is not known.

    - ``reversed_actions``: names of the actions that change their sign
    - ``swapped_proprio``: pairs of names in proprio that change places
    """

    reversed_actions: tuple[str, ...] = ()
    swapped_proprio: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class SimulatorSpec:
    """One robot and its tasks in one simulator: all that a policy or a world model must know about a simulator.

    - ``actions_per_frame``: environment actions between two stored frames
    - ``success_hold_frames``: stored frames for which an episode goes on after its first success, up to the time limit
    - ``success_confirm_frames``: further consecutive frames that must show a success before an imagined success counts
    - ``half_turn``: given only where hand and objects move in the same way after it, whatever stands around

    Landmarks have the same names and numbers of coordinates in all tasks.
    """

    robot: RobotSpec
    tasks: tuple[TaskSpec, ...]
    actions_per_frame: int
    simulator_version: str
    success_hold_frames: int = 0
    success_confirm_frames: int = 0
    half_turn: HalfTurn = HalfTurn()

    def __post_init__(self) -> None:
        if not self.tasks or len(set(self.task_ids)) != len(self.tasks):
            raise ValueError(f"a simulator needs one or more tasks with ids of their own, got {self.task_ids}")
        first = [(mark.name, len(mark.columns)) for mark in self.tasks[0].landmarks]
        for task in self.tasks[1:]:
            if [(mark.name, len(mark.columns)) for mark in task.landmarks] != first:
                raise ValueError(f"task {task.id!r} has other landmarks than {self.tasks[0].id!r}")
        limits = zip(self.robot.action_low, self.robot.action_high, strict=True)
        bounds = dict(zip(self.robot.action_names, limits, strict=True))
        for name in self.half_turn.reversed_actions:
            if name not in bounds or bounds[name][0] != -bounds[name][1]:
                raise ValueError(f"half_turn: {name!r} is no action with bounds that differ only in their sign")
        for name in (name for pair in self.half_turn.swapped_proprio for name in pair):
            if name not in self.robot.proprio_names:
                raise ValueError(f"half_turn: {name!r} is not in proprio")

    @property
    def task_ids(self) -> tuple[str, ...]:
        return tuple(task.id for task in self.tasks)

    @property
    def max_episode_steps(self) -> int:
        """The time limit of the longest task, in environment steps."""
        return max(task.max_episode_steps for task in self.tasks)

    @property
    def frames_per_second(self) -> float:
        """The rate of stored frames, in Hz."""
        return self.robot.hz / self.actions_per_frame

    @property
    def landmark_names(self) -> tuple[str, ...]:
        return tuple(mark.name for mark in self.tasks[0].landmarks)

    def task(self, task_id: str) -> TaskSpec:
        """The task with this id. Raises ``ValueError``, with the known ids, for another id."""
        for task in self.tasks:
            if task.id == task_id:
                return task
        raise ValueError(f"task {task_id!r} is not one of {', '.join(self.task_ids)}")

    def with_cameras(self, names: Sequence[str]) -> SimulatorSpec:
        """The same spec with only the cameras called ``names``, in the robot's order; no names keep all cameras.

        Raises ``ValueError`` for a camera that the robot does not have.
        """
        if not names:
            return self
        for name in names:
            if name not in self.robot.camera_names:
                raise ValueError(f"camera {name!r} is not one of {', '.join(self.robot.camera_names)}")
        cameras = tuple(camera for camera in self.robot.cameras if camera.name in names)
        return replace(self, robot=replace(self.robot, cameras=cameras))
