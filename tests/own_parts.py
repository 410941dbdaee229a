"""A simulator and a policy of one's own, as configs name them: ``own_parts:ReachSimulator`` and the like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from worldloop.core.interfaces import LikelihoodPolicy, Metrics
from worldloop.core.randomness import derive_seed, make_generator, row_normal, row_uniform
from worldloop.core.specs import CameraSpec, Landmark, RobotSpec, SimulatorSpec, TaskSpec
from worldloop.core.types import ActionChunk, ImitationBatch, InitialStates, Normalisation, Observation, Split
from worldloop.simulators.base import ChunkedSimulator, Measurement

REACH = 0.25  # to the goal, for success
STEP = 0.15  # how far an action of 1 moves


@dataclass(frozen=True)
class ReachConfig:
    """What ``simulator.options`` may hold."""

    image_size: int = 16  # pixels, height and width
    num_envs: int = 32  # most rows that run at once


class ReachSimulator(ChunkedSimulator):
    """A point goes to a goal in the plane. State f32 [B, 5]: point xy, goal xy, env_step."""

    Config = ReachConfig
    state_dim = 5

    def __init__(self, config: ReachConfig) -> None:
        self.spec = self.make_spec(config)
        self.num_envs = config.num_envs
        self._state = torch.zeros(0, 5)

    @staticmethod
    def make_spec(config: ReachConfig) -> SimulatorSpec:
        robot = RobotSpec(
            name="point",
            proprio_names=("x", "y"),
            action_names=("dx", "dy"),
            action_low=(-1.0, -1.0),
            action_high=(1.0, 1.0),
            control_mode="delta_pos",
            hz=10.0,
            cameras=(CameraSpec("above", config.image_size, config.image_size),),
        )
        landmarks = (Landmark("effector", "proprio", (0, 1), 1.0),)
        return SimulatorSpec(
            robot=robot,
            tasks=(TaskSpec("Reach-v0", ("go to the green dot",), REACH, 16, landmarks),),
            actions_per_frame=2,
            simulator_version="reach 1",
            success_hold_frames=1,
            success_confirm_frames=1,
        )

    def draw_initial_states(self, task: str, split: Split, num_states: int, seed: int, first: int = 0) -> InitialStates:
        numbers = range(first, first + num_states)
        places = [torch.rand(4, generator=make_generator(derive_seed("reach", split, seed, i))) for i in numbers]
        states = torch.cat([1.6 * torch.stack(places) - 0.8, torch.zeros(num_states, 1)], dim=1)
        return InitialStates(
            split, tuple(f"reach/{split}/{seed}-{i:06d}" for i in numbers), (task,) * num_states, states
        )

    def make_scripted_policy(
        self, tasks: tuple[str, ...], variants: tuple[str, ...], row_keys: Tensor, chunk_length: int
    ) -> ReachScriptedPolicy:
        return ReachScriptedPolicy(variants, row_keys, chunk_length)

    def close(self) -> None:
        self._batch = None

    def _load(self, states: Tensor, tasks: tuple[str, ...], rows: Tensor, num_rows: int) -> None:
        state = self._state.clone() if len(self._state) == num_rows else torch.zeros(num_rows, 5)
        state[rows] = states
        self._state = state

    def _advance(self, actions: Tensor, running: Tensor) -> None:
        moved = (self._state[:, :2] + STEP * actions.clamp(-1, 1)).clamp(-1, 1)
        self._state[:, :2] = torch.where(running[:, None], moved, self._state[:, :2])

    def _measure(self) -> Measurement:
        distance = (self._state[:, :2] - self._state[:, 2:4]).norm(dim=1) - REACH
        return Measurement(self._state[:, :2].clone(), self._state.clone(), distance <= 0, distance.clamp_min(0))

    def _render(self) -> dict[str, Tensor]:
        (camera,) = self.spec.robot.cameras
        size = camera.width
        axis = (torch.arange(size) + 0.5) / size * 2 - 1
        image = torch.zeros(len(self._state), size, size, 3, dtype=torch.uint8)
        for channel, place in ((1, self._state[:, 2:4]), (0, self._state[:, :2])):
            x, y = axis - place[:, :1], axis - place[:, 1:]
            image[..., channel] = (255 * torch.exp(-(x[:, None] ** 2 + y[:, :, None] ** 2) / 0.08)).to(torch.uint8)
        return {camera.name: image}


class ReachScriptedPolicy:
    """``expert`` goes to the goal, every other variant to a place beside it."""

    version = "reach-expert"

    def __init__(self, variants: tuple[str, ...], row_keys: Tensor, chunk_length: int) -> None:
        angle = 6.3 * row_uniform(row_keys, torch.zeros_like(row_keys), (1,))
        beside = torch.tensor([[0.0 if v == "expert" else 0.5] for v in variants])
        self._offset = beside * torch.cat([angle.cos(), angle.sin()], dim=1)
        self._chunk_length = chunk_length

    def act(self, observation: Observation, noise_key: Tensor | None = None) -> ActionChunk:
        assert observation.sim_state is not None
        place, target = observation.sim_state[:, :2], observation.sim_state[:, 2:4] + self._offset
        actions = []
        for _ in range(self._chunk_length):
            actions.append(((target - place) / STEP).clamp(-0.7, 0.7))
            place = place + STEP * actions[-1]
        return ActionChunk(torch.stack(actions, dim=1), policy_version=self.version)


@dataclass(frozen=True)
class GaussianConfig:
    """What ``policy.options`` may hold."""

    width: int = 64  # hidden channels


class GaussianPolicy(LikelihoodPolicy):
    """A normal distribution for every action of the chunk, from every camera's frame now and proprio."""

    Config = GaussianConfig

    def __init__(
        self, config: GaussianConfig, spec: SimulatorSpec, normalisation: Normalisation, chunk_length: int
    ) -> None:
        super().__init__()
        self.spec, self.normalisation, self.chunk_length = spec, normalisation, chunk_length
        self.temperature, self.version = 1.0, ""
        inputs = sum(3 * camera.height * camera.width for camera in spec.robot.cameras) + spec.robot.proprio_dim
        outputs = chunk_length * spec.robot.action_dim
        self.mean = nn.Sequential(nn.Linear(inputs, config.width), nn.SiLU(), nn.Linear(config.width, outputs))
        self.log_std = nn.Parameter(torch.full((spec.robot.action_dim,), -1.0))

    def _distribution(self, observation: Observation) -> Normal:
        assert observation.proprio is not None
        seen = [observation.frames[name][:, -1].flatten(1) for name in self.spec.robot.camera_names]
        pixels = torch.cat(seen, dim=1).float() / 255 - 0.5
        mean = self.mean(torch.cat([pixels, self.normalisation.normalise(observation.proprio)], dim=1))
        mean = mean.unflatten(1, (self.chunk_length, -1))
        return Normal(mean, self.temperature * self.log_std.exp().expand_as(mean))

    @torch.no_grad()
    def act(self, observation: Observation, noise_key: Tensor | None) -> ActionChunk:
        distribution = self._distribution(observation)
        actions: Any = distribution.mean
        if noise_key is not None:
            noise = row_normal(noise_key, observation.env_step, tuple(actions.shape[1:]))
            actions = actions + distribution.stddev * noise.to(actions)
        log_probs = distribution.log_prob(actions).sum(-1)
        return ActionChunk(actions, log_probs=log_probs, policy_version=self.version)

    def log_prob(self, observation: Observation, chunk: ActionChunk) -> Tensor:
        return self._distribution(observation).log_prob(chunk.actions).sum(-1)

    def compute_imitation_loss(self, batch: ImitationBatch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        log_probs = self._distribution(batch.observation).log_prob(batch.actions).sum(-1)
        return -(log_probs * batch.valid).sum() / batch.valid.sum().clamp_min(1), {}


class NoExpert(ReachSimulator):
    make_scripted_policy = None  # type: ignore[assignment]


class NoConfig(ReachSimulator):
    Config = None  # type: ignore[assignment]


class NoSpec(ReachSimulator):
    make_spec = None  # type: ignore[assignment]


class Unbuildable(ReachSimulator):
    def __init__(self) -> None:
        """Takes no config."""


class Wordless(GaussianPolicy):
    log_prob = None  # type: ignore[assignment]


class Abstract(LikelihoodPolicy):
    Config = GaussianConfig


class NoPolicy:
    Config = GaussianConfig
    temperature, version = 1.0, ""
    act = log_prob = compute_imitation_loss = prepare = print

    def __init__(
        self, config: GaussianConfig, spec: SimulatorSpec, normalisation: Normalisation, chunk_length: int
    ) -> None:
        self.spec, self.normalisation, self.chunk_length = spec, normalisation, chunk_length
