"""The policy's own episodes, successes and failures alike, come back into SANS as the next version."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from worldloop.stages.context import Context
from worldloop.stages.simulate import choose_split, make_jobs, restrict, run_jobs
from worldloop.stages.state import LoopState


@dataclass(frozen=True)
class CollectEpisodesConfig:
    num_episodes: int = 160  # real episodes per iteration, on states that no earlier episode used
    temperature: float = 1.0  # of the policy's action distribution
    validation_share: float = 0.25  # share held out from training, by hash of the state id
    block_size: int = 10  # initial states per simulator call

    def __post_init__(self) -> None:
        if self.num_episodes < 1 or self.block_size < 1:
            raise ValueError("collect_episodes.num_episodes and collect_episodes.block_size must be at least 1")
        if self.temperature <= 0:
            raise ValueError(f"collect_episodes.temperature must be > 0, got {self.temperature}")
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"collect_episodes.validation_share must be in [0, 1), got {self.validation_share}")


def run(state: LoopState, config: CollectEpisodesConfig, context: Context) -> LoopState:
    """Roll the current policy out with exploration and snapshot the grown dataset."""
    num_scripted = sum(state.records[0]["scripted_episodes"].values())
    first = num_scripted + state.iteration * config.num_episodes
    states = restrict(context.initial_states("train", first + config.num_episodes), first)
    jobs = make_jobs(
        context,
        states,
        config.block_size,
        purpose="collect_episodes",
        iteration=state.iteration,
        splits=tuple(choose_split(i, config.validation_share) for i in states.ids),
        policy=state.policy,
        temperature=config.temperature,
    )
    episodes = run_jobs(context, jobs)
    name = f"v{state.iteration + 1:03d}"
    shard = context.store.append(episodes, f"{state.iteration:03d}-policy", context.spec)
    context.store.snapshot(name, [shard], parent=context.store.version(state.dataset))
    counts = Counter(e.meta.outcome for e in episodes)
    context.log(f"{len(episodes)} policy episodes: " + ", ".join(f"{n} {k}" for k, n in sorted(counts.items())))
    env_steps = state.env_steps + sum(e.num_env_steps for e in episodes)
    state = replace(state, dataset=name, env_steps=env_steps)
    return state.record(collected_episodes=dict(sorted(counts.items())))
