"""What stages need from the real simulator: initial states, and episodes of a policy or of scripted variants."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, TypedDict, Unpack

import numpy as np
from torch import Tensor

from worldloop.core.randomness import derive_seed, make_row_keys
from worldloop.core.reporting import Reporter
from worldloop.core.types import Episode, InitialStates, Split
from worldloop.factory.build import build_simulator_spec
from worldloop.factory.config import SimulatorConfig
from worldloop.rollout.following import Video
from worldloop.rollout.jobs import (
    EpisodeSummary,
    InitialStatesJob,
    Keeps,
    RolloutJob,
    draw_initial_states,
    execute_rollout_job,
)
from worldloop.rollout.kept_blocks import KeptBlocks, execute_and_keep
from worldloop.rollout.replay import Replay
from worldloop.rollout.swap import Swap
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
    """``train`` or ``validation``, a fixed function of the state's id."""
    return "validation" if derive_seed("split", state_id) % 10_000 < validation_share * 10_000 else "train"


class Acting(TypedDict, total=False):
    """Who acts in the episodes of `Simulation.run`, and how.

    - ``policy``: path of its checkpoint in the run directory; or ``variants``: a scripted variant for each state; or
      ``replay``: recorded actions, or ``video``: videos to follow, one row for each state; the path of its inverse
      dynamics model is in the run directory
    - ``variant``: what the episodes of ``policy`` are stored as; ``temperature``: ``None`` acts greedily
    - ``row_chunks`` int64 [n]: each episode ends after so many chunks; ``None``: no limit
    - ``splits``: the split that each episode is stored under; ``None``: that of the states
    - ``swaps_instructions``: give the policy the instruction of the task after the row's own
    - ``context``: camera -> u8 [n, 3, h, w, 3]: what is seen at a start in the middle of an episode: its first frame,
      the one before and the one now; ``None``: three times the one now
    - ``swap``: parts of its observation that the policy sees imagined; the path of the world model is in the run
      directory
    """

    policy: str | None
    variant: str
    temperature: float | None
    variants: tuple[str, ...] | None
    replay: Replay | None
    video: Video | None
    row_chunks: Tensor | None
    splits: tuple[Split, ...] | None
    swaps_instructions: bool
    context: dict[str, Tensor] | None
    swap: Swap | None


class Simulation:
    """The simulators of a run, all of the same ``config``.

    Work is cut into blocks of fixed size, each of one task. So no result depends on the number of simulators.
    ``kept`` holds finished blocks until the stage has ended; ``None``: none are kept. ``policy_kind`` is the run's
    `policy.kind`. ``num_env_steps`` counts the environment steps of all episodes so far, without those of `evaluate`:
    they only measure, and no decision reads them.
    """

    def __init__(
        self,
        config: SimulatorConfig,
        chunk_length: int,
        seed: int,
        run_dir: Path,
        executor: Executor,
        reporter: Reporter,
        kept: KeptBlocks | None = None,
        policy_kind: str = "",
    ) -> None:
        self.policy_kind = policy_kind
        self.config, self.chunk_length, self.seed = config, chunk_length, seed
        self.run_dir, self.executor, self.reporter, self.kept = run_dir, executor, reporter, kept
        self.num_env_steps = 0

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """The ids of all tasks of the run, in their order."""
        return build_simulator_spec(self.config).task_ids

    def initial_states(self, split: Split, num_states: int, first: int = 0) -> InitialStates:
        """``num_states`` initial states of each task, from position ``first`` of the task's list for ``split``.

        Tasks follow one another. States that are not stored yet are drawn, and stored.
        """
        directory, wanted = RunDirectory(self.run_dir), first + num_states
        lists = {task: directory.read_initial_states(split, task) for task in self.tasks}
        seed = derive_seed(self.seed, "initial_states") if split == "train" else FIXED_SEED
        jobs = [
            InitialStatesJob(self.config, task, split, min(STATES_PER_JOB, wanted - begin), seed, begin)
            for task, states in lists.items()
            for begin in range(0 if states is None else len(states), wanted, STATES_PER_JOB)
        ]
        for job, drawn in zip(jobs, self.executor.map(draw_initial_states, jobs), strict=True):
            states = lists[job.task]
            lists[job.task] = drawn if states is None else InitialStates.cat([states, drawn])
        complete = {task: states for task, states in lists.items() if states is not None}
        for task in dict.fromkeys(job.task for job in jobs):
            directory.write_initial_states(complete[task])
        return InitialStates.cat([states.select(range(first, wanted)) for states in complete.values()])

    def draw_fresh_states(self, split: Split, num_states: int, *key: int | str) -> InitialStates:
        """``num_states`` initial states of each task that no other ``key`` gives; they are not stored.

        Tasks follow one another. Training states also follow the run's seed.
        """
        seed = derive_seed(self.seed if split == "train" else FIXED_SEED, "fresh", *key)
        jobs = [
            InitialStatesJob(self.config, task, split, min(STATES_PER_JOB, num_states - begin), seed, begin)
            for task in self.tasks
            for begin in range(0, num_states, STATES_PER_JOB)
        ]
        return InitialStates.cat(list(self.executor.map(draw_initial_states, jobs)))

    def run(
        self, states: InitialStates, *, block_size: int, purpose: str, iteration: int, **acting: Unpack[Acting]
    ) -> list[Episode]:
        """Run one episode per state, and return them in the order of the states.

        Blocks have ``block_size`` states. All draws follow from the run's seed, ``iteration`` and ``purpose``. For the
        other arguments see `Acting`.
        """
        jobs, rows = self._make_jobs(states, block_size, purpose, iteration, "episode", acting)
        return self._collect(jobs, rows)

    def judge(
        self,
        states: InitialStates,
        *,
        block_size: int,
        purpose: str,
        iteration: int,
        keeps_start: bool = False,
        **acting: Unpack[Acting],
    ) -> list[EpisodeSummary]:
        """Run the same episodes as `run`, of which only the outcome comes back, and with ``keeps_start`` the start."""
        keeps: Keeps = "start" if keeps_start else "outcome"
        jobs, rows = self._make_jobs(states, block_size, purpose, iteration, keeps, acting)
        return self._collect(jobs, rows)

    def _make_jobs(
        self, states: InitialStates, block_size: int, purpose: str, iteration: int, keeps: Keeps, acting: Acting
    ) -> tuple[list[RolloutJob], list[int]]:
        """Blocks of one task each, and the rows of ``states`` that they hold, block after block."""
        policy, swap, video = acting.get("policy"), acting.get("swap"), acting.get("video")
        splits, variants = acting.get("splits"), acting.get("variants")
        replay, row_chunks, context = acting.get("replay"), acting.get("row_chunks"), acting.get("context")
        if swap is not None:
            swap = replace(swap, world_model=str(self.run_dir / swap.world_model))
        if video is not None:
            video = replace(video, inverse_dynamics=str(self.run_dir / video.inverse_dynamics))
        jobs, rows = [], []
        for task in dict.fromkeys(states.tasks):
            own = [row for row, other in enumerate(states.tasks) if other == task]
            keys = self._make_keys(len(own), task, iteration, purpose)
            for first in range(0, len(own), block_size):
                block = own[first : first + block_size]
                rows += block
                jobs.append(
                    RolloutJob(
                        states=states.select(block),
                        simulator=self.config,
                        chunk_length=self.chunk_length,
                        noise_key=keys[first : first + block_size],
                        iteration=iteration,
                        splits=tuple(splits[i] for i in block) if splits else (states.split,) * len(block),
                        policy=None if policy is None else str(self.run_dir / policy),
                        policy_kind=self.policy_kind,
                        policy_variant=acting.get("variant", "policy"),
                        temperature=acting.get("temperature"),
                        variants=tuple(variants[i] for i in block) if variants else None,
                        replay=None if replay is None else replay.rows(block),
                        video=None if video is None else video.rows(block),
                        row_chunks=None if row_chunks is None else row_chunks[block],
                        told_task=self._next_task(task) if acting.get("swaps_instructions") else "",
                        swap=swap,
                        context=None if context is None else {c: frames[block] for c, frames in context.items()},
                        keeps=keeps,
                    )
                )
        return jobs, rows

    def _collect(self, jobs: list[RolloutJob], rows: list[int]) -> list[Any]:
        """The results of ``jobs`` in the order of their ``rows``; counts their environment steps."""
        episodes: list[Any] = []
        with self.reporter.progress(len(rows), "episode") as progress:
            for done in self._execute(jobs):
                episodes.extend(done)
                progress.advance(len(done), success=float(np.mean([e.is_success for e in episodes])))
        self.num_env_steps += sum(episode.num_env_steps for episode in episodes)
        by_row = dict(zip(rows, episodes, strict=True))
        return [by_row[row] for row in range(len(rows))]

    def _execute(self, jobs: list[RolloutJob]) -> Iterator[list[Any]]:
        """The results of each job, in order. Those that an interrupted stage has kept are not run again."""
        found = [None if self.kept is None else self.kept.find(job) for job in jobs]
        if count := sum(len(episodes) for episodes in found if episodes):
            self.reporter.log(f"  {count} episodes are there from before the interruption")
        left = [job for job, episodes in zip(jobs, found, strict=True) if episodes is None]
        function = execute_rollout_job if self.kept is None else partial(execute_and_keep, self.kept)
        executed = iter(self.executor.map(function, left))
        for episodes in found:
            yield next(executed) if episodes is None else episodes

    def _next_task(self, task: str) -> str:
        return self.tasks[(self.tasks.index(task) + 1) % len(self.tasks)]

    def _make_keys(self, num_rows: int, task: str, iteration: int, purpose: str) -> Tensor:
        """One noise key for each row of ``task``, derived from the row's position among them."""
        of_task = (task,) if len(self.tasks) > 1 else ()
        return make_row_keys(num_rows, self.seed, iteration, purpose, *of_task)

    def evaluate(
        self,
        split: Split,
        num_states: int,
        block_size: int,
        policy: str,
        iteration: int,
        swaps_instructions: bool = False,
        keeps_start: bool = False,
    ) -> list[EpisodeSummary]:
        """Greedy episodes of ``policy`` on the first ``num_states`` states of each task's ``split``, in order.

        There is one episode per state. Tasks follow one another. With ``swaps_instructions`` the policy is given the
        instruction of the next task. For ``keeps_start`` see `judge`.
        """
        counted = self.num_env_steps
        episodes = self.judge(
            self.initial_states(split, num_states),
            block_size=block_size,
            purpose=f"evaluate/{split}",
            iteration=iteration,
            keeps_start=keeps_start,
            policy=policy,
            swaps_instructions=swaps_instructions,
        )
        self.num_env_steps = counted
        return episodes
