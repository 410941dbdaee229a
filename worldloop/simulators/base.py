"""What every simulator of ours does with an action chunk: time limit, success, ``valid``, context frames.

A simulator says how to load states, advance one action, measure and render; `ChunkedSimulator` turns that into
`worldloop.core.interfaces.Simulator`. The rules live here once:

- After the first success the row goes on for ``spec.success_hold_frames`` frames and then to the end of the chunk, so
  that frames show the scene after all their actions and what success looks like, but those steps are not ``valid``.
- A step past the time limit is not executed. A row that has ended keeps its frames, proprio and state.
- ``Observation.frames`` are (first of the episode, previous stored frame, now); all equal after a reset.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from worldloop.core.errors import WorldloopError
from worldloop.core.specs import SimulatorSpec
from worldloop.core.tensors import check_shape
from worldloop.core.types import ChunkStep, Observation

ENDLESS_STEPS = 10**6  # a time limit that no game in the browser reaches


@dataclass
class Measurement:
    """What can be read off a batch without rendering.

    ``proprio`` f32 [B, S], ``sim_state`` f32 [B, D] (its last entry is overwritten with the environment step),
    ``success`` bool [B], ``distance_m`` f32 [B].
    """

    proprio: Tensor
    sim_state: Tensor
    success: Tensor
    distance_m: Tensor


@dataclass
class _Batch:
    """The rows that are running: context frames, last measurement, clocks. Every tensor starts with B."""

    first: Tensor
    previous: Tensor
    now: Tensor
    proprio: Tensor
    sim_state: Tensor
    success: Tensor
    distance_m: Tensor
    env_step: Tensor
    has_succeeded: Tensor
    frames_after: Tensor  # int64 [B]: frames shown since the one of the first success
    has_ended: Tensor

    def put(self, rows: Tensor, other: _Batch) -> None:
        """Overwrite ``rows`` with ``other``'s rows."""
        for name, value in vars(other).items():
            tensor = getattr(self, name).clone()
            tensor[rows] = value
            setattr(self, name, tensor)


class ChunkedSimulator(ABC):
    """Base of ManiSkill and the toy. Subclasses set ``spec`` and ``num_envs``; tensors are on the CPU.

    ``required_package`` is a module without which it cannot start, "" for none; ``extra`` of worldloop installs it.
    """

    required_package = ""
    extra = ""
    spec: SimulatorSpec
    num_envs: int
    state_dim: int
    _batch: _Batch | None = None

    @classmethod
    def require_installed(cls) -> None:
        """Raise `WorldloopError` unless the package that the simulator needs is installed."""
        if cls.required_package and importlib.util.find_spec(cls.required_package) is None:
            raise WorldloopError(
                f"{cls.required_package} is not installed; install it with: pip install 'worldloop[{cls.extra}]'"
            )

    @abstractmethod
    def _load(self, states: Tensor, rows: Tensor, num_rows: int) -> None:
        """Put ``states`` f32 [N, D] into ``rows`` int64 [N] of a batch of ``num_rows``."""

    @abstractmethod
    def _advance(self, actions: Tensor, running: Tensor) -> None:
        """One environment step with ``actions`` f32 [B, A]; what happens to rows not ``running`` is ignored."""

    @abstractmethod
    def _measure(self) -> Measurement: ...

    @abstractmethod
    def _render(self) -> Tensor:
        """Images u8 [B, h, w, 3] of the present state."""

    def reset(self, initial_states: Tensor | Observation, rows: Tensor | None = None) -> Observation:
        """See `worldloop.core.interfaces.Simulator.reset`.

        From an `Observation` its ``sim_state`` is restored, and its first and previous frame stay as context.
        """
        states = initial_states.sim_state if isinstance(initial_states, Observation) else initial_states
        if states is None:
            raise ValueError(f"{self.spec.task}: an observation without sim_state cannot start a simulator")
        check_shape("initial_states", states, (None, self.state_dim))
        states = states.detach().to("cpu", torch.float32)
        index = torch.arange(len(states)) if rows is None else rows.to("cpu", torch.long)
        num_rows = len(states) if rows is None else self._running_batch().env_step.shape[0]
        if not 0 < num_rows <= self.num_envs or len(index) != len(states):
            raise ValueError(f"{self.spec.task}: {len(states)} states for {self.num_envs} envs, rows {rows}")
        self._load(states, index, num_rows)
        fresh = self._start_rows(states, index)
        if isinstance(initial_states, Observation) and initial_states.frames.shape[1] == 3:
            fresh.first, fresh.previous = initial_states.frames[:, 0].cpu(), initial_states.frames[:, 1].cpu()
        if rows is None:
            self._batch = fresh
        else:
            self._running_batch().put(index, fresh)
        return self._observe()

    def step_chunk(self, actions: Tensor) -> ChunkStep:
        """See `worldloop.core.interfaces.Simulator.step_chunk`; H must be a multiple of ``actions_per_frame``."""
        batch, spec = self._running_batch(), self.spec
        check_shape("actions", actions, (len(batch.env_step), None, spec.action_dim))
        num_actions, stride = actions.shape[1], spec.actions_per_frame
        if num_actions == 0 or num_actions % stride:
            raise ValueError(f"chunk of {num_actions} actions is not a multiple of actions_per_frame={stride}")
        actions = actions.detach().to("cpu", torch.float32)
        per_step: list[tuple[Tensor, ...]] = []
        per_frame: list[tuple[Tensor, ...]] = []
        for start in range(0, num_actions, stride):
            had_succeeded = batch.has_succeeded
            per_step += self._run_frame(batch, actions[:, start : start + stride])
            batch.frames_after = batch.frames_after + had_succeeded.long()
            per_frame.append((batch.now, batch.proprio, batch.sim_state, batch.has_succeeded.float()))
        is_done = batch.has_succeeded & (batch.frames_after >= spec.success_hold_frames)
        batch.has_ended = is_done | (batch.env_step >= spec.max_episode_steps)
        rewards, valid, success, distances = (torch.stack(column, dim=1) for column in zip(*per_step, strict=True))
        frames, proprio, states, success_prob = (torch.stack(c, dim=1) for c in zip(*per_frame, strict=True))
        return ChunkStep(
            observation=self._observe(),
            frames=frames,
            proprio=proprio,
            rewards=rewards,
            success_prob=success_prob,
            valid=valid,
            success=success,
            terminated=batch.has_ended & batch.has_succeeded,
            truncated=batch.has_ended & ~batch.has_succeeded,
            distances_m=distances,
            sim_states=states,
        )

    def _run_frame(self, batch: _Batch, actions: Tensor) -> list[tuple[Tensor, ...]]:
        """Run the s actions of one stored frame; per action (reward, valid, success, distance), each [B]."""
        limit = self.spec.max_episode_steps
        results: list[tuple[Tensor, ...]] = []
        shown: Tensor | None = None  # this frame's images; a row that hit its limit early keeps its own
        moved = torch.zeros_like(batch.has_ended)
        pending = moved
        for action in actions.unbind(1):
            running = ~batch.has_ended & (batch.env_step < limit)
            if running.any():
                if (pending & ~running).any():  # others go on: show those that just stopped before they move
                    shown = _select(pending & ~running, self._render(), shown)
                self._advance(action, running)
                self._record(batch, running)
                moved, pending = moved | running, running
            valid = running & ~batch.has_succeeded
            first_success = valid & batch.success
            batch.has_succeeded = batch.has_succeeded | first_success
            results.append((first_success.float(), valid, batch.success, batch.distance_m))
        if moved.any():
            shown = _select(pending, self._render(), shown)
            batch.previous = _select(moved, batch.now, batch.previous)
            batch.now = _select(moved, shown, batch.now)
        return results

    def _record(self, batch: _Batch, running: Tensor) -> None:
        """Take over the measurement after one environment step in the rows that ran."""
        batch.env_step = batch.env_step + running.long()
        measured = self._measure()
        measured.sim_state[:, -1] = batch.env_step.float()
        for name, value in vars(measured).items():
            setattr(batch, name, _select(running, value, getattr(batch, name)))

    def _start_rows(self, states: Tensor, index: Tensor) -> _Batch:
        frames, measured = self._render()[index], self._measure()
        env_step = states[:, -1].round().long()
        measured.sim_state = measured.sim_state[index]
        measured.sim_state[:, -1] = env_step.float()
        return _Batch(
            first=frames,
            previous=frames,
            now=frames,
            proprio=measured.proprio[index],
            sim_state=measured.sim_state,
            success=measured.success[index],
            distance_m=measured.distance_m[index],
            env_step=env_step,
            has_succeeded=torch.zeros(len(index), dtype=torch.bool),
            frames_after=torch.zeros(len(index), dtype=torch.long),
            has_ended=env_step >= self.spec.max_episode_steps,
        )

    def _running_batch(self) -> _Batch:
        if self._batch is None:
            raise RuntimeError(f"{self.spec.task}: call reset with initial states first")
        return self._batch

    def _observe(self) -> Observation:
        batch = self._running_batch()
        return Observation(
            frames=torch.stack([batch.first, batch.previous, batch.now], dim=1),
            proprio=batch.proprio,
            instruction=(self.spec.instruction,) * len(batch.env_step),
            env_step=batch.env_step,
            sim_state=batch.sim_state,
        )


def _select(mask: Tensor, new: Tensor, old: Tensor | None) -> Tensor:
    """``new`` where ``mask`` [B], else ``old``; a copy, so that nothing returned earlier changes."""
    if old is None:
        return new.clone()
    return torch.where(mask.view(-1, *[1] * (new.dim() - 1)), new, old)
