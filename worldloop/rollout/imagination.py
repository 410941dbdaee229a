"""A world model as a `Simulator`. Policies, rollouts and metrics treat it like the real simulator.

A frame shows success if its calibrated probability reaches the threshold. Success is declared, and the row ends, at the
first frame that shows success together with the ``spec.success_confirm_frames`` frames before it. So a single false
frame does not end a row, and success comes that many frames later than in the real simulator. On the last frame before
the time limit one frame is enough. Rows that have ended cost nothing, because only running rows are imagined.

With ``truncates_uncertain`` a row also ends, without success, at the first frame whose expected PSNR is below
``floor_db``: the unknown states of MOReL (arXiv:2005.05951).

A row's threshold, floor and time limit are those of its task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from worldloop.core.context_frames import NUM_CONTEXT_FRAMES, fill_context
from worldloop.core.interfaces import Actor, ImaginedChunk, WorldModel
from worldloop.core.randomness import make_row_keys
from worldloop.core.success import Calibrations, declare
from worldloop.core.tensors import Rows
from worldloop.core.types import ChunkStep, InitialStates, Observation, Rollout
from worldloop.rollout.rollout import run_rollout


@dataclass(frozen=True)
class ImaginedRows(Rows):
    """The state of an `ImaginedSimulator`'s B rows. It is never changed in place, so it can be kept and restored.

    - ``observation``: the current observation; ``state``: the world model's state
    - ``terminated``, ``truncated`` bool [B]
    - ``recent`` bool [B, success_confirm_frames]: which of the last frames show a success, see `declare`
    """

    observation: Observation
    state: Any
    terminated: Tensor
    truncated: Tensor
    recent: Tensor

    @property
    def ended(self) -> Tensor:
        return self.terminated | self.truncated


class ImaginedSimulator:
    """A world model as a `Simulator` of up to ``num_envs`` rows, seen by the cameras that the model imagines.

    Noise keys follow from ``seed`` unless `start` gives them. Without ``ends_at_success`` no success is declared, and
    rows go on to their time limit. ``max_batch``: most rows that are imagined together; 0:
    all. It is halved, for good, each time CUDA runs out of memory.
    """

    def __init__(
        self,
        world_model: WorldModel,
        calibrations: Calibrations,
        num_envs: int,
        seed: int = 0,
        truncates_uncertain: bool = False,
        ends_at_success: bool = True,
        max_batch: int = 0,
    ) -> None:
        self.world_model = world_model
        self.spec = world_model.spec
        self.calibrations = calibrations
        self.num_envs = num_envs
        self.truncates_uncertain = truncates_uncertain
        self.ends_at_success = ends_at_success
        self.max_batch = max_batch or num_envs
        self._seed = seed
        self._num_resets = 0
        self._rows: ImaginedRows | None = None

    def reset(self, initial_states: InitialStates | Observation, rows: Tensor | None = None) -> Observation:
        """Start from observations, see `Simulator.reset`; a world model cannot start from a simulator state."""
        if not isinstance(initial_states, Observation):
            raise TypeError("an imagined simulator starts from an Observation, not from a simulator state")
        self._num_resets += 1
        keys = make_row_keys(len(initial_states), self._seed, "imagination", self._num_resets)
        return self.start(initial_states, keys, rows)

    def start(self, observation: Observation, noise_key: Tensor, rows: Tensor | None = None) -> Observation:
        """`reset` with one noise key per row, int64 [B]: rows that share a key share the world model's noise.

        Raises ``ValueError`` for a task that the world model does not know and for a camera that is missing.
        """
        self._time_limits(observation.task)
        observation = observation.with_cameras(self.spec.robot.camera_names)
        frames = {name: fill_context(images, NUM_CONTEXT_FRAMES) for name, images in observation.frames.items()}
        observation = replace(observation, frames=frames, sim_state=None)
        ended = torch.zeros(len(observation), dtype=torch.bool)
        state = self._start(observation, noise_key)
        recent = torch.zeros(len(observation), self.spec.success_confirm_frames, dtype=torch.bool)
        fresh = ImaginedRows(observation, state, ended, ended, recent)
        if rows is not None:
            if self._rows is None:
                raise ValueError("reset the whole batch before resetting single rows")
            fresh = self._rows.put(rows, fresh)
        return self.restore(fresh)

    def save(self) -> ImaginedRows:
        """The state of all rows, from which `restore` continues. Its method ``rows`` selects rows or forks them."""
        if self._rows is None:
            raise ValueError("reset before saving")
        return self._rows

    def restore(self, rows: ImaginedRows) -> Observation:
        """Continue from what `save` returned; the batch becomes these rows.

        The imagined frames are bit-equal if the same number of rows is running.
        """
        if len(rows.terminated) > self.num_envs:
            raise ValueError(f"{len(rows.terminated)} rows do not fit into {self.num_envs} environments")
        self._rows = rows
        return rows.observation

    def step_chunk(self, actions: Tensor) -> ChunkStep:
        """See `Simulator.step_chunk`. H must be a multiple of ``actions_per_frame``."""
        if self._rows is None:
            raise ValueError("reset before the first step")
        before = self._rows
        running = (~before.ended).nonzero()[:, 0]
        step = self._empty_step(before, actions)
        state, recent = before.state, before.recent
        cut = torch.zeros_like(before.terminated)
        if len(running):
            everything = len(running) == len(before.terminated)
            chosen = before.state if everything else before.state.rows(running)
            imagined, chunk = self._imagine(chosen, actions[running])
            state = imagined if everything else before.state.put(running, imagined)
            step, recent, cut = self._write_running(step, chunk, running, recent)
        terminated = before.terminated | step.success.any(1)
        observation = self._next_observation(before.observation, step, ~before.ended)
        at_limit = observation.env_step >= self._time_limits(observation.task)
        truncated = before.truncated | (~terminated & (cut | at_limit))
        self._rows = ImaginedRows(observation, state, terminated, truncated, recent)
        return replace(step, observation=observation, terminated=terminated, truncated=truncated)

    def close(self) -> None:
        self._rows = None

    def _time_limits(self, task: Sequence[str]) -> Tensor:
        """int64 [B]: environment steps after which an episode of each row's task ends."""
        limits = {name: self.spec.task(name).max_episode_steps for name in set(task)}
        return torch.tensor([limits[name] for name in task])

    def _start(self, observation: Observation, noise_key: Tensor) -> Any:
        """`WorldModel.start`, at most ``max_batch`` rows at a time."""

        def start(rows: Tensor) -> Any:
            if len(rows) == len(observation):
                return self.world_model.start(observation, noise_key)
            return self.world_model.start(observation.rows(rows), noise_key[rows])

        states = self._in_parts(start, len(observation))
        return states[0] if len(states) == 1 else type(states[0]).cat(states)

    def _imagine(self, state: Any, actions: Tensor) -> tuple[Any, ImaginedChunk]:
        """`WorldModel.imagine`, at most ``max_batch`` rows at a time."""

        def imagine(rows: Tensor) -> tuple[Any, ImaginedChunk]:
            if len(rows) == len(actions):
                return self.world_model.imagine(state, actions)
            return self.world_model.imagine(state.rows(rows), actions[rows])

        done = self._in_parts(imagine, len(actions))
        if len(done) == 1:
            return done[0]
        return type(done[0][0]).cat([s for s, _ in done]), ImaginedChunk.cat([c for _, c in done])

    def _in_parts(self, work: Callable[[Tensor], Any], num_rows: int) -> list[Any]:
        """Apply ``work`` to at most ``max_batch`` rows at a time.

        If CUDA runs out of memory, ``max_batch`` is halved and all rows run again. So ``work`` must change nothing.
        """
        while True:
            try:
                return [work(part) for part in torch.arange(num_rows).split(self.max_batch)]
            except torch.OutOfMemoryError:
                if self.max_batch == 1:
                    raise
                self.max_batch = max(1, min(self.max_batch, num_rows) // 2)
            torch.cuda.empty_cache()

    def _empty_step(self, rows: ImaginedRows, actions: Tensor) -> ChunkStep:
        before = rows.observation
        B, H = actions.shape[:2]
        M = H // self.spec.actions_per_frame
        if M * self.spec.actions_per_frame != H:
            raise ValueError(f"chunk of {H} actions is not a multiple of {self.spec.actions_per_frame} per frame")
        proprio = before.proprio
        return ChunkStep(
            observation=before,
            frames={name: images[:, -1:].repeat(1, M, 1, 1, 1) for name, images in before.frames.items()},
            proprio=None if proprio is None else proprio[:, None].repeat(1, M, 1),
            rewards=torch.zeros(B, H),
            success_prob=torch.zeros(B, M),
            valid=torch.zeros(B, H, dtype=torch.bool),
            success=torch.zeros(B, H, dtype=torch.bool),
            terminated=rows.terminated,
            truncated=rows.truncated,
        )

    def _write_running(
        self, step: ChunkStep, chunk: ImaginedChunk, running: Tensor, recent: Tensor
    ) -> tuple[ChunkStep, Tensor, Tensor]:
        """Write ``chunk`` into ``step`` at the running rows.

        Returns the step, ``recent`` after it, and which rows end because they are too uncertain, bool [B].
        ``step.success`` stays true from the frame at which success is declared.
        """
        s, calibrations = self.spec.actions_per_frame, self.calibrations
        observation = step.observation
        task = tuple(observation.task[row] for row in running.tolist())
        probability = calibrations.probability(chunk.success_logit, task).cpu()
        expected = torch.full_like(probability, torch.inf)
        if chunk.expected_psnr_db is not None:
            expected = chunk.expected_psnr_db.float().cpu() - calibrations.column("psnr_bias_db", task)[:, None]
        is_uncertain = expected < calibrations.column("floor_db", task)[:, None]
        ends = is_uncertain.cummax(1).values & self.truncates_uncertain
        probability = probability.masked_fill(ends, 0.0)
        steps_left = self._time_limits(task) - observation.env_step[running]
        past = s * torch.arange(probability.shape[1]) >= steps_left[:, None]
        shows = (probability >= calibrations.column("threshold", task)[:, None]) & ~past & self.ends_at_success
        is_last = s * torch.arange(1, probability.shape[1] + 1) >= steps_left[:, None]
        succeeded, running_recent = declare(shows, is_last, recent[running])
        recent = recent.index_copy(0, running, running_recent)
        cut = ends & ~succeeded
        counts = ((succeeded | cut).long().cumsum(1) <= 1) & ~past  # up to and with the frame that ends the row
        for name, images in step.frames.items():
            images[running] = chunk.frames[name].cpu()
        if step.proprio is not None:
            step.proprio[running] = chunk.proprio.cpu()
        step.success_prob[running] = probability
        step.success[running] = succeeded.repeat_interleave(s, 1)
        step.valid[running] = counts.repeat_interleave(s, 1)
        all_rows = torch.full((len(step.valid), expected.shape[1]), torch.inf)
        all_rows[running] = expected.masked_fill(~counts, torch.inf)
        step = replace(step, expected_psnr_db=all_rows)
        rewards = torch.zeros(len(running), step.rewards.shape[1])
        rewards[:, s - 1 :: s] = (succeeded & counts).float()
        step.rewards[running] = rewards
        return step, recent, torch.zeros_like(step.terminated).index_copy(0, running, cut[:, -1])

    def _next_observation(self, before: Observation, step: ChunkStep, was_running: Tensor) -> Observation:
        context = {}
        for name, old in before.frames.items():
            frames = torch.cat([old[:, -1:], step.frames[name]], dim=1)
            context[name] = torch.stack([old[:, 0], frames[:, -2], frames[:, -1]], dim=1)
            if not was_running.all():
                context[name] = torch.where(was_running[:, None, None, None, None], context[name], old)
        return replace(
            before,
            frames=context,
            proprio=None if step.proprio is None else step.proprio[:, -1],
            env_step=before.env_step + was_running.long() * step.valid.shape[1],
        )


def imagine_rollout(
    policy: Actor,
    world_model: WorldModel,
    calibrations: Calibrations,
    start: Observation,
    *,
    noise_key: Tensor | None,
    world_key: Tensor,
    initial_state_id: tuple[str, ...],
    group_id: Tensor | None = None,
    max_chunks: int | None = None,
    truncates_uncertain: bool = False,
    ends_at_success: bool = True,
    max_batch: int = 0,
    on_chunk: Callable[[], None] | None = None,
) -> Rollout:
    """Roll ``policy`` out in ``world_model`` from the N rows of ``start``, or in groups from each of them.

    ``world_key`` int64 [N] seeds the world model's noise, ``noise_key`` int64 [B] the policy's, `None` for greedy.
    ``group_id`` int64 [B]: the row of ``start`` from which each row of the rollout begins, and whose noise it shares;
    `None`: every row by itself, B = N. ``initial_state_id`` names B rows. For the rest see `run_rollout` and
    `ImaginedSimulator`.
    """
    num_rows = len(start) if group_id is None else len(group_id)
    simulator = ImaginedSimulator(
        world_model,
        calibrations,
        num_rows,
        truncates_uncertain=truncates_uncertain,
        ends_at_success=ends_at_success,
        max_batch=max_batch,
    )

    def begin() -> Observation:
        """Start each row of ``start`` once, then copy it for the members of its group."""
        observation = simulator.start(start, world_key)
        return observation if group_id is None else simulator.restore(simulator.save().rows(group_id))

    return run_rollout(
        policy,
        simulator,
        start,
        noise_key,
        initial_state_id=initial_state_id,
        group_id=group_id,
        max_chunks=max_chunks,
        origin="imagined",
        reset=begin,
        on_chunk=on_chunk,
    )
