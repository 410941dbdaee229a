"""The only rollout loop: any policy in any simulator, real or imagined. It also turns rollouts into stored episodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from worldloop.core.interfaces import Actor, Simulator
from worldloop.core.specs import SimulatorSpec
from worldloop.core.success import classify_outcome
from worldloop.core.types import (
    ActionChunk,
    ChunkStep,
    Episode,
    EpisodeMeta,
    InitialStates,
    Observation,
    Rollout,
    Source,
    Split,
)


def run_rollout(
    policy: Actor,
    simulator: Simulator,
    start: InitialStates | Observation,
    noise_key: Tensor | None,
    *,
    initial_state_id: tuple[str, ...],
    group_id: Tensor | None = None,
    max_chunks: int | None = None,
    row_chunks: Tensor | None = None,
    origin: Literal["imagined", "simulated"] = "simulated",
    reset: Callable[[], Observation] | None = None,
    on_chunk: Callable[[], None] | None = None,
) -> Rollout:
    """Act until every row has ended or ``max_chunks`` are done.

    - ``start``: B initial states or an observation of B rows
    - ``noise_key`` int64 [B], or ``None`` for greedy
    - ``row_chunks`` int64 [B]: after so many chunks a row is truncated; ``None``: no limit
    - ``reset`` replaces ``simulator.reset(start)`` where the caller must give more than a start (shared noise)
    """
    observation = reset() if reset is not None else simulator.reset(start)
    observations: list[Observation] = []
    chunks: list[ActionChunk] = []
    steps: list[ChunkStep] = []
    while max_chunks is None or len(steps) < max_chunks:
        chunk = policy.act(observation, noise_key)
        step = simulator.step_chunk(chunk.actions)
        if row_chunks is not None:
            is_over = ~step.terminated & (len(steps) + 1 >= row_chunks)
            step = replace(step, truncated=step.truncated | is_over)
        observations.append(observation)
        chunks.append(chunk)
        steps.append(step)
        observation = step.observation
        if on_chunk is not None:
            on_chunk()
        if bool(step.done.all()):
            break
    return Rollout(
        origin=origin,
        group_id=torch.arange(len(observation)) if group_id is None else group_id,
        initial_state_id=initial_state_id,
        observations=tuple(observations),
        chunks=tuple(chunks),
        steps=tuple(steps),
        policy_version=policy.version,
        simulator_version=simulator.spec.simulator_version,
    )


def count_chunks(rollout: Rollout) -> Tensor:
    """int64 [B]: the chunks of each row, up to and with the one in which it ended."""
    running = [~step.done for step in rollout.steps[:-1]]
    return 1 + torch.stack([torch.zeros_like(rollout.steps[0].done), *running]).sum(0)


def rollout_to_episodes(
    rollout: Rollout,
    spec: SimulatorSpec,
    *,
    sources: tuple[Source, ...],
    variants: tuple[str, ...],
    splits: tuple[Split, ...],
    iteration: int,
) -> list[Episode]:
    """The rows of a simulated rollout as stored episodes, each cut after the chunk in which it ended.

    Every camera is stored; the task and the instruction are the row's. Raises ``ValueError`` for an imagined rollout.
    """
    if rollout.steps[0].sim_states is None or rollout.steps[0].distances_m is None:
        raise ValueError("only a simulated rollout, which knows the simulator's state, can be stored")
    start, num_chunks = rollout.observations[0], count_chunks(rollout)
    episodes = []
    for row, state_id in enumerate(rollout.initial_state_id):
        task = spec.task(start.task[row])
        frames, arrays = _row_arrays(rollout, row, int(num_chunks[row]), spec.actions_per_frame, task.max_episode_steps)
        terminated = bool(arrays["success"].any())
        outcome, margin_m = classify_outcome(
            terminated,
            arrays["distances_m"][arrays["valid"]],
            float(arrays["distances_m"].flat[0]),
            task.success_radius_m,
        )
        meta = EpisodeMeta(
            task=task.id,
            instruction=start.instruction[row],
            initial_state_id=state_id,
            split=splits[row],
            outcome=outcome,
            margin_m=margin_m,
            source=sources[row],
            variant=variants[row],
            iteration=iteration,
            control_mode=spec.robot.control_mode,
            hz=spec.robot.hz,
            actions_per_frame=spec.actions_per_frame,
            simulator_version=spec.simulator_version,
            policy_version=rollout.policy_version,
        )
        episodes.append(Episode(meta=meta, frames=frames, terminated=terminated, truncated=not terminated, **arrays))
    return episodes


def _row_arrays(
    rollout: Rollout, row: int, count: int, s: int, max_episode_steps: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """One row, over its first ``count`` chunks: frames by camera, and the other arrays of `Episode`."""
    steps, start = rollout.steps[:count], rollout.observations[0]
    if start.proprio is None or start.sim_state is None:
        raise ValueError("storing an episode needs proprio and the simulator's state")

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(step, name)[row] for step in steps])

    def per_frame(values: Tensor) -> np.ndarray:
        return values.reshape(-1, s, *values.shape[1:]).numpy()

    valid = joined("valid")
    actions = torch.cat([chunk.actions[row] for chunk in rollout.chunks[:count]])
    # Steps after a success are still executed until the chunk ends; steps past the time limit are not.
    executed = int(start.env_step[row]) + torch.arange(len(valid)) < max_episode_steps
    num_frames = int(executed.reshape(-1, s).any(1).sum())
    frames: dict[str, np.ndarray] = {}
    for camera, images in start.frames.items():
        shown = torch.cat([images[row, -1:], *(step.frames[camera][row] for step in steps)])
        frames[camera] = np.ascontiguousarray(shown.numpy()[: num_frames + 1])
    arrays = {
        "proprio": torch.cat([start.proprio[row, None], joined("proprio")]).numpy()[: num_frames + 1],
        "sim_state": torch.cat([start.sim_state[row, None], joined("sim_states")]).numpy()[: num_frames + 1],
        "actions": per_frame(torch.where(executed[:, None], actions, torch.zeros_like(actions)))[:num_frames],
        "valid": per_frame(valid)[:num_frames],
        "rewards": per_frame(joined("rewards"))[:num_frames],
        "success": per_frame(joined("success"))[:num_frames],
        "distances_m": per_frame(joined("distances_m"))[:num_frames],
    }
    return frames, {name: np.ascontiguousarray(values) for name, values in arrays.items()}
