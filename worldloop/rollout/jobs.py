"""The work of a simulator process: draw initial states, and run blocks of episodes.

A trained policy acts, or a scripted one, or recorded actions are replayed, or a video is followed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from worldloop.core.interfaces import Actor, Policy, TaskSimulator, WorldModel
from worldloop.core.specs import TaskSpec
from worldloop.core.types import ActionChunk, Episode, EpisodeMeta, InitialStates, Observation, Source, Split
from worldloop.executability.inverse_dynamics import InverseDynamics
from worldloop.factory.build import build_simulator
from worldloop.factory.checkpoints import load_inverse_dynamics, load_policy, load_world_model
from worldloop.factory.config import SimulatorConfig
from worldloop.rollout.following import Video, VideoFollower
from worldloop.rollout.replay import RecordedActions, Replay
from worldloop.rollout.rollout import rollout_to_episodes, run_rollout
from worldloop.rollout.swap import PartlyImagined, Swap
from worldloop.simulators.base import choose_instruction

_SIMULATORS: dict[str, TaskSimulator] = {}


Keeps = Literal["episode", "start", "outcome"]


@dataclass(frozen=True)
class EpisodeSummary:
    """What is left of an episode whose pictures nobody needs: ``meta``, with the outcome, and ``num_env_steps``.

    ``frames``: camera -> u8 [1, h, w, 3], the first frame, and ``proprio`` f32 [1, S] beside it; both are empty where
    only the outcome is kept.
    """

    meta: EpisodeMeta
    num_env_steps: int
    frames: dict[str, np.ndarray]
    proprio: np.ndarray

    @classmethod
    def of(cls, episode: Episode, keeps_start: bool) -> EpisodeSummary:
        frames = {camera: images[:1].copy() for camera, images in episode.frames.items()} if keeps_start else {}
        return cls(episode.meta, episode.num_env_steps, frames, episode.proprio[: int(keeps_start)].copy())

    @property
    def is_success(self) -> bool:
        return self.meta.outcome == "success"


@dataclass(frozen=True)
class RolloutJob:
    """A block of episodes of one task, for one simulator process. Picklable; any process gives the same result.

    Exactly one of these acts:

    - ``policy``: a checkpoint directory; ``policy_kind``: a ``module:Class`` that it may name; ``policy_variant``:
      ``policy``, or ``rejected`` for a candidate that did not become the policy; ``temperature`` ``None`` acts
      greedily. ``told_task``: the policy is given the instruction of this task; "": of the states' own task. ``swap``:
      parts of its observation that it sees imagined
    - ``variants``: scripted policies, one name per state
    - ``replay``: recorded actions
    - ``video``: videos to follow

    ``context``: camera -> u8 [N, 3, h, w, 3], the frames seen at starts in the middle of an episode; ``None``: three
    times the one now. ``splits``: the split each episode is stored under. ``row_chunks`` int64 [N]: each episode ends
    after so many chunks; ``None``: no limit. ``keeps``: what comes back of each: the whole ``episode``, or an
    `EpisodeSummary` with its ``start`` or of its ``outcome`` alone.
    """

    states: InitialStates
    simulator: SimulatorConfig
    chunk_length: int
    noise_key: Tensor
    iteration: int
    splits: tuple[Split, ...]
    policy: str | None = None
    policy_kind: str = ""
    policy_variant: str = "policy"
    temperature: float | None = None
    variants: tuple[str, ...] | None = None
    replay: Replay | None = None
    video: Video | None = None
    row_chunks: Tensor | None = None
    told_task: str = ""
    swap: Swap | None = None
    context: dict[str, Tensor] | None = None
    keeps: Keeps = "episode"
    num_threads: int = 1

    def __post_init__(self) -> None:
        if sum(actor is not None for actor in (self.policy, self.variants, self.replay, self.video)) != 1:
            raise ValueError(
                "a rollout job needs a policy, scripted variants, a replay or a video, and only one of them"
            )


class ToldOtherwise:
    """An `Actor` that is given another task's id and instruction: a control for whether it follows instructions."""

    def __init__(self, actor: Actor, task: TaskSpec) -> None:
        self.actor, self.task, self.version = actor, task, actor.version

    def act(self, observation: Observation, noise_key: Tensor | None) -> ActionChunk:
        num_rows = len(observation)
        told = replace(observation, task=(self.task.id,) * num_rows, instruction=(self.task.instruction,) * num_rows)
        return self.actor.act(told, noise_key)


@dataclass(frozen=True)
class InitialStatesJob:
    """``num_states`` states of the list of ``task`` and ``split``, from position ``first`` on."""

    simulator: SimulatorConfig
    task: str
    split: Split
    num_states: int
    seed: int
    first: int


def _simulator_of(config: SimulatorConfig) -> TaskSimulator:
    """One simulator per configuration and process: starting ManiSkill takes seconds."""
    key = repr(config)
    if key not in _SIMULATORS:
        _SIMULATORS[key] = build_simulator(config)
    return _SIMULATORS[key]


@lru_cache(maxsize=1)
def _cached_policy(directory: str, own_kind: str, modified_ns: int) -> Policy:
    return load_policy(Path(directory), own_kind=own_kind)


@lru_cache(maxsize=1)
def _cached_inverse_dynamics(directory: str, modified_ns: int) -> InverseDynamics:
    return load_inverse_dynamics(Path(directory))


@lru_cache(maxsize=1)
def _cached_world_model(directory: str, modified_ns: int) -> WorldModel:
    return load_world_model(Path(directory)).for_imagination()


def _date(checkpoint: str) -> int:
    """When the checkpoint was written, in ns: another one may have taken its place."""
    return (Path(checkpoint) / "checkpoint.json").stat().st_mtime_ns


def execute_rollout_job(job: RolloutJob) -> list[Episode] | list[EpisodeSummary]:
    """Run one block; returns what the job keeps of its episodes, in the order of the block's states."""
    threads = torch.get_num_threads()
    torch.set_num_threads(job.num_threads)
    try:
        simulator = _simulator_of(job.simulator)
        episodes: list[Episode] = []
        summaries: list[EpisodeSummary] = []
        for first in range(0, len(job.states), simulator.num_envs):
            done = _execute_rows(job, simulator, range(first, min(first + simulator.num_envs, len(job.states))))
            if job.keeps == "episode":
                episodes.extend(done)
            else:
                summaries.extend(EpisodeSummary.of(episode, job.keeps == "start") for episode in done)
        return episodes if job.keeps == "episode" else summaries
    finally:
        torch.set_num_threads(threads)


def _execute_rows(job: RolloutJob, simulator: TaskSimulator, rows: range) -> list[Episode]:
    index = list(rows)
    states = job.states.select(index)
    keys = job.noise_key[index]
    actor: Actor
    variants = (job.policy_variant,) * len(index)
    if job.variants is not None:
        variants = tuple(job.variants[i] for i in index)
        actor = simulator.make_scripted_policy(states.tasks, variants, keys, job.chunk_length)
    elif job.replay is not None:
        variants = ("replay",) * len(index)
        actor = RecordedActions(job.replay.rows(index), job.chunk_length)
    elif job.video is not None:
        variants = ("video",) * len(index)
        checkpoint = job.video.inverse_dynamics
        model = _cached_inverse_dynamics(checkpoint, _date(checkpoint))
        actor = VideoFollower(model, job.video.rows(index).frames, job.chunk_length)
    else:
        assert job.policy is not None
        actor = policy = _cached_policy(job.policy, job.policy_kind, _date(job.policy))
        if job.temperature is not None:
            policy.temperature = job.temperature
        if job.told_task:
            actor = ToldOtherwise(policy, simulator.spec.task(job.told_task))
        if job.swap is not None:
            world_model = _cached_world_model(job.swap.world_model, _date(job.swap.world_model))
            actor = PartlyImagined(actor, world_model, job.swap.parts)
    rollout = run_rollout(
        actor,
        simulator,
        states if job.context is None else _observe(states, {c: f[index] for c, f in job.context.items()}, simulator),
        keys if job.temperature is not None else None,
        initial_state_id=states.ids,
        row_chunks=None if job.row_chunks is None else job.row_chunks[index],
    )
    return rollout_to_episodes(
        rollout,
        simulator.spec,
        sources=tuple(_source_of(v) for v in variants),
        variants=variants,
        splits=tuple(job.splits[i] for i in index),
        iteration=job.iteration,
    )


def _observe(states: InitialStates, context: dict[str, Tensor], simulator: TaskSimulator) -> Observation:
    """What is seen at ``states``, whose frames are known; the simulator takes the time from its own state."""
    return Observation(
        frames=context,
        proprio=None,
        task=states.tasks,
        instruction=tuple(
            choose_instruction(simulator.spec.task(task), state)
            for task, state in zip(states.tasks, states.ids, strict=True)
        ),
        env_step=torch.zeros(len(states), dtype=torch.long),
        sim_state=states.states,
    )


def _source_of(variant: str) -> Source:
    by_name: dict[str, Source] = {
        "policy": "policy",
        "rejected": "policy",
        "replay": "policy",
        "video": "policy",
        "expert": "expert",
    }
    return by_name.get(variant, "perturbed")


def draw_initial_states(job: InitialStatesJob) -> InitialStates:
    """Draw the states that ``job`` asks for."""
    simulator = _simulator_of(job.simulator)
    return simulator.draw_initial_states(job.task, job.split, job.num_states, job.seed, job.first)
