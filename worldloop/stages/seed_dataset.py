"""Iteration 0: scripted successes, near-successes and failures become the first SANS version."""

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
from worldloop.stages.context import Schedule, StageContext
from worldloop.storage.run_state import LoopState

FORKED_VARIANTS = ("expert", "stops_short", "lateral_offset", "far")  # of these, those in Config.episodes are recorded


@dataclass(frozen=True)
class Config:
    """``episodes``: scripted variant -> number of episodes per task; ``expert`` are the demonstrations."""

    episodes: dict[str, int] = field(default_factory=lambda: {"expert": 25})
    validation_share: float = 0.2  # share of perturbed episodes held out from training, by hash of state id
    block_size: int = 10  # initial states per simulator call
    held_out_side: str = ""  # left | right: no success begins with the object there, to test on it; "": none
    forked_states: int = 0  # held-out states per task with every forked variant, for action following; 0: none

    def __post_init__(self) -> None:
        if self.episodes.get("expert", 0) < 1:
            raise ValueError("seed_dataset.episodes.expert must be at least 1: the clone learns from it")
        if any(count < 0 for count in self.episodes.values()):
            raise ValueError(f"seed_dataset.episodes must not be negative, got {dict(self.episodes)}")
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"seed_dataset.validation_share must be in [0, 1), got {self.validation_share}")
        if self.held_out_side:
            require_choice("seed_dataset.held_out_side", self.held_out_side, SIDES)
        if self.block_size < 1 or self.forked_states < 0:
            raise ValueError("seed_dataset.block_size must be at least 1, and seed_dataset.forked_states at least 0")

    @property
    def num_episodes(self) -> int:
        return sum(self.episodes.values())

    @property
    def forked_variants(self) -> tuple[str, ...]:
        return tuple(variant for variant in FORKED_VARIANTS if variant in self.episodes)


def takes_part(config: Config, schedule: Schedule) -> bool:
    return schedule.is_first and schedule.has_simulator


def run(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """Record the scripted episodes of every task as the first shard and freeze the normalisation with it."""
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
    context.store.snapshot("v000", [shard])
    counts = Counter(e.meta.outcome for e in episodes)
    listed = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    context.reporter.log(f"{len(episodes)} scripted episodes: {listed}")
    state = replace(
        state,
        dataset="v000",
        num_scripted_episodes=len(rows) // len(tasks),
        env_steps=sum(e.num_env_steps for e in episodes),
    )
    return state.record(scripted_episodes=dict(sorted(counts.items())), demonstrations=config.episodes["expert"])


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
