"""The toy: two discs and a goal on a plane (`worldloop.simulators.toy.scene`), seen from above.

The rows of a batch may have different tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from worldloop.core.randomness import derive_seed, make_generator
from worldloop.core.specs import JointSpec, Landmark, RobotSpec, SimulatorSpec, TaskSpec
from worldloop.core.success import require_success_frames
from worldloop.core.types import ActionChunk, InitialStates, Observation, Split
from worldloop.simulators.base import ENDLESS_STEPS, ChunkedSimulator, Measurement, make_cameras, require_names
from worldloop.simulators.perturbations import VariantParameters, draw_variant_parameters, smooth_noise
from worldloop.simulators.toy import TASKS
from worldloop.simulators.toy.scene import (
    ACTION_LIMIT,
    AGENT,
    AGENT_RADIUS,
    BLOCK,
    BLOCK_RADIUS,
    BLOCK_START,
    CONTACT,
    GOAL,
    GOAL_RADIUS,
    METRES_PER_UNIT,
    STATE_DIM,
    STEP,
    WAY,
    ToyTask,
)

CAMERAS = ("base_camera", "hand_camera")
HZ = 10.0  # environment steps a second
HAND_VIEW = 0.5  # units that the hand camera sees on each side of the agent
_BACKGROUND = (0.35, 0.28, 0.2)
_DISCS = (  # columns of the state, radius, colour; later ones are drawn over earlier ones
    (GOAL, GOAL_RADIUS, (0.85, 0.25, 0.25)),
    (BLOCK, BLOCK_RADIUS, (0.15, 0.3, 0.85)),
    (AGENT, AGENT_RADIUS, (0.95, 0.95, 0.95)),
)


@dataclass(frozen=True)
class ToyConfig:
    """How the toy is simulated and seen."""

    tasks: tuple[str, ...] = ("ToyPush-v1",)  # ToyPush-v1 | ToyReach-v1, one or both
    cameras: tuple[str, ...] = ("base_camera",)  # base_camera (the whole plane) | hand_camera (around the agent)
    image_size: int = 16  # pixels, height and width
    image_sizes: dict[str, int] = field(default_factory=dict)  # pixels, for single cameras, e.g. {hand_camera: 12}
    actions_per_frame: int = 2  # environment steps (10 Hz) from one stored frame to the next
    num_envs: int = 64  # most rows that run at once
    max_episode_steps: int = 20  # environment steps before an episode is truncated
    success_hold_frames: int = 0  # stored frames for which an episode goes on after its success
    success_confirm_frames: int = 0  # further frames that must agree before imagination declares a success

    def __post_init__(self) -> None:
        require_names("simulator.toy.tasks", self.tasks, TASKS)
        require_names("simulator.toy.cameras", self.cameras, CAMERAS)
        make_cameras("simulator.toy", self.cameras, self.image_size, self.image_sizes, smallest=8)
        for key in ("actions_per_frame", "num_envs", "max_episode_steps"):
            if getattr(self, key) < 1:
                raise ValueError(f"simulator.toy.{key} must be at least 1, got {getattr(self, key)}")
        require_success_frames("simulator.toy", self.success_hold_frames, self.success_confirm_frames)

    def for_play(self) -> Self:
        """One row, whose episodes neither a success nor a time limit ends."""
        return replace(self, num_envs=1, max_episode_steps=ENDLESS_STEPS, success_hold_frames=ENDLESS_STEPS)


class ToySimulator(ChunkedSimulator):
    """`TaskSimulator` of the toy's tasks."""

    Config = ToyConfig
    state_dim = STATE_DIM

    def __init__(self, config: ToyConfig) -> None:
        self.config = config
        self.spec = self.make_spec(config)
        self.num_envs = config.num_envs
        self._state = torch.zeros(0, STATE_DIM)
        self._tasks: tuple[str, ...] = ()

    @staticmethod
    def make_spec(config: ToyConfig) -> SimulatorSpec:
        """The spec of the toy under ``config``."""
        robot = RobotSpec(
            name="disc",
            proprio_names=("agent_x", "agent_y", "agent_vx", "agent_vy"),
            action_names=("dx", "dy"),
            action_low=(-1.0, -1.0),
            action_high=(1.0, 1.0),
            control_mode="delta_pos",
            action_labels=(("left", "right"), ("up", "down")),
            hz=HZ,
            cameras=make_cameras("simulator.toy", config.cameras, config.image_size, config.image_sizes),
            joints=tuple(
                JointSpec(name, -1.0, 1.0, max_velocity=STEP * HZ, max_acceleration=2 * STEP * HZ**2)
                for name in ("agent_x", "agent_y")
            ),
        )
        landmarks = (
            Landmark("object", "sim_state", (4, 5), METRES_PER_UNIT),
            Landmark("goal", "sim_state", (6, 7), METRES_PER_UNIT),
            Landmark("effector", "proprio", (0, 1), METRES_PER_UNIT),
        )
        radius_m = GOAL_RADIUS * METRES_PER_UNIT
        return SimulatorSpec(
            robot=robot,
            tasks=tuple(
                TaskSpec(name, TASKS[name].instructions, radius_m, config.max_episode_steps, landmarks)
                for name in config.tasks
            ),
            actions_per_frame=config.actions_per_frame,
            simulator_version="toy 1",
            success_hold_frames=config.success_hold_frames,
            success_confirm_frames=config.success_confirm_frames,
        )

    def draw_initial_states(self, task: str, split: Split, num_states: int, seed: int, first: int = 0) -> InitialStates:
        """State i comes from ``derive_seed(task, split, seed, i)`` alone."""
        self.spec.task(task)
        states = torch.zeros(num_states, STATE_DIM)
        numbers = range(first, first + num_states)
        for row, i in enumerate(numbers):
            generator = make_generator(derive_seed(task, split, seed, i))
            noise = torch.rand(4, generator=generator)
            block = torch.stack([noise[0] * 0.4 - 0.3, noise[1] * 0.8 - 0.4])
            states[row, 0] = block[0] - 0.5 + 0.1 * (noise[2] - 0.5)
            states[row, 1] = block[1] + 0.5 * (noise[3] - 0.5)
            states[row, BLOCK] = states[row, BLOCK_START] = block
            states[row, GOAL] = block + torch.tensor([WAY + GOAL_RADIUS, 0.0])
        ids = tuple(f"{task}/{split}/{seed}-{i:06d}" for i in numbers)
        return InitialStates(split, ids, (task,) * num_states, states)

    def make_scripted_policy(
        self, tasks: tuple[str, ...], variants: tuple[str, ...], row_keys: Tensor, chunk_length: int
    ) -> ToyScriptedPolicy:
        """See `ScriptedSource`; the variants are `SCRIPTED_VARIANTS`."""
        return ToyScriptedPolicy(tasks, draw_variant_parameters(variants, row_keys), chunk_length)

    def close(self) -> None:
        """Nothing to free."""
        self._batch = None

    def _load(self, states: Tensor, tasks: tuple[str, ...], rows: Tensor, num_rows: int) -> None:
        is_running = len(self._state) == num_rows
        state = self._state.clone() if is_running else torch.zeros(num_rows, STATE_DIM)
        state[rows] = states
        names = list(self._tasks) if is_running else [""] * num_rows
        for row, task in zip(rows.tolist(), tasks, strict=True):
            names[row] = task
        self._state, self._tasks = state, tuple(names)

    def _advance(self, actions: Tensor, running: Tensor) -> None:
        s = self._state
        move = actions.clamp(-1, 1) * STEP
        agent = (s[:, AGENT] + move).clamp(-1, 1)
        gap = s[:, BLOCK] - agent
        distance = (gap[:, :1] * gap[:, :1] + gap[:, 1:] * gap[:, 1:]).sqrt().clamp_min(1e-6)
        # an overlapping block is moved out along the line of centres
        block = (s[:, BLOCK] + gap / distance * (CONTACT - distance).clamp_min(0)).clamp(-1, 1)
        after = torch.cat([agent, agent - s[:, AGENT], block, s[:, 6:]], dim=1)
        self._state = torch.where(running[:, None], after, s)

    def _measure(self) -> Measurement:
        s = self._state
        gap = _by_task(self._tasks, lambda task: task.measure_gap(s))
        return Measurement(s[:, :4].clone(), s.clone(), gap <= 0, gap.clamp_min(0) * METRES_PER_UNIT)

    def _render(self) -> dict[str, Tensor]:
        centre = {"base_camera": torch.zeros(len(self._state), 2), "hand_camera": self._state[:, AGENT]}
        reach = {"base_camera": 1.0, "hand_camera": HAND_VIEW}
        return {
            camera.name: self._draw(centre[camera.name], reach[camera.name], camera.width)
            for camera in self.spec.robot.cameras
        }

    def _draw(self, centre: Tensor, reach: float, size: int) -> Tensor:
        """Images u8 [B, size, size, 3] of the plane, ``reach`` units to each side of ``centre`` [B, 2]."""
        axis = ((torch.arange(size).float() + 0.5) / size * 2 - 1) * reach
        x, y = axis[None, None, :] + centre[:, 0, None, None], axis[None, :, None] + centre[:, 1, None, None]
        image = torch.tensor(_BACKGROUND).expand(len(self._state), size, size, 3)
        for place, radius, colour in _DISCS:
            dx = x - self._state[:, place.start, None, None]
            dy = y - self._state[:, place.start + 1, None, None]
            cover = ((radius - (dx * dx + dy * dy).sqrt()) * size / (2 * reach) + 0.5).clamp(0, 1)[..., None]
            image = image * (1 - cover) + torch.tensor(colour) * cover
        return (image * 255).round().to(torch.uint8)


class ToyScriptedPolicy:
    """The tasks' experts and perturbations. Actions depend only on state, step and the rows' parameters."""

    version = "scripted-1"

    def __init__(self, tasks: tuple[str, ...], parameters: VariantParameters, chunk_length: int) -> None:
        self._tasks = tasks
        self._p = parameters
        self._chunk_length = chunk_length
        self._cap = _by_task(tasks, lambda task: task.limit_speed(parameters))[:, None]

    def act(self, observation: Observation, noise_key: Tensor | None = None) -> ActionChunk:
        """H actions f32 [B, H, 2] within +-0.6; the randomness is in the row keys, ``noise_key`` is not used."""
        if observation.sim_state is None:
            raise ValueError("a scripted policy needs observation.sim_state")
        state = observation.sim_state
        agent, actions = state[:, AGENT].clone(), []
        for h in range(self._chunk_length):
            step = observation.env_step + h
            delta = self._plan(agent, state, step)
            delta = delta + self._p.noise_scale[:, None] * smooth_noise(self._p.noise_phase, step, 2)
            delta = delta.clamp(-ACTION_LIMIT, ACTION_LIMIT)
            agent = (agent + STEP * delta).clamp(-1, 1)
            actions.append(delta)
        return ActionChunk(torch.stack(actions, dim=1), policy_version=self.version)

    def _plan(self, agent: Tensor, state: Tensor, step: Tensor) -> Tensor:
        """The action f32 [B, 2] of one step, before noise; zero while the row waits."""
        delta = _by_task(self._tasks, lambda task: task.plan(self._p, state, agent)) / STEP
        delta = delta.clamp(-self._cap, self._cap)
        waits = step.float() < self._p.wait_steps * 0.7
        return torch.where(waits[:, None], torch.zeros_like(delta), delta)


def _by_task(tasks: tuple[str, ...], compute: Callable[[ToyTask], Tensor]) -> Tensor:
    """[B, ...]: for each row the result of ``compute`` for its task. ``compute`` returns values for all B rows."""
    names = list(dict.fromkeys(tasks))
    result = compute(TASKS[names[0]])
    for name in names[1:]:
        mask = torch.tensor([task == name for task in tasks])
        values = compute(TASKS[name])
        result = torch.where(mask.view(-1, *[1] * (values.dim() - 1)), values, result)
    return result
