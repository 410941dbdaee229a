"""What a simulator process does: it draws initial states, and plays blocks of them with a policy or a scripted one."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch

from worldloop.config.schema import SimulatorConfig
from worldloop.core.interfaces import Actor, Policy, TaskSimulator
from worldloop.core.types import Episode, InitialStates, Source, Split
from worldloop.factory.build import build_simulator
from worldloop.factory.checkpoints import load_policy
from worldloop.rollout.rollout import RolloutJob, rollout_to_episodes, run_rollout

_SIMULATORS: dict[str, TaskSimulator] = {}


def _simulator_of(config: SimulatorConfig) -> TaskSimulator:
    """One simulator per configuration and process: starting ManiSkill takes seconds."""
    key = repr(config)
    if key not in _SIMULATORS:
        _SIMULATORS[key] = build_simulator(config)
    return _SIMULATORS[key]


@lru_cache(maxsize=1)
def _cached_policy(directory: str, modified_ns: int) -> Policy:
    return load_policy(Path(directory))


def execute_rollout_job(job: RolloutJob) -> list[Episode]:
    """The work of one simulator process on one block: episodes in the order of the block's states."""
    threads = torch.get_num_threads()
    torch.set_num_threads(job.num_threads)
    try:
        simulator = _simulator_of(job.simulator)
        episodes: list[Episode] = []
        for first in range(0, len(job.states), simulator.num_envs):
            episodes.extend(
                _execute_rows(job, simulator, range(first, min(first + simulator.num_envs, len(job.states))))
            )
        return episodes
    finally:
        torch.set_num_threads(threads)


def _execute_rows(job: RolloutJob, simulator: TaskSimulator, rows: range) -> list[Episode]:
    index = list(rows)
    states = job.states.select(index)
    keys = job.noise_key[index]
    actor: Actor
    variants = ("policy",) * len(index)
    if job.variants is not None:
        variants = tuple(job.variants[i] for i in index)
        actor = simulator.make_scripted_policy(variants, keys, job.chunk_length)
    else:
        assert job.policy is not None
        modified = (Path(job.policy) / "checkpoint.json").stat().st_mtime_ns
        actor = policy = _cached_policy(job.policy, modified)
        if job.temperature is not None:
            policy.temperature = job.temperature
    rollout = run_rollout(
        actor,
        simulator,
        states.states,
        keys if job.temperature is not None else None,
        initial_state_id=states.ids,
    )
    return rollout_to_episodes(
        rollout,
        simulator.spec,
        sources=tuple(_source_of(v) for v in variants),
        variants=variants,
        splits=tuple(job.splits[i] for i in index),
        iteration=job.iteration,
    )


def _source_of(variant: str) -> Source:
    if variant in ("policy", "expert"):
        return variant  # type: ignore[return-value]
    return "perturbed"


def draw_initial_states(request: tuple[SimulatorConfig, Split, int, int, int]) -> InitialStates:
    """(simulator, split, number, seed, first) -> ``number`` states of that split's list, from position ``first`` on."""
    config, split, num_states, seed, first = request
    return _simulator_of(config).draw_initial_states(split, num_states, seed, first)
