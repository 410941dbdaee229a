"""What a stage asks of the real simulator: initial states, and episodes of a policy or of scripted variants."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from worldloop.core.interfaces import Reporter
from worldloop.core.randomness import derive_seed, make_row_keys
from worldloop.core.types import Episode, InitialStates, Split
from worldloop.factory.config import SimulatorConfig
from worldloop.rollout.jobs import InitialStatesJob, RolloutJob, draw_initial_states, execute_rollout_job
from worldloop.storage.run_directory import RunDirectory

# Validation and evaluation states are the same for every run and seed; training states follow the run's seed.
FIXED_SEED = 0
STATES_PER_JOB = 50


class Executor(Protocol):
    """A pool of simulator processes."""

    def map(self, function: Any, items: Iterable[Any]) -> Iterator[Any]:
        """Results in the order of ``items``."""
        ...


def choose_split(state_id: str, validation_share: float) -> Split:
    """Train or validation, a fixed function of the state's id."""
    return "validation" if derive_seed("split", state_id) % 10_000 < validation_share * 10_000 else "train"


def success_of(episodes: list[Episode]) -> tuple[bool, ...]:
    return tuple(bool(episode.is_success) for episode in episodes)


class Simulation:
    """The simulators of a run, ``config``; work is cut into fixed blocks, so that no result depends on their number."""

    def __init__(
        self,
        config: SimulatorConfig,
        chunk_length: int,
        seed: int,
        run_dir: Path,
        executor: Executor,
        reporter: Reporter,
    ) -> None:
        self.config, self.chunk_length, self.seed = config, chunk_length, seed
        self.run_dir, self.executor, self.reporter = run_dir, executor, reporter

    def initial_states(self, split: Split, num_states: int, first: int = 0) -> InitialStates:
        """``num_states`` of the list of ``split``, from position ``first`` on; what is not stored yet is drawn."""
        directory = RunDirectory(self.run_dir)
        states = directory.read_initial_states(split)
        have, wanted = 0 if states is None else len(states), first + num_states
        if states is None or have < wanted:
            seed = derive_seed(self.seed, "initial_states") if split == "train" else FIXED_SEED
            jobs = [
                InitialStatesJob(self.config, split, min(STATES_PER_JOB, wanted - begin), seed, begin)
                for begin in range(have, wanted, STATES_PER_JOB)
            ]
            drawn = self.executor.map(draw_initial_states, jobs)
            states = InitialStates.cat([*([] if states is None else [states]), *drawn])
            directory.write_initial_states(states)
        return states.select(range(first, wanted))

    def run(
        self,
        states: InitialStates,
        *,
        block_size: int,
        purpose: str,
        iteration: int,
        splits: tuple[Split, ...] | None = None,
        policy: str | None = None,
        temperature: float | None = None,
        variants: tuple[str, ...] | None = None,
    ) -> list[Episode]:
        """One episode per state, in order: of the ``policy`` (a checkpoint), or of a scripted variant for each state.

        ``temperature`` ``None`` acts greedily; ``splits`` default to that of the states.
        """
        keys = make_row_keys(len(states), self.seed, iteration, purpose)
        jobs = []
        for first in range(0, len(states), block_size):
            block = range(first, min(first + block_size, len(states)))
            jobs.append(
                RolloutJob(
                    states=states.select(block),
                    simulator=self.config,
                    chunk_length=self.chunk_length,
                    noise_key=keys[block.start : block.stop],
                    iteration=iteration,
                    splits=tuple(splits[i] for i in block) if splits else (states.split,) * len(block),
                    policy=None if policy is None else str(self.run_dir / policy),
                    temperature=temperature,
                    variants=tuple(variants[i] for i in block) if variants else None,
                )
            )
        episodes: list[Episode] = []
        with self.reporter.progress(len(states), "episode") as progress:
            for done in self.executor.map(execute_rollout_job, jobs):
                episodes.extend(done)
                progress.advance(len(done), success=float(np.mean([e.is_success for e in episodes])))
        return episodes

    def evaluate(self, split: Split, num_states: int, block_size: int, policy: str, iteration: int) -> list[Episode]:
        """Greedy episodes of ``policy`` on the first ``num_states`` states of ``split``, one per state, in order."""
        states = self.initial_states(split, num_states)
        purpose = f"evaluate/{split}"
        return self.run(states, block_size=block_size, purpose=purpose, iteration=iteration, policy=policy)
