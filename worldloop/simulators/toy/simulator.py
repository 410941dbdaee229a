"""ToyPush-v1: a disc pushes a disc to a goal, in pure torch, for tests that take seconds.

The plane is [-1, 1]^2 and one unit counts as one tenth of a metre wherever metres are reported, so that margins
compare with ManiSkill's. All maths is elementwise per row: a row's result is bit-identical whatever the batch.

State f32 [B, 11]: agent xy, agent velocity xy, block xy, goal xy, start-of-episode block xy, env_step.
Action f32 [B, 2]: (dx, dy) in [-1, 1], of which 1 moves the agent 0.2 units. Proprio: agent xy, agent velocity xy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from worldloop.core.randomness import derive_seed, make_generator
from worldloop.core.specs import Landmark, SimulatorSpec
from worldloop.core.success import require_success_frames
from worldloop.core.types import ActionChunk, InitialStates, Observation, Split
from worldloop.simulators.base import ENDLESS_STEPS, ChunkedSimulator, Measurement
from worldloop.simulators.perturbations import VariantParameters, draw_variant_parameters, smooth_noise

TOY_TASK = "ToyPush-v1"
METRES_PER_UNIT = 0.1
_STATE_DIM = 11
_STEP = 0.2  # units the agent moves per step at full action
_AGENT_RADIUS, _BLOCK_RADIUS, _GOAL_RADIUS = 0.16, 0.18, 0.3
_CONTACT = _AGENT_RADIUS + _BLOCK_RADIUS
_WAY = 0.5  # units the block has to move to reach the goal region
_COLOURS = {"goal": (0.85, 0.25, 0.25), "block": (0.15, 0.3, 0.85), "agent": (0.95, 0.95, 0.95)}
_BACKGROUND = (0.35, 0.28, 0.2)


@dataclass(frozen=True)
class ToyConfig:
    """How the toy is simulated and seen."""

    image_size: int = 16  # pixels, height and width
    actions_per_frame: int = 2  # environment steps (10 Hz) between two stored frames
    num_envs: int = 64  # most rows that run at once
    max_episode_steps: int = 20  # environment steps before an episode is truncated
    success_hold_frames: int = 0  # frames an episode goes on for after its success
    success_confirm_frames: int = 0  # further frames that must agree before imagination declares a success

    def __post_init__(self) -> None:
        if self.image_size < 8:
            raise ValueError(f"simulator.toy.image_size must be at least 8, got {self.image_size}")
        for key in ("actions_per_frame", "num_envs", "max_episode_steps"):
            if getattr(self, key) < 1:
                raise ValueError(f"simulator.toy.{key} must be at least 1, got {getattr(self, key)}")
        require_success_frames("simulator.toy", self.success_hold_frames, self.success_confirm_frames)

    def for_play(self) -> Self:
        """One row, whose episodes neither a success nor a time limit ends."""
        return replace(self, num_envs=1, max_episode_steps=ENDLESS_STEPS, success_hold_frames=ENDLESS_STEPS)


class ToySimulator(ChunkedSimulator):
    """`TaskSimulator` of ToyPush-v1."""

    Config = ToyConfig
    state_dim = _STATE_DIM

    def __init__(self, config: ToyConfig) -> None:
        self.config = config
        self.spec = self.make_spec(config)
        self.num_envs = config.num_envs
        self._state = torch.zeros(0, _STATE_DIM)

    @staticmethod
    def make_spec(config: ToyConfig) -> SimulatorSpec:
        """The spec of the toy under ``config``."""
        return SimulatorSpec(
            task=TOY_TASK,
            instruction="push the blue disc to the red goal",
            image_size=config.image_size,
            proprio_names=("agent_x", "agent_y", "agent_vx", "agent_vy"),
            action_names=("dx", "dy"),
            action_low=(-1.0, -1.0),
            action_high=(1.0, 1.0),
            hz=10.0,
            actions_per_frame=config.actions_per_frame,
            max_episode_steps=config.max_episode_steps,
            success_radius_m=_GOAL_RADIUS * METRES_PER_UNIT,
            control_mode="delta_pos",
            camera="base_camera",
            simulator_version="toy 1",
            landmarks=(
                Landmark("object", "sim_state", (4, 5), METRES_PER_UNIT),
                Landmark("effector", "proprio", (0, 1), METRES_PER_UNIT),
            ),
            success_hold_frames=config.success_hold_frames,
            success_confirm_frames=config.success_confirm_frames,
        )

    def draw_initial_states(self, split: Split, num_states: int, seed: int, first: int = 0) -> InitialStates:
        """State i comes from ``derive_seed(task, split, seed, i)`` alone."""
        states = torch.zeros(num_states, _STATE_DIM)
        numbers = range(first, first + num_states)
        for row, i in enumerate(numbers):
            generator = make_generator(derive_seed(TOY_TASK, split, seed, i))
            noise = torch.rand(4, generator=generator)
            block = torch.stack([noise[0] * 0.4 - 0.3, noise[1] * 0.8 - 0.4])
            states[row, 0] = block[0] - 0.5 + 0.1 * (noise[2] - 0.5)
            states[row, 1] = block[1] + 0.5 * (noise[3] - 0.5)
            states[row, 4:6] = states[row, 8:10] = block
            states[row, 6:8] = block + torch.tensor([_WAY + _GOAL_RADIUS, 0.0])
        ids = tuple(f"{TOY_TASK}/{split}/{seed}-{i:06d}" for i in numbers)
        return InitialStates(split, ids, states)

    def make_scripted_policy(self, variants: tuple[str, ...], row_keys: Tensor, chunk_length: int) -> ToyScriptedPolicy:
        """See `ScriptedSource`; the variants are `SCRIPTED_VARIANTS`."""
        return ToyScriptedPolicy(draw_variant_parameters(variants, row_keys), chunk_length)

    def close(self) -> None:
        """Nothing to free."""
        self._batch = None

    def _load(self, states: Tensor, rows: Tensor, num_rows: int) -> None:
        state = self._state.clone() if len(self._state) == num_rows else torch.zeros(num_rows, _STATE_DIM)
        state[rows] = states
        self._state = state

    def _advance(self, actions: Tensor, running: Tensor) -> None:
        s = self._state
        move = actions.clamp(-1, 1) * _STEP
        agent = (s[:, 0:2] + move).clamp(-1, 1)
        gap = s[:, 4:6] - agent
        distance = (gap[:, :1] * gap[:, :1] + gap[:, 1:] * gap[:, 1:]).sqrt().clamp_min(1e-6)
        # an overlapping block is moved out along the line of centres
        block = (s[:, 4:6] + gap / distance * (_CONTACT - distance).clamp_min(0)).clamp(-1, 1)
        after = torch.cat([agent, agent - s[:, 0:2], block, s[:, 6:]], dim=1)
        self._state = torch.where(running[:, None], after, s)

    def _measure(self) -> Measurement:
        s = self._state
        gap = s[:, 4:6] - s[:, 6:8]
        distance = (gap[:, 0] * gap[:, 0] + gap[:, 1] * gap[:, 1]).sqrt() - _GOAL_RADIUS
        margin = distance.clamp_min(0) * METRES_PER_UNIT
        return Measurement(s[:, :4].clone(), s.clone(), distance <= 0, margin)

    def _render(self) -> Tensor:
        size = self.config.image_size
        axis = (torch.arange(size).float() + 0.5) / size * 2 - 1
        x, y = axis[None, None, :], axis[None, :, None]
        image = torch.tensor(_BACKGROUND).expand(len(self._state), size, size, 3)
        for name, column, radius in (("goal", 6, _GOAL_RADIUS), ("block", 4, _BLOCK_RADIUS), ("agent", 0, 0.16)):
            dx = x - self._state[:, column, None, None]
            dy = y - self._state[:, column + 1, None, None]
            cover = ((radius - (dx * dx + dy * dy).sqrt()) * size / 2 + 0.5).clamp(0, 1)[..., None]
            image = image * (1 - cover) + torch.tensor(_COLOURS[name]) * cover
        return (image * 255).round().to(torch.uint8)


class ToyScriptedPolicy:
    """The toy's expert and perturbations; memoryless: a function of state, step and the rows' parameters."""

    version = "scripted-1"

    def __init__(self, parameters: VariantParameters, chunk_length: int) -> None:
        self._p = parameters
        self._chunk_length = chunk_length

    def act(self, observation: Observation, noise_key: Tensor | None = None) -> ActionChunk:
        """H actions f32 [B, H, 2] within +-0.6; the randomness is in the row keys, ``noise_key`` is not used."""
        if observation.sim_state is None:
            raise ValueError("a scripted policy needs observation.sim_state")
        state = observation.sim_state
        agent, start, actions = state[:, 0:2].clone(), state[:, 8:10], []
        for h in range(self._chunk_length):
            step = observation.env_step + h
            delta = self._plan(agent, start, step)
            delta = delta + self._p.noise_scale[:, None] * smooth_noise(self._p.noise_phase, step, 2)
            delta = delta.clamp(-0.6, 0.6)
            agent = (agent + _STEP * delta).clamp(-1, 1)
            actions.append(delta)
        return ActionChunk(torch.stack(actions, dim=1), policy_version=self.version)

    def _plan(self, agent: Tensor, start: Tensor, step: Tensor) -> Tensor:
        """Get onto the line behind the block, then along it; ``too_high`` and ``far`` keep off the block."""
        p = self._p
        # lateral offsets are given in ManiSkill's metres for a 4 cm cube; the toy's block is 0.36 units wide
        offset = p.lateral_m / 0.04 * 2 * _BLOCK_RADIUS + torch.where(p.height_m > 0, 0.5 + 2 * p.height_m, 0.0)
        offset = torch.where(p.wanders, torch.where(start[:, 1] > 0, -0.7, 0.7), offset)
        line_y = start[:, 1] + offset
        final_x = start[:, 0] + p.progress.clamp_max(1.15) * _WAY - _CONTACT
        off_line = (agent[:, 1] - line_y).abs()
        is_behind = agent[:, 0] <= start[:, 0] - _CONTACT
        goes = (off_line < 0.03) | (~is_behind & (off_line < 0.1))
        behind_x = torch.minimum(agent[:, 0], start[:, 0] - _CONTACT - 0.06)
        target_x = torch.where(goes, final_x, behind_x)
        delta = torch.stack([target_x - agent[:, 0], line_y - agent[:, 1]], dim=1) / _STEP
        cap = (0.6 * p.speed)[:, None]
        delta = delta.clamp(-cap, cap)
        waits = step.float() < p.wait_steps * 0.7
        return torch.where(waits[:, None], torch.zeros_like(delta), delta)
