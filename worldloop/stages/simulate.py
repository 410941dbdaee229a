"""Helpers that several stages share: blocks of initial states for the simulator pool, and what comes back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from worldloop.core.randomness import derive_seed, make_row_keys
from worldloop.core.types import Episode, InitialStates, Split
from worldloop.rollout.rollout import RolloutJob
from worldloop.stages.context import Context


def choose_split(state_id: str, validation_share: float) -> Split:
    """Train or validation, a fixed function of the state's id."""
    return "validation" if derive_seed("split", state_id) % 10_000 < validation_share * 10_000 else "train"


def make_jobs(
    context: Context,
    states: InitialStates,
    block_size: int,
    *,
    purpose: str,
    iteration: int,
    splits: tuple[Split, ...] | None = None,
    policy: str | None = None,
    temperature: float | None = None,
    variants: tuple[str, ...] | None = None,
) -> list[RolloutJob]:
    """Cut ``states`` into fixed blocks, so that no result depends on how many simulators there are."""
    keys = make_row_keys(len(states), context.seed, iteration, purpose)
    jobs = []
    for first in range(0, len(states), block_size):
        block = range(first, min(first + block_size, len(states)))
        jobs.append(
            RolloutJob(
                states=states.select(block),
                simulator=context.simulator_config,
                chunk_length=context.chunk_length,
                noise_key=keys[block.start : block.stop],
                iteration=iteration,
                splits=tuple(splits[i] for i in block) if splits else (states.split,) * len(block),
                policy=None if policy is None else str(context.run_dir / policy),
                temperature=temperature,
                variants=tuple(variants[i] for i in block) if variants else None,
            )
        )
    return jobs


def run_jobs(context: Context, jobs: list[RolloutJob]) -> list[Episode]:
    """All episodes of ``jobs`` in order, with progress by episode."""
    episodes: list[Episode] = []
    with context.progress(sum(len(job.states) for job in jobs), "episode") as progress:
        for block in context.run_rollouts(jobs):
            episodes.extend(block)
            progress.advance(len(block), success=float(np.mean([e.is_success for e in episodes])))
    return episodes


def evaluate_in_simulator(
    context: Context, split: Split, num_states: int, block_size: int, policy: str, iteration: int
) -> list[Episode]:
    """Greedy episodes of ``policy`` on the first ``num_states`` states of ``split``, one per state, in order."""
    states = context.initial_states(split, num_states)
    jobs = make_jobs(context, states, block_size, purpose=f"evaluate/{split}", iteration=iteration, policy=policy)
    return run_jobs(context, jobs)


def success_of(episodes: list[Episode]) -> tuple[bool, ...]:
    return tuple(bool(e.is_success) for e in episodes)


def restrict(states: InitialStates, start: int) -> InitialStates:
    """The states from position ``start`` on."""
    return replace(states, ids=states.ids[start:], states=states.states[start:])
