"""The base of our simulators: time limit, success, ``valid`` and context frames of an action chunk.

A subclass says how to load states, advance one action, measure and render. `ChunkedSimulator` makes a
`worldloop.core.interfaces.Simulator` of it, by these rules:

- After its first success a row goes on for ``spec.success_hold_frames`` frames, and then to the end of the chunk. So
  frames show the scene after all their actions, and what success looks like. These steps are not ``valid``.
- A step past the time limit of the row's task is not executed. A row that has ended keeps its frames, proprio and
  state.
- ``Observation.frames`` are (first of the episode, previous stored frame, now) of each camera; all equal after a reset.
- A row's instruction is one of its task's paraphrases, see `choose_instruction`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worldloop.core.errors import WorldloopError
from worldloop.core.randomness import derive_seed
from worldloop.core.specs import CameraSpec, SimulatorSpec, TaskSpec
from worldloop.core.tensors import Rows, check_shape
from worldloop.core.types import ChunkStep, InitialStates, Observation

ENDLESS_STEPS = 10**6  # a time limit that no game in the browser reaches


def choose_instruction(task: TaskSpec, state_id: str) -> str:
    """One of the task's paraphrases, a fixed function of the initial state's id."""
    return task.instructions[derive_seed("instruction", state_id) % len(task.instructions)]


def name_version(package: str) -> str:
    """E.g. ``mani_skill 3.0.1``: the installed version, so that a spec can be made without importing the package."""
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} (not installed)"


def require_names(key: str, names: Sequence[str], allowed: Collection[str]) -> None:
    """Raise ``ValueError`` unless ``names``, the value of the setting ``key``, are one or more of ``allowed``."""
    for name in names:
        if name not in allowed:
            raise ValueError(f"{key} {name!r} is not one of {', '.join(allowed)}")
    if not names or len(set(names)) != len(names):
        raise ValueError(f"{key} must name one or more of {', '.join(allowed)}, each once, got {list(names)}")


def make_cameras(
    section: str, names: Sequence[str], image_size: int, image_sizes: Mapping[str, int], smallest: int = 1
) -> tuple[CameraSpec, ...]:
    """Square cameras of ``image_size`` pixels, or of the size in ``image_sizes``: the settings of config ``section``.

    Raises ``ValueError`` for a size of a camera that is not in use, and for one below ``smallest``.
    """
    for name in image_sizes:
        if name not in names:
            raise ValueError(f"{section}.image_sizes.{name}: only {', '.join(names)} is in {section}.cameras")
    for key, size in {"image_size": image_size, **{f"image_sizes.{n}": v for n, v in image_sizes.items()}}.items():
        if size < smallest:
            raise ValueError(f"{section}.{key} must be at least {smallest}, got {size}")
    sizes = {name: image_sizes.get(name, image_size) for name in names}
    return tuple(CameraSpec(name, size, size) for name, size in sizes.items())


def list_columns(part: slice) -> tuple[int, ...]:
    """The columns of a `Landmark` that lie at ``part``, which has a start and a stop."""
    return tuple(range(part.start, part.stop))


def average_blocks(images: Tensor, size: int) -> Tensor:
    """u8 [B, n h, n w, 3] -> u8 [B, h, w, 3]: the mean of each block of n = ``size`` by n pixels."""
    if size == 1:
        return images
    return images.unfold(1, size, size).unfold(2, size, size).float().mean((4, 5)).round().to(torch.uint8)


@dataclass
class Measurement:
    """What is measured in a batch of B rows without rendering.

    ``proprio`` f32 [B, S], ``sim_state`` f32 [B, D] (its last entry is overwritten with the environment step),
    ``success`` bool [B], ``distance_m`` f32 [B].
    """

    proprio: Tensor
    sim_state: Tensor
    success: Tensor
    distance_m: Tensor


@dataclass
class _Batch(Rows):
    """The rows of the batch: their tasks, context frames, last measurement and step counts. Every field has B rows."""

    task: tuple[str, ...]
    instruction: tuple[str, ...]
    limit: Tensor  # int64 [B]: environment steps of the task
    first: dict[str, Tensor]
    previous: dict[str, Tensor]
    now: dict[str, Tensor]
    proprio: Tensor
    sim_state: Tensor
    success: Tensor
    distance_m: Tensor
    env_step: Tensor
    has_succeeded: Tensor
    frames_after: Tensor  # int64 [B]: frames shown since the one of the first success
    has_ended: Tensor


class ChunkedSimulator(ABC):
    """Base of our simulators. Subclasses set ``spec``, ``num_envs`` and ``state_dim``.

    ``required_package``: module without which the simulator cannot start; "": none. ``extra``: the extra of worldloop
    that installs it. All tensors are on the CPU.
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
                f"{cls.required_package} is not installed; install it with: pip install -e '.[{cls.extra}]' in the "
                "clone"
            )

    @abstractmethod
    def _load(self, states: Tensor, tasks: tuple[str, ...], rows: Tensor, num_rows: int) -> None:
        """Put ``states`` f32 [N, D] of ``tasks`` (N ids) into ``rows`` int64 [N] of a batch of ``num_rows``."""

    @abstractmethod
    def _advance(self, actions: Tensor, running: Tensor) -> None:
        """One environment step with ``actions`` f32 [B, A]; what happens to rows not ``running`` is ignored."""

    @abstractmethod
    def _measure(self) -> Measurement: ...

    @abstractmethod
    def _render(self) -> dict[str, Tensor]:
        """Images u8 [B, h, w, 3] of the present state by camera name, in the order of ``spec.robot.cameras``."""

    def reset(self, initial_states: InitialStates | Observation, rows: Tensor | None = None) -> Observation:
        """See `worldloop.core.interfaces.Simulator.reset`.

        An `Observation` is restored from its ``sim_state``. It keeps its instruction and, if it has three frames, its
        first and previous frame.
        """
        if isinstance(initial_states, Observation):
            states, tasks, instructions = initial_states.sim_state, initial_states.task, initial_states.instruction
        else:
            states, tasks = initial_states.states, initial_states.tasks
            pairs = zip(tasks, initial_states.ids, strict=True)
            instructions = tuple(choose_instruction(self.spec.task(task), state_id) for task, state_id in pairs)
        if states is None:
            raise ValueError("an observation without sim_state cannot start a simulator")
        check_shape("initial_states", states, (None, self.state_dim))
        states = states.detach().to("cpu", torch.float32)
        index = torch.arange(len(states)) if rows is None else rows.to("cpu", torch.long)
        num_rows = len(states) if rows is None else len(self._running_batch().env_step)
        if not 0 < num_rows <= self.num_envs or len(index) != len(states):
            raise ValueError(f"{len(states)} states for {self.num_envs} envs, rows {rows}")
        limits = torch.tensor([self.spec.task(task).max_episode_steps for task in tasks])
        self._load(states, tasks, index, num_rows)
        fresh = self._start_rows(states, tasks, instructions, limits, index)
        if isinstance(initial_states, Observation) and initial_states.num_frames == 3:
            context = initial_states.with_cameras(self.spec.robot.camera_names).frames
            fresh.first = {camera: frames[:, 0].cpu() for camera, frames in context.items()}
            fresh.previous = {camera: frames[:, 1].cpu() for camera, frames in context.items()}
        self._batch = fresh if rows is None else self._running_batch().put(index, fresh)
        return self._observe()

    def step_chunk(self, actions: Tensor) -> ChunkStep:
        """See `worldloop.core.interfaces.Simulator.step_chunk`; H must be a multiple of ``actions_per_frame``."""
        batch, spec = self._running_batch(), self.spec
        check_shape("actions", actions, (len(batch.env_step), None, spec.robot.action_dim))
        num_actions, stride = actions.shape[1], spec.actions_per_frame
        if num_actions == 0 or num_actions % stride:
            raise ValueError(f"chunk of {num_actions} actions is not a multiple of actions_per_frame={stride}")
        actions = actions.detach().to("cpu", torch.float32)
        per_step: list[tuple[Tensor, ...]] = []
        per_frame: list[tuple[Tensor, ...]] = []
        images: list[dict[str, Tensor]] = []
        for start in range(0, num_actions, stride):
            had_succeeded = batch.has_succeeded
            per_step += self._run_frame(batch, actions[:, start : start + stride])
            batch.frames_after = batch.frames_after + had_succeeded.long()
            per_frame.append((batch.proprio, batch.sim_state, batch.has_succeeded.float()))
            images.append(batch.now)
        is_done = batch.has_succeeded & (batch.frames_after >= spec.success_hold_frames)
        batch.has_ended = is_done | (batch.env_step >= batch.limit)
        rewards, valid, success, distances = (torch.stack(column, dim=1) for column in zip(*per_step, strict=True))
        proprio, states, success_prob = (torch.stack(column, dim=1) for column in zip(*per_frame, strict=True))
        return ChunkStep(
            observation=self._observe(),
            frames=_stack_frames(images),
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
        """Run the s actions of one stored frame; returns (reward, valid, success, distance) per action, each [B]."""
        results: list[tuple[Tensor, ...]] = []
        shown: dict[str, Tensor] | None = None  # this frame's images; a row that hit its limit early keeps its own
        moved = torch.zeros_like(batch.has_ended)
        pending = moved
        for action in actions.unbind(1):
            running = ~batch.has_ended & (batch.env_step < batch.limit)
            if running.any():
                if (pending & ~running).any():  # others go on: show those that just stopped before they move
                    shown = _select_frames(pending & ~running, self._render(), shown)
                self._advance(action, running)
                self._record(batch, running)
                moved, pending = moved | running, running
            valid = running & ~batch.has_succeeded
            first_success = valid & batch.success
            batch.has_succeeded = batch.has_succeeded | first_success
            results.append((first_success.float(), valid, batch.success, batch.distance_m))
        if moved.any():
            shown = _select_frames(pending, self._render(), shown)
            batch.previous = _select_frames(moved, batch.now, batch.previous)
            batch.now = _select_frames(moved, shown, batch.now)
        return results

    def _record(self, batch: _Batch, running: Tensor) -> None:
        """After one environment step, measure and write the result into the rows that ran."""
        batch.env_step = batch.env_step + running.long()
        measured = self._measure()
        measured.sim_state[:, -1] = batch.env_step.float()
        for name, value in vars(measured).items():
            setattr(batch, name, _select(running, value, getattr(batch, name)))

    def _start_rows(
        self, states: Tensor, tasks: tuple[str, ...], instructions: tuple[str, ...], limits: Tensor, index: Tensor
    ) -> _Batch:
        """A batch of the N rows at ``index`` that were just loaded, at the start of their episodes."""
        frames, measured = {camera: images[index] for camera, images in self._render().items()}, self._measure()
        env_step = states[:, -1].round().long()
        measured.sim_state = measured.sim_state[index]
        measured.sim_state[:, -1] = env_step.float()
        return _Batch(
            task=tasks,
            instruction=instructions,
            limit=limits,
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
            has_ended=env_step >= limits,
        )

    def _running_batch(self) -> _Batch:
        if self._batch is None:
            raise RuntimeError(f"{', '.join(self.spec.task_ids)}: call reset with initial states first")
        return self._batch

    def _observe(self) -> Observation:
        batch = self._running_batch()
        return Observation(
            frames=_stack_frames([batch.first, batch.previous, batch.now]),
            proprio=batch.proprio,
            task=batch.task,
            instruction=batch.instruction,
            env_step=batch.env_step,
            sim_state=batch.sim_state,
        )


def _stack_frames(images: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """n images [B, h, w, 3] by camera -> [B, n, h, w, 3] by camera."""
    return {camera: torch.stack([image[camera] for image in images], dim=1) for camera in images[0]}


def _select(mask: Tensor, new: Tensor, old: Tensor | None) -> Tensor:
    """``new`` where ``mask`` [B] is true, else ``old``. A copy, so that nothing returned earlier changes."""
    if old is None:
        return new.clone()
    return torch.where(mask.view(-1, *[1] * (new.dim() - 1)), new, old)


def _select_frames(mask: Tensor, new: dict[str, Tensor], old: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """`_select` for every camera."""
    return {camera: _select(mask, images, None if old is None else old[camera]) for camera, images in new.items()}
