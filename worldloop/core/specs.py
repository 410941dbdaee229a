"""What is known of a robot, its cameras and its tasks before the first frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class CameraSpec:
    """A camera by its name, with the size of its stored images in pixels."""

    name: str
    height: int
    width: int


@dataclass(frozen=True)
class Landmark:
    """A point that the check of a world model follows, e.g. ``object`` or ``effector``.

    Its 2 or 3 coordinates are ``columns`` of ``source``, each worth ``metres_per_unit``.
    """

    name: str
    source: Literal["sim_state", "proprio"]
    columns: tuple[int, ...]
    metres_per_unit: float = 1.0


@dataclass(frozen=True)
class RobotSpec:
    """One robot as it is controlled and seen. Two robots are two runs.

    ``action_low/high`` bound environment actions per dimension; ``hz`` is the rate of environment steps.
    """

    name: str
    proprio_names: tuple[str, ...]
    action_names: tuple[str, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    control_mode: str
    hz: float
    cameras: tuple[CameraSpec, ...]

    def __post_init__(self) -> None:
        if not self.cameras or len(set(self.camera_names)) != len(self.cameras):
            raise ValueError(f"robot {self.name!r} needs one or more cameras with names of their own")
        if not len(self.action_names) == len(self.action_low) == len(self.action_high):
            raise ValueError(f"robot {self.name!r}: action names and bounds differ in number")

    @property
    def proprio_dim(self) -> int:
        return len(self.proprio_names)

    @property
    def action_dim(self) -> int:
        return len(self.action_names)

    @property
    def camera_names(self) -> tuple[str, ...]:
        return tuple(camera.name for camera in self.cameras)


@dataclass(frozen=True)
class TaskSpec:
    """One task, as a row, an episode or a figure names it by ``id``.

    ``instructions``: paraphrases, of which an episode has one; the first stands for all. ``success_radius_m`` is the
    distance at which the task counts as solved, 0 where nobody knows; ``max_episode_steps`` is in environment steps.
    ``landmarks`` may be empty: only the check of a world model reads them; no policy and no world model ever does.
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
class SimulatorSpec:
    """One robot and the tasks it does, in one simulator: what a policy or a world model must know of it.

    ``actions_per_frame``: environment actions between two stored frames. ``success_hold_frames``: an episode goes on
    for so many stored frames after its first success, time limit permitting. ``success_confirm_frames``: a world model
    declares a success when it sees one in that many more frames on end. All tasks have the same landmarks by name.
    """

    robot: RobotSpec
    tasks: tuple[TaskSpec, ...]
    actions_per_frame: int
    simulator_version: str
    success_hold_frames: int = 0
    success_confirm_frames: int = 0

    def __post_init__(self) -> None:
        if not self.tasks or len(set(self.task_ids)) != len(self.tasks):
            raise ValueError(f"a simulator needs one or more tasks with ids of their own, got {self.task_ids}")
        first = [(mark.name, len(mark.columns)) for mark in self.tasks[0].landmarks]
        for task in self.tasks[1:]:
            if [(mark.name, len(mark.columns)) for mark in task.landmarks] != first:
                raise ValueError(f"task {task.id!r} has other landmarks than {self.tasks[0].id!r}")

    @property
    def task_ids(self) -> tuple[str, ...]:
        return tuple(task.id for task in self.tasks)

    @property
    def max_episode_steps(self) -> int:
        """Of the longest task."""
        return max(task.max_episode_steps for task in self.tasks)

    @property
    def frames_per_second(self) -> float:
        """Of stored frames."""
        return self.robot.hz / self.actions_per_frame

    @property
    def landmark_names(self) -> tuple[str, ...]:
        return tuple(mark.name for mark in self.tasks[0].landmarks)

    def task(self, task_id: str) -> TaskSpec:
        """Raises ``ValueError`` naming the tasks that there are."""
        for task in self.tasks:
            if task.id == task_id:
                return task
        raise ValueError(f"task {task_id!r} is not one of {', '.join(self.task_ids)}")

    def with_cameras(self, names: Sequence[str]) -> SimulatorSpec:
        """The same, seen by the cameras called ``names`` alone, in the robot's order; no names: all of them.

        Raises ``ValueError`` for a camera that the robot does not have.
        """
        if not names:
            return self
        for name in names:
            if name not in self.robot.camera_names:
                raise ValueError(f"camera {name!r} is not one of {', '.join(self.robot.camera_names)}")
        cameras = tuple(camera for camera in self.robot.cameras if camera.name in names)
        return replace(self, robot=replace(self.robot, cameras=cameras))
