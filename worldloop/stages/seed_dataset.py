"""Iteration 0: scripted successes, near-successes and failures become the first SANS version.

With ``demonstrations`` the episodes of the recording that the section `recording` describes come before them, and may
replace them. They count as those of an expert.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from worldloop.core.errors import WorldloopError, require_choice
from worldloop.core.randomness import make_generator
from worldloop.core.types import Episode, Split
from worldloop.rollout.sides import SIDES, begins_on, find_side
from worldloop.rollout.simulation import choose_split
from worldloop.sans.demonstrations import open_demonstrations, read_demonstrations
from worldloop.sans.recordings import RecordingConfig
from worldloop.sans.shard import ShardRef
from worldloop.stages.context import Schedule, StageContext
from worldloop.storage.run_state import LoopState

EPISODES_PER_SHARD = 200  # recorded demonstrations in one shard
FORKED_VARIANTS = ("expert", "stops_short", "lateral_offset", "far")  # of these, those in Config.episodes are recorded


@dataclass(frozen=True)
class Config:
    """``episodes``: scripted variant -> number of episodes per task; ``expert`` are demonstrations."""

    episodes: dict[str, int] = field(default_factory=lambda: {"expert": 25})
    demonstrations: bool = False  # also import the recording of the section `recording`; see docs/recordings.md
    validation_share: float = 0.2  # share of perturbed episodes held out from training, by hash of state id
    block_size: int = 10  # initial states per simulator call
    held_out_side: str = ""  # left | right: no success begins with the object there, to test on it; "": none
    forked_states: int = 0  # held-out states per task with every forked variant, for action following; 0: none

    def __post_init__(self) -> None:
        if self.episodes.get("expert", 0) < 1 and not self.demonstrations:
            raise ValueError(
                "seed_dataset.episodes.expert must be at least 1: the clone learns from it, or with "
                "seed_dataset.demonstrations=true from a recording"
            )
        if any(count < 0 for count in self.episodes.values()):
            raise ValueError(f"seed_dataset.episodes must not be negative, got {dict(self.episodes)}")
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"seed_dataset.validation_share must be in [0, 1), got {self.validation_share}")
        if self.held_out_side:
            require_choice("seed_dataset.held_out_side", self.held_out_side, SIDES)
            if self.demonstrations:
                raise ValueError(
                    "seed_dataset.held_out_side cannot be told of recorded demonstrations: leave it out, or set "
                    "seed_dataset.demonstrations=false"
                )
        if self.block_size < 1 or self.forked_states < 0:
            raise ValueError("seed_dataset.block_size must be at least 1, and seed_dataset.forked_states at least 0")

    @property
    def num_episodes(self) -> int:
        return sum(self.episodes.values())

    @property
    def is_scripted(self) -> bool:
        """Whether the simulator's scripted policies record anything."""
        return self.num_episodes + self.forked_states > 0

    @property
    def forked_variants(self) -> tuple[str, ...]:
        return tuple(variant for variant in FORKED_VARIANTS if variant in self.episodes)


def takes_part(config: Config, schedule: Schedule) -> bool:
    return schedule.is_first and schedule.has_simulator


def run(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """Store demonstrations and the scripted episodes of every task, and freeze the normalisation with them."""
    shards: list[ShardRef] = []
    if config.demonstrations:
        state, imported = import_demonstrations(state, context)
        shards += imported
    if config.is_scripted:
        state, scripted = record_scripted(state, config, context)
        shards.append(scripted)
    context.store.snapshot("v000", shards)
    return replace(state, dataset="v000").record(demonstrations=config.episodes.get("expert", 0))


def import_demonstrations(state: LoopState, context: StageContext) -> tuple[LoopState, list[ShardRef]]:
    """The recording as the simulator would have stored it, in shards, and what is doubtful about it in the log."""
    found = open_demonstrations(context.config_of(RecordingConfig), context.spec)
    for doubt in found.doubts:
        context.reporter.log(f"  warning: {doubt}")
    dim = context.simulation.initial_states("train", 1).states.shape[1]
    counts: Counter[str] = Counter()
    env_steps = state.env_steps
    with context.reporter.progress(len(found), "episode") as progress:

        def counted(episode: Episode) -> Episode:
            nonlocal env_steps
            counts[episode.meta.outcome] += 1
            env_steps += episode.num_env_steps
            progress.advance()
            return episode

        episodes = (counted(episode) for episode in read_demonstrations(found, context.spec, dim))
        shards = context.store.append_in_blocks(episodes, "000-demonstrations", EPISODES_PER_SHARD, context.spec)
    left_out = f"; {found.num_left_out} left out" if found.num_left_out else ""
    context.reporter.log(f"{counts.total()} recorded demonstrations: {list_counts(counts)}{left_out}")
    state = state.record(recorded_demonstrations=dict(sorted(counts.items())), recorded_left_out=found.num_left_out)
    return replace(state, env_steps=env_steps), shards


def list_counts(counts: Counter[str]) -> str:
    """E.g. ``3 failure, 9 success``."""
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))


def record_scripted(state: LoopState, config: Config, context: StageContext) -> tuple[LoopState, ShardRef]:
    """Record the scripted episodes of every task as one shard."""
    num_episodes, tasks = config.num_episodes, context.spec.task_ids
    states = context.simulation.initial_states("train", num_episodes + config.forked_states)
    rows: list[int] = []
    variants: list[str] = []
    splits: list[Split] = []
    for number, task in enumerate(tasks):
        first = number * (num_episodes + config.forked_states)
        own = range(first, first + num_episodes)
        shuffled = shuffle_variants(config, context.seed, task if len(tasks) > 1 else "")
        if config.held_out_side:
            is_held_out = find_side(states.select(own), context.spec, config.held_out_side)
            shuffled = move_experts(shuffled, is_held_out, task)
        rows += own
        variants += shuffled
        # No demonstration is held out, so that the clone learns from the configured number.
        splits += [
            "train" if variant == "expert" else choose_split(states.ids[row], config.validation_share)
            for row, variant in zip(own, shuffled, strict=True)
        ]
        forks = range(own.stop, own.stop + config.forked_states)
        rows += [row for row in forks for _ in config.forked_variants]
        variants += config.forked_variants * config.forked_states
        splits += ["validation" for _ in config.forked_variants for _ in forks]
    episodes = context.simulation.run(
        states.select(rows),
        block_size=config.block_size,
        purpose="seed_dataset",
        iteration=0,
        splits=tuple(splits),
        variants=tuple(variants),
    )
    if config.held_out_side:
        episodes = [e for e in episodes if not (e.is_success and begins_there(e, config.held_out_side, context))]
    shard = context.store.append(episodes, "000-scripted", context.spec)
    counts: Counter[str] = Counter(e.meta.outcome for e in episodes)
    context.reporter.log(f"{len(episodes)} scripted episodes: {list_counts(counts)}")
    state = replace(
        state,
        num_scripted_episodes=len(rows) // len(tasks),
        env_steps=state.env_steps + sum(e.num_env_steps for e in episodes),
    )
    return state.record(scripted_episodes=dict(sorted(counts.items()))), shard


def begins_there(episode: Episode, side: str, context: StageContext) -> bool:
    return begins_on(episode.sim_state[0], episode.meta.task, context.spec, side)


def move_experts(variants: list[str], is_held_out: np.ndarray, task: str) -> list[str]:
    """``variants`` with every ``expert`` of a held-out state exchanged for another variant of a state that is not.

    Raises `WorldloopError` if there are too few such states.
    """
    moved = list(variants)
    wrong = [i for i, name in enumerate(variants) if name == "expert" and is_held_out[i]]
    free = [i for i, name in enumerate(variants) if name != "expert" and not is_held_out[i]]
    if len(free) < len(wrong):
        raise WorldloopError(
            f"seed_dataset.held_out_side leaves {int((~is_held_out).sum())} states of {task}, and "
            f"{variants.count('expert')} demonstrations are to begin there: record more perturbed episodes, or fewer "
            "demonstrations"
        )
    for i, j in zip(wrong, free, strict=False):
        moved[i], moved[j] = moved[j], moved[i]
    return moved


def shuffle_variants(config: Config, seed: int, task: str) -> list[str]:
    """The variants of one task's episodes in random order, so that the first states do not all go to one variant."""
    names = [name for name, count in config.episodes.items() for _ in range(count)]
    draws: tuple[int | str, ...] = (seed, 0, "seed_dataset/order", *((task,) if task else ()))
    return [names[i] for i in torch.randperm(len(names), generator=make_generator(*draws)).tolist()]
