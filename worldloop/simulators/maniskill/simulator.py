"""ManiSkill behind the `Simulator` interface; the only module that imports mani_skill and sapien (in functions).

Physics is stepped per action and a camera image is rendered only after every ``actions_per_frame`` actions: on a
CPU rendering is three quarters of the cost otherwise. ``obs_mode="none"`` keeps ManiSkill from rendering by itself.

The GPU backend (`physx_cuda`) follows ManiSkill's documented vectorised reset and step but has not been run: no
machine with a GPU was at hand. Evaluation results of the two backends are not expected to agree bit for bit.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor

from worldloop.core.errors import WorldloopError
from worldloop.core.interfaces import Actor
from worldloop.core.randomness import derive_seed
from worldloop.core.specs import RobotSpec, SimulatorSpec, TaskSpec
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
from worldloop.simulators.maniskill import TASKS, require_one_scene
from worldloop.simulators.maniskill.family import BASE_CAMERA, GOAL_NAMES, TABLE_VIEW, CameraPose, ManiSkillTask
from worldloop.simulators.maniskill.robots import ROBOTS, ManiSkillRobot
from worldloop.simulators.maniskill.variations import VARIATIONS, changed_object, move_camera
from worldloop.simulators.perturbations import draw_variant_parameters

CONTROL_HZ = 20.0


@dataclass(frozen=True)
class ManiSkillConfig:
    """How ManiSkill tasks are simulated and seen."""

    tasks: tuple[str, ...] = ("PushCube-v1",)  # one or more of TASKS in simulators/maniskill/__init__.py
    cameras: tuple[str, ...] = ("base_camera",)  # base_camera | hand_camera (wrist); both: 1.5 times the rendering time
    image_size: int = 64  # pixels, height and width of every camera's images
    image_sizes: dict[str, int] = field(default_factory=dict)  # of single cameras, e.g. {hand_camera: 48}
    supersampling: int = 1  # rendered pixels per stored pixel and side, averaged: above 1 edges are anti-aliased
    variation: str = ""  # what no training has seen: a name in simulators/maniskill/variations.py; "": nothing
    view: str = "task"  # of the base camera: task (close, made for one task) | table (the whole table, for all tasks)
    show_goal: bool = True  # whether the goal's marker is drawn; without, the instruction alone says where to
    actions_per_frame: int = 5  # environment steps (20 Hz) between two stored frames
    backend: str = "auto"  # auto | cpu | gpu; auto takes the GPU when there is one and num_envs > 1
    num_envs: int = 1  # rows simulated at once; 1 on the CPU
    shader: str = "minimal"  # SAPIEN shader pack: minimal | default | rt-fast
    max_episode_steps: int = 0  # environment steps before an episode is truncated; 0: each task's own limit
    success_hold_frames: int = 1  # frames an episode goes on for after its success
    success_confirm_frames: int = 1  # further frames that must agree before imagination declares a success

    def __post_init__(self) -> None:
        require_names("simulator.maniskill.tasks", self.tasks, TASKS)
        require_names("simulator.maniskill.cameras", self.cameras, (BASE_CAMERA, self.robot.wrist_camera))
        require_names("simulator.maniskill.view", (self.view,), ("task", "table"))
        require_names("simulator.maniskill.backend", (self.backend,), ("auto", "cpu", "gpu"))
        if self.variation:
            require_names("simulator.maniskill.variation", (self.variation,), VARIATIONS)
        if self.variation == "camera" and BASE_CAMERA not in self.cameras:
            raise ValueError("simulator.maniskill.variation camera moves base_camera, which is not among the cameras")
        require_names("simulator.maniskill.shader", (self.shader,), ("minimal", "default", "rt-fast"))
        make_cameras("simulator.maniskill", self.cameras, self.image_size, self.image_sizes)
        if self.view == "task" and len(self.tasks) > 1:
            raise ValueError("simulator.maniskill.view is task, which shows one task; several tasks need view: table")
        require_one_scene(self.tasks)
        if self.variation in ("size", "shape") and not all(TASKS[name].has_cube for name in self.tasks):
            raise ValueError(f"simulator.maniskill.variation {self.variation} needs tasks with a cube, not a ball")
        for key in ("supersampling", "actions_per_frame", "num_envs"):
            if getattr(self, key) < 1:
                raise ValueError(f"simulator.maniskill.{key} must be at least 1, got {getattr(self, key)}")
        if self.max_episode_steps < 0:
            raise ValueError(f"simulator.maniskill.max_episode_steps must be >= 0, got {self.max_episode_steps}")
        require_success_frames("simulator.maniskill", self.success_hold_frames, self.success_confirm_frames)
        if self.backend == "cpu" and self.num_envs != 1:
            raise ValueError(
                f"simulator.maniskill.num_envs must be 1 on the CPU, got {self.num_envs}: use more processes"
            )

    @property
    def tells_goal(self) -> bool:
        """Whether proprio has the goal's position, which one of the tasks needs."""
        return any(TASKS[name].tells_goal for name in self.tasks)

    @property
    def robot(self) -> ManiSkillRobot:
        """The arm that does all tasks."""
        return ROBOTS["panda"]

    @property
    def has_wrist_camera(self) -> bool:
        """Whether one of the cameras is the arm's."""
        return self.robot.wrist_camera in self.cameras

    @property
    def robot_uid(self) -> str:
        """ManiSkill's name of the arm: the wrist camera comes with one of its own."""
        return self.robot.wrist_uid if self.has_wrist_camera else self.robot.uid

    def for_play(self) -> Self:
        """One row on the CPU, whose episodes neither a success nor a time limit ends."""
        return replace(
            self, backend="cpu", num_envs=1, max_episode_steps=ENDLESS_STEPS, success_hold_frames=ENDLESS_STEPS
        )


def check_can_render(device_name: Literal["cpu", "cuda"] = "cpu") -> None:
    """Raise `WorldloopError` unless SAPIEN finds a Vulkan driver that renders on ``device_name``."""
    import sapien

    # software rendering reports itself under its PCI name; the plain "cpu" device says it cannot render
    names = ("cuda",) if device_name == "cuda" else ("cpu", "pci:0", "cuda")
    can_render = False
    for name in names:
        try:
            can_render = can_render or bool(sapien.Device(name).can_render())
        except RuntimeError:  # no such device
            continue
    if not can_render:
        raise WorldloopError(
            f"no Vulkan driver can render on {device_name!r}, which ManiSkill's camera needs; "
            "run `make setup` to install one, or `worldloop doctor` to see what is missing"
        )


class ManiSkillSimulator(ChunkedSimulator):
    """ManiSkill tasks as `TaskSimulator`; a batch holds one task.

    Proprio f32 [B, S], of a Panda 25: qpos 9 (rad; fingers m), qvel 9, tcp position 3 (m) and quaternion wxyz 4; the
    goal's position, 3 (m), comes on top where one of the tasks tells it. ``sim_state`` f32 [B, D]: see `family`. A
    restart at an episode's start is bit-equal on the CPU; mid-episode it is exact to about 1e-6, because contact
    impulses and joint drive targets are not part of the state.
    """

    Config = ManiSkillConfig
    VARIATIONS = tuple(VARIATIONS)
    required_package = "mani_skill"
    extra = "sim"

    def __init__(self, config: ManiSkillConfig) -> None:
        self.require_installed()
        self.config = config
        self.spec = self.make_spec(config)
        self.num_envs = config.num_envs
        has_gpu = torch.cuda.is_available()
        if config.backend == "gpu" and not has_gpu:
            raise WorldloopError("backend=gpu, but torch finds no CUDA device; set backend=cpu and num_envs=1")
        self._on_gpu = config.backend == "gpu" or (config.backend == "auto" and has_gpu and config.num_envs > 1)
        if not self._on_gpu and config.num_envs != 1:
            raise WorldloopError(f"num_envs={config.num_envs} needs a GPU, and there is none; set num_envs=1")
        if not self._on_gpu:
            # Mesa's software driver rasterises in the calling thread: its own threads cost 8 % with one process a core.
            os.environ.setdefault("LP_NUM_THREADS", "0")
        check_can_render("cuda" if self._on_gpu else "cpu")
        self._envs: dict[tuple[str, bool], Any] = {}  # by task and whether on the GPU
        self._task = TASKS[config.tasks[0]]  # of the running batch
        self.state_dim = self._task.state_dim(config.robot)  # `_make_env` checks it for every task
        self._num_rows = 0

    @staticmethod
    def make_spec(config: ManiSkillConfig) -> SimulatorSpec:
        """The spec without making an environment; episodes can be learned from where there is no mani_skill."""
        arm, first = config.robot, TASKS[config.tasks[0]]
        robot = RobotSpec(
            name=config.robot_uid,
            proprio_names=arm.proprio_names + GOAL_NAMES if config.tells_goal else arm.proprio_names,
            action_names=arm.action_names,
            action_low=(-1.0,) * len(arm.action_names),
            action_high=(1.0,) * len(arm.action_names),
            control_mode=arm.control_mode,
            hz=CONTROL_HZ,
            cameras=make_cameras("simulator.maniskill", config.cameras, config.image_size, config.image_sizes),
            joints=arm.limits,
            action_labels=(*_choose_view(config, first).name_directions(first.arm_yaw_rad), *arm.other_labels),
        )
        tasks = [TASKS[name] for name in config.tasks]
        return SimulatorSpec(
            robot=robot,
            tasks=tuple(
                TaskSpec(
                    id=task.id,
                    instructions=task.instructions,
                    success_radius_m=task.goal_radius_m,
                    max_episode_steps=config.max_episode_steps or task.max_episode_steps,
                    landmarks=task.list_landmarks(arm, config.tells_goal),
                )
                for task in tasks
            ),
            actions_per_frame=config.actions_per_frame,
            simulator_version=name_version("mani_skill"),
            success_hold_frames=config.success_hold_frames,
            success_confirm_frames=config.success_confirm_frames,
            half_turn=arm.half_turn,
        )

    def draw_initial_states(self, task: str, split: Split, num_states: int, seed: int, first: int = 0) -> InitialStates:
        """State i is drawn alone, from ``derive_seed(task, split, seed, i)``; ends the running batch.

        Always on the CPU, since a vectorised environment seeds all its rows from the first one's seed.
        """
        env = self._open_env(self.spec.task(task).id, on_gpu=False)
        self._batch = None
        states = torch.zeros(num_states, self.state_dim)
        numbers = range(first, first + num_states)
        for row, i in enumerate(numbers):
            env.reset(seed=derive_seed(task, split, seed, i) % 2**31)
            states[row, :-1] = env.get_state()[0]
        ids = tuple(f"{task}/{split}/{seed}-{i:06d}" for i in numbers)
        return InitialStates(split, ids, (task,) * num_states, states)

    def make_scripted_policy(
        self, tasks: tuple[str, ...], variants: tuple[str, ...], row_keys: Tensor, chunk_length: int
    ) -> Actor:
        """See `ScriptedSource`; the variants are `SCRIPTED_VARIANTS`."""
        task = TASKS[self._require_one_task(tasks)]
        return task.make_scripted_policy(self.config.robot, draw_variant_parameters(variants, row_keys), chunk_length)

    def close(self) -> None:
        """Free the scenes; the simulator cannot be used afterwards."""
        for env in self._envs.values():
            env.close()
        self._envs, self._batch = {}, None

    @property
    def _env(self) -> Any:
        """The environment of the running batch."""
        return self._open_env(self._task.id, self._on_gpu)

    def _open_env(self, task: str, on_gpu: bool) -> Any:
        """The environment of ``task``, made when it is first needed: starting one takes seconds."""
        if (task, on_gpu) not in self._envs:
            self._envs[task, on_gpu] = self._make_env(task, on_gpu)
        return self._envs[task, on_gpu]

    def _make_env(self, task_id: str, on_gpu: bool) -> Any:
        check_can_render("cuda" if on_gpu else "cpu")
        import gymnasium
        import mani_skill
        import mani_skill.envs  # registers the tasks
        from mani_skill.utils.sapien_utils import look_at

        # It warns of arms that a task does not list, such as the one with the wrist camera, and of its own tasks.
        mani_skill.logger.setLevel("ERROR")
        config, task = self.config, TASKS[task_id]
        sensors: dict[str, Any] = {
            camera.name: {"width": camera.width * config.supersampling, "height": camera.height * config.supersampling}
            for camera in self.spec.robot.cameras
        }
        if BASE_CAMERA in sensors:
            view = move_camera(config.variation, _choose_view(config, task))
            sensors[BASE_CAMERA] |= {"fov": view.fov_rad, "pose": look_at(view.eye_m, view.target_m)}
        with changed_object(config.variation):
            env: Any = gymnasium.make(
                task.id,
                robot_uids=config.robot_uid,
                obs_mode="none",
                reward_mode="none",
                control_mode=config.robot.control_mode,
                num_envs=self.num_envs if on_gpu else 1,
                sensor_configs={"shader_pack": config.shader, **sensors},
                sim_backend="physx_cuda" if on_gpu else "physx_cpu",
                render_backend="gpu" if on_gpu else "cpu",
            ).unwrapped
            env.reset(seed=0)
        if config.variation:
            VARIATIONS[config.variation](env)
        if task.goal_actor:
            getattr(env, task.goal_actor).show_visual()  # ManiSkill hides some goals, and tells where they are instead
        if config.has_wrist_camera:
            _hide_link(env, config.robot.wrist_link)
        if (numbers := env.get_state().shape[1] + 1) != self.state_dim:
            raise RuntimeError(
                f"{task.id} has states of {numbers} numbers, not {self.state_dim}: "
                "see `actors` of its family; the tasks of a run have states of one length"
            )
        return env

    def _require_one_task(self, tasks: tuple[str, ...]) -> str:
        """The task of a batch; ``ValueError`` where there are several."""
        if len(set(tasks)) != 1:
            raise ValueError(f"a ManiSkill batch holds one task, got {', '.join(sorted(set(tasks)))}: one batch each")
        return tasks[0]

    def _load(self, states: Tensor, tasks: tuple[str, ...], rows: Tensor, num_rows: int) -> None:
        task = self._require_one_task(tasks)
        if len(rows) != num_rows:
            self._require_one_task((self._task.id, task))
        self._task = TASKS[task]
        if len(rows) == num_rows:  # all rows: spare envs of a batch smaller than num_envs run along as copies
            ordered = states[torch.argsort(rows)]
            states = torch.cat([ordered, ordered[:1].expand(self.num_envs - num_rows, -1)])
            rows = torch.arange(self.num_envs)
        self._num_rows = num_rows
        if not self._on_gpu:
            self._renew_physics()
        device = self._env.device
        options: dict[str, Any] = {
            "reset_to_env_states": {"env_states": states[:, :-1].to(device)},
        }
        if len(rows) != self.num_envs:
            options["env_idx"] = rows.to(device)
        self._env.reset(options=options)
        if not self._on_gpu:
            self._wake_bodies()

    def _wake_bodies(self) -> None:
        """Start every body's sleep timer anew: a cube left at rest by the last episode would start out asleep."""
        import sapien

        for entity in self._env.scene.sub_scenes[0].entities:
            body = entity.find_component_by_type(sapien.physx.PhysxRigidDynamicComponent)
            if body is not None and not body.kinematic:
                body.wake_up()

    def _renew_physics(self) -> None:
        """Move everything into a new PhysX scene (3 ms), so that nothing of earlier episodes is left.

        PhysX hands out contact managers in an order that depends on which ones were freed before; the solver follows
        that order, so that the same start and actions gave another push after another episode. Neither clearing the
        state nor PhysX's enhanced determinism helps; ManiSkill's ``reconfigure`` does, at 50 times the price.
        """
        import sapien

        scene = self._env.scene
        old = scene.sub_scenes[0]
        physics = sapien.physx.PhysxCpuSystem()
        physics.timestep = scene.px.timestep
        new = sapien.Scene([physics, old.render_system])
        entities = list(old.entities)
        for entity in entities:  # links of one articulation must never be in two scenes
            old.remove_entity(entity)
        for entity in entities:
            new.add_entity(entity)
        scene.sub_scenes[0] = new
        scene.px = physics

    def _advance(self, actions: Tensor, running: Tensor) -> None:
        padded = torch.zeros(self.num_envs, self.spec.robot.action_dim)
        padded[: len(actions)] = actions
        self._env.step(padded.to(self._env.device))

    def _measure(self) -> Measurement:
        env = self._env
        robot, state = self.config.robot, torch.zeros(self.num_envs, self.state_dim)
        state[:, :-1] = env.get_state().cpu()
        tcp = env.agent.tcp.pose.raw_pose.cpu()
        parts = [state[:, robot.qpos], state[:, robot.qvel], tcp]
        if self.config.tells_goal:
            parts.append(state[:, self._task.goal_xyz])
        proprio = torch.cat(parts, dim=1)
        success = env.evaluate()["success"].cpu()
        distance = self._task.measure_distance_m(state)
        keep = slice(0, self._num_rows)
        return Measurement(proprio[keep], state[keep], success[keep], distance[keep])

    def _render(self) -> dict[str, Tensor]:
        env, frames = self._env, {}
        goal = getattr(env, self._task.goal_actor, None)
        if goal is not None and not self.config.show_goal:
            goal.hide_visual()  # only while rendering: on the GPU what is hidden is somewhere else
        env.scene.update_render(update_sensors=True, update_human_render_cameras=False)
        for camera in self.spec.robot.camera_names:
            sensor = env._sensors[camera]
            sensor.capture()
            images = sensor.get_obs(rgb=True, depth=False, segmentation=False, position=False)["rgb"]
            frames[camera] = average_blocks(images[: self._num_rows], self.config.supersampling).cpu().clone()
        if goal is not None:
            goal.show_visual()
        return frames


def _choose_view(config: ManiSkillConfig, task: ManiSkillTask) -> CameraPose:
    """Where the base camera stands, unless a variation moves it."""
    return TABLE_VIEW if config.view == "table" else task.camera


def _hide_link(env: Any, name: str) -> None:
    """Do not draw a wrist camera's housing: the Panda's has 1.3 million vertices, and takes three times the rest."""
    import sapien

    for link in env.agent.robot.links_map[name]._objs:
        link.entity.find_component_by_type(sapien.render.RenderBodyComponent).visibility = 0
