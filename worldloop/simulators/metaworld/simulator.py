"""Meta-World behind the `Simulator` interface: a Sawyer arm and 50 tasks on MuJoCo.

Physics is stepped per action, and images are drawn only after every ``actions_per_frame`` actions. Rows of a batch are
scenes of their own and may have different tasks.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from worldloop.core.interfaces import Actor
from worldloop.core.randomness import derive_seed
from worldloop.core.specs import Landmark, RobotSpec, SimulatorSpec, TaskSpec
from worldloop.core.success import require_success_frames
from worldloop.core.types import InitialStates, Split
from worldloop.simulators.base import (
    ENDLESS_STEPS,
    ChunkedSimulator,
    Measurement,
    average_blocks,
    list_columns,
    make_cameras,
    name_version,
    require_names,
)
from worldloop.simulators.metaworld import TASKS
from worldloop.simulators.metaworld.cameras import CAMERAS
from worldloop.simulators.metaworld.scene import NUM_STATE, MetaWorldScene
from worldloop.simulators.metaworld.scripted import MetaWorldScriptedPolicy
from worldloop.simulators.metaworld.tasks import GOAL, OBJECT
from worldloop.simulators.metaworld.variations import VARIATIONS
from worldloop.simulators.mujoco_rendering import choose_opengl
from worldloop.simulators.mujoco_state import NUM_PARTS, join_doubles, split_doubles
from worldloop.simulators.perturbations import draw_variant_parameters

CONTROL_HZ = 80.0
JOINTS = (*(f"right_j{i}" for i in range(7)), "r_close", "l_close")  # MuJoCo's names: the arm, then its two fingers
PROPRIO_NAMES = (
    "tcp_x",
    "tcp_y",
    "tcp_z",
    "gripper_opening",
    *(f"qpos_{joint}" for joint in JOINTS),
    *(f"qvel_{joint}" for joint in JOINTS),
)


@dataclass(frozen=True)
class MetaWorldConfig:
    """How Meta-World's tasks are simulated and seen."""

    tasks: tuple[str, ...] = ("reach-v3",)  # one or more of TASKS in simulators/metaworld/__init__.py
    cameras: tuple[str, ...] = ("close",)  # one or more of CAMERAS in simulators/metaworld/cameras.py
    image_size: int = 64  # pixels, height and width of every camera's images
    image_sizes: dict[str, int] = field(default_factory=dict)  # of single cameras, e.g. {gripperPOV: 48}
    supersampling: int = 2  # rendered pixels per stored pixel and side, averaged: above 1 edges are anti-aliased
    variation: str = ""  # what no training has seen: a name in simulators/metaworld/variations.py; "": nothing
    actions_per_frame: int = 5  # environment steps (80 Hz) between two stored frames
    num_envs: int = 1  # rows in one process, one after the other; each has its own scene of each task
    max_episode_steps: int = 500  # environment steps before an episode is truncated; 500 is Meta-World's
    success_hold_frames: int = 1  # frames an episode goes on for after its success
    success_confirm_frames: int = 1  # further frames that must agree before imagination declares a success

    def __post_init__(self) -> None:
        require_names("simulator.metaworld.tasks", self.tasks, TASKS)
        require_names("simulator.metaworld.cameras", self.cameras, CAMERAS)
        make_cameras("simulator.metaworld", self.cameras, self.image_size, self.image_sizes)
        if self.variation:
            require_names("simulator.metaworld.variation", (self.variation,), VARIATIONS)
        for key in ("supersampling", "actions_per_frame", "num_envs", "max_episode_steps"):
            if getattr(self, key) < 1:
                raise ValueError(f"simulator.metaworld.{key} must be at least 1, got {getattr(self, key)}")
        require_success_frames("simulator.metaworld", self.success_hold_frames, self.success_confirm_frames)

    def for_play(self) -> Self:
        """One row, whose episodes neither a success nor a time limit ends."""
        return replace(self, num_envs=1, max_episode_steps=ENDLESS_STEPS, success_hold_frames=ENDLESS_STEPS)


class MetaWorldSimulator(ChunkedSimulator):
    """Meta-World's tasks as `TaskSimulator`.

    Proprio f32 [B, 22]: the hand's position 3 (m), how far the gripper is open (0 to 1), positions (rad; fingers m) and
    velocities of 9 joints. An action of 1 moves the hand's target by 1 cm; the gripper closes above 0.
    ``sim_state`` f32 [B, 325]: a scene's state (`scene`) in three blocks of floats (`split_doubles`), and the
    environment step. A restart is bit-equal, also in the middle of an episode.
    """

    Config = MetaWorldConfig
    VARIATIONS = tuple(VARIATIONS)
    required_package = "metaworld"
    extra = "metaworld"
    state_dim = NUM_PARTS * NUM_STATE + 1

    def __init__(self, config: MetaWorldConfig) -> None:
        self.require_installed()
        choose_opengl()
        self.config = config
        self.spec = self.make_spec(config)
        self.num_envs = config.num_envs
        self._scenes: dict[tuple[int, str], MetaWorldScene] = {}  # by row and task; row -1: of nothing that runs
        self._tasks: list[str] = []  # of the running rows

    @staticmethod
    def make_spec(config: MetaWorldConfig) -> SimulatorSpec:
        """The spec without making a scene; episodes can be learned from where there is no metaworld."""
        robot = RobotSpec(
            name="sawyer",
            proprio_names=PROPRIO_NAMES,
            action_names=("dx", "dy", "dz", "gripper_close"),
            action_low=(-1.0,) * 4,
            action_high=(1.0,) * 4,
            control_mode="mocap_delta_pos",
            hz=CONTROL_HZ,
            cameras=make_cameras("simulator.metaworld", config.cameras, config.image_size, config.image_sizes),
            # no joint limits: the arm is dragged by its hand, and goes as fast as that
        )
        landmarks = (
            Landmark("object", "sim_state", list_columns(OBJECT)),
            Landmark("goal", "sim_state", list_columns(GOAL)),
            Landmark("effector", "proprio", (0, 1, 2)),
        )
        return SimulatorSpec(
            robot=robot,
            tasks=tuple(
                TaskSpec(
                    id=name,
                    instructions=TASKS[name].instructions,
                    success_radius_m=TASKS[name].success_radius_m,
                    max_episode_steps=config.max_episode_steps,
                    landmarks=landmarks,
                )
                for name in config.tasks
            ),
            actions_per_frame=config.actions_per_frame,
            simulator_version=name_version("metaworld"),
            success_hold_frames=config.success_hold_frames,
            success_confirm_frames=config.success_confirm_frames,
        )

    def draw_initial_states(self, task: str, split: Split, num_states: int, seed: int, first: int = 0) -> InitialStates:
        """State i is drawn alone, from ``derive_seed(task, split, seed, i)``."""
        scene = self._open_twin(self.spec.task(task).id)
        states = torch.zeros(num_states, self.state_dim)
        numbers = range(first, first + num_states)
        for row, i in enumerate(numbers):
            scene.draw(derive_seed(task, split, seed, i) % 2**31)
            states[row, :-1] = split_doubles(scene.read())
        ids = tuple(f"{task}/{split}/{seed}-{i:06d}" for i in numbers)
        return InitialStates(split, ids, (task,) * num_states, states)

    def make_scripted_policy(
        self, tasks: tuple[str, ...], variants: tuple[str, ...], row_keys: Tensor, chunk_length: int
    ) -> Actor:
        """See `ScriptedSource`; the variants are `SCRIPTED_VARIANTS`."""
        for task in tasks:
            self.spec.task(task)
        parameters = draw_variant_parameters(variants, row_keys)
        steps = self.config.max_episode_steps
        return MetaWorldScriptedPolicy(self._open_twin, tasks, parameters, chunk_length, steps)

    def close(self) -> None:
        """Free the scenes; the simulator cannot be used afterwards."""
        for scene in self._scenes.values():
            scene.close()
        self._scenes, self._tasks, self._batch = {}, [], None

    def _open_twin(self, task: str) -> MetaWorldScene:
        """A scene in which no row runs, for drawing states and planning ahead."""
        return self._open_scene(-1, task)

    def _open_scene(self, row: int, task: str) -> MetaWorldScene:
        """The scene of a row and a task, made when it is first needed: that takes a tenth of a second."""
        if (row, task) not in self._scenes:
            sizes = [camera.height for camera in self.spec.robot.cameras]
            largest = max(sizes) * self.config.supersampling
            self._scenes[row, task] = MetaWorldScene(task, self.config.variation, largest)
        return self._scenes[row, task]

    @property
    def _running(self) -> list[MetaWorldScene]:
        return [self._open_scene(row, task) for row, task in enumerate(self._tasks)]

    def _load(self, states: Tensor, tasks: tuple[str, ...], rows: Tensor, num_rows: int) -> None:
        if len(self._tasks) != num_rows or len(rows) == num_rows:
            self._tasks = [tasks[0]] * num_rows
        doubles = join_doubles(states[:, :-1])
        for row, task, state, env_step in zip(rows.tolist(), tasks, doubles, states[:, -1].tolist(), strict=True):
            self._tasks[row] = task
            self._open_scene(row, task).write(state, round(env_step))

    def _advance(self, actions: Tensor, running: Tensor) -> None:
        for scene, action, runs in zip(self._running, actions, running.tolist(), strict=True):
            if runs:
                scene.step(action.numpy())

    def _measure(self) -> Measurement:
        scenes = self._running
        states = torch.zeros(len(scenes), self.state_dim)
        states[:, :-1] = split_doubles(np.stack([scene.read() for scene in scenes]))
        proprio = np.stack([np.concatenate([scene.observed[:4], scene.joints]) for scene in scenes])
        return Measurement(
            torch.from_numpy(proprio.astype(np.float32)),
            states,
            torch.tensor([scene.success for scene in scenes]),
            torch.tensor([scene.distance_m for scene in scenes]),
        )

    def _render(self) -> dict[str, Tensor]:
        scale = self.config.supersampling
        frames = {}
        for camera in self.spec.robot.cameras:
            width, height = camera.width * scale, camera.height * scale
            images = [scene.render(camera.name, width, height) for scene in self._running]
            frames[camera.name] = average_blocks(torch.from_numpy(np.stack(images)), scale)
        return frames
