"""Record the policy's own episodes, successes and failures, as the next SANS version.

A share ``rejected_share`` is of the best candidate that the gate did not take. Its failures are where the world model
was wrong. Episodes start from unused states, except for a share ``uncertain_share``. That share starts from training
states where the world model, running the same policy, has the lowest expected PSNR; it needs data from there most.

With ``num_noisy_replays`` the policy's training episodes are repeated with noise on their actions. They show the world
model what decides a contact where the policy makes one. They are stored as ``perturbed``.

Without a simulator a robot acts. The run stops before this stage (`worldloop.loop.waiting`) and goes on when episodes
of the robot were added; how they ended is the evaluation of the policy. The last iteration collects them too.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from worldloop.core.errors import WorldloopError, require_positive
from worldloop.core.randomness import make_row_keys
from worldloop.core.success import Calibrations
from worldloop.core.types import Episode, InitialStates, Split
from worldloop.evaluation.by_task import group_outcomes
from worldloop.evaluation.outcomes import measure_logged
from worldloop.reporting.success import describe_logged
from worldloop.rollout.imagination import imagine_rollout
from worldloop.rollout.replay import replay_with_noise
from worldloop.rollout.simulation import choose_split
from worldloop.sans.added import read_added
from worldloop.stages.context import Schedule, StageContext
from worldloop.storage.run_state import LoopState

STATES_AT_ONCE = 128  # states imagined together


@dataclass(frozen=True)
class Config:
    num_episodes: int = 160  # real episodes per iteration and task
    rejected_share: float = 0.25  # share of them by the best rejected candidate, if there is one, in [0, 1)
    uncertain_share: float = 0.0  # share of them from training states of lowest expected PSNR, in [0, 1]
    num_noisy_replays: int = 0  # repetitions of the policy's training episodes with noise on the actions, per task
    replay_noise: float = 0.04  # std of that noise, in environment units of the actions
    temperature: float = 1.0  # temperature of the policy's action distribution
    validation_share: float = 0.25  # share of episodes held out from training, by hash of the state id
    block_size: int = 10  # initial states per simulator call

    def __post_init__(self) -> None:
        if self.num_episodes < 1 or self.block_size < 1:
            raise ValueError("collect_episodes.num_episodes and collect_episodes.block_size must be at least 1")
        if not 0 <= self.uncertain_share <= 1:
            raise ValueError(f"collect_episodes.uncertain_share must be in [0, 1], got {self.uncertain_share}")
        if not 0 <= self.rejected_share < 1 or self.rejected_share + self.uncertain_share > 1:
            raise ValueError(
                f"collect_episodes.rejected_share must be in [0, 1) and at most 1 - uncertain_share, got "
                f"{self.rejected_share} beside uncertain_share {self.uncertain_share}"
            )
        if self.num_noisy_replays < 0:
            raise ValueError(f"collect_episodes.num_noisy_replays must be at least 0, got {self.num_noisy_replays}")
        require_positive("collect_episodes.replay_noise", self.replay_noise)
        if self.temperature <= 0:
            raise ValueError(f"collect_episodes.temperature must be > 0, got {self.temperature}")
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"collect_episodes.validation_share must be in [0, 1), got {self.validation_share}")


def takes_part(config: Config, schedule: Schedule) -> bool:
    # In the simulator no iteration would read what the last one collects; a robot's episodes are also the evaluation.
    return schedule.has_robot or (schedule.has_simulator and not schedule.is_last)


def run(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """Roll the current policy out with exploration in every task; save its episodes as a new dataset version."""
    if not context.has_simulator:
        return take_over(state, context)
    first = state.num_scripted_episodes + state.iteration * config.num_episodes
    num_uncertain = round(config.uncertain_share * config.num_episodes) if state.calibrations else 0
    num_rejected = round(config.rejected_share * config.num_episodes) if state.rejected else 0
    num_own = config.num_episodes - num_uncertain - num_rejected
    states = context.simulation.initial_states("train", num_own, first)
    splits: list[Split] = [choose_split(i, config.validation_share) for i in states.ids]
    if num_uncertain:
        known = find_uncertain_states(state, config, num_uncertain, context)
        states = InitialStates.cat([states, known])
        splits += ["train"] * len(known)
    episodes = record(state.policy, states, tuple(splits), "", state, config, context)
    if num_rejected:
        states = context.simulation.initial_states("train", num_rejected, first + num_own)
        episodes += record(state.rejected, states, None, "rejected", state, config, context)
    noisy = repeat_with_noise(episodes, state, config, context)
    name = f"v{state.iteration + 1:03d}"
    shard = context.store.append([*episodes, *noisy], f"{state.iteration:03d}-policy", context.spec)
    context.store.snapshot(name, [shard], parent=context.store.version(state.dataset))
    counts = Counter(e.meta.outcome for e in episodes)
    for policy, variant in (("policy", "policy"), ("rejected candidate's", "rejected")):
        own = Counter(e.meta.outcome for e in episodes if e.meta.variant == variant)
        listed = ", ".join(f"{count} {outcome}" for outcome, count in sorted(own.items()))
        if own:
            context.reporter.log(f"{own.total()} {policy} episodes: {listed}")
    if noisy:
        listed = ", ".join(f"{n} {outcome}" for outcome, n in sorted(Counter(e.meta.outcome for e in noisy).items()))
        context.reporter.log(f"{len(noisy)} noisy replays: {listed}")
    env_steps = state.env_steps + sum(e.num_env_steps for e in (*episodes, *noisy))
    state = replace(state, dataset=name, env_steps=env_steps)
    return state.record(
        collected_episodes=dict(sorted(counts.items())),
        num_rejected_episodes=num_rejected,
        num_noisy_replays=len(noisy),
    )


def take_over(state: LoopState, context: StageContext) -> LoopState:
    """Make a dataset version with the episodes that were added for this iteration, and record how they ended."""
    added = read_added(context.store, state.iteration)
    if not added:
        raise WorldloopError(
            f"no episode of iteration {state.iteration} was added: worldloop sans add RUN DATASET brings them"
        )
    shards = [shard for own in added for shard in own.shards]
    name = f"v{state.iteration + 1:03d}"
    context.store.snapshot(name, shards, parent=context.store.version(state.dataset))
    outcomes = group_outcomes(*zip(*(pair for own in added for pair in own.outcomes), strict=True))
    logged = measure_logged(outcomes)
    for line in describe_logged(logged):
        context.reporter.log(line)
    env_steps = state.env_steps + sum(own.num_env_steps for own in added)
    state = replace(state, dataset=name, env_steps=env_steps)
    counts = Counter("success" if is_success else "failure" for own in added for is_success, _ in own.outcomes)
    missing = {"simulated_success": None, "simulated_success_reason": "no simulator: see logged_success"}
    return state.record(collected_episodes=dict(sorted(counts.items())), **logged.to_record(), **missing)


def record(
    policy: str,
    states: InitialStates,
    splits: tuple[Split, ...] | None,
    variant: str,
    state: LoopState,
    config: Config,
    context: StageContext,
) -> list[Episode]:
    """Episodes of the checkpoint ``policy`` from ``states``; ``variant`` is stored with them, "" for ``policy``."""
    return context.simulation.run(
        states,
        block_size=config.block_size,
        purpose="/".join(["collect_episodes", *([variant] if variant else [])]),
        iteration=state.iteration,
        splits=splits,
        policy=policy,
        variant=variant or "policy",
        temperature=config.temperature,
    )


def repeat_with_noise(
    episodes: list[Episode], state: LoopState, config: Config, context: StageContext
) -> list[Episode]:
    """``config.num_noisy_replays`` repetitions per task of the policy's training episodes, each about equally often."""
    noisy: list[Episode] = []
    for task in context.spec.task_ids if config.num_noisy_replays else ():
        own = [e for e in episodes if e.meta.task == task and (e.meta.variant, e.meta.split) == ("policy", "train")]
        if not own:
            continue
        repeated = [own[i % len(own)] for i in range(config.num_noisy_replays)]
        purpose = f"collect_episodes/noisy/{task}"
        replay, row_chunks = replay_with_noise(
            repeated,
            config.replay_noise,
            context.spec.robot,
            context.simulation.chunk_length,
            make_row_keys(len(repeated), context.seed, state.iteration, purpose),
        )
        states = InitialStates(
            "train",
            tuple(e.meta.initial_state_id for e in repeated),
            (task,) * len(repeated),
            torch.from_numpy(np.stack([e.sim_state[0] for e in repeated])),
        )
        noisy += context.simulation.run(
            states,
            block_size=config.block_size,
            purpose=purpose,
            iteration=state.iteration,
            replay=replay,
            row_chunks=row_chunks,
        )
    return [replace(e, meta=replace(e.meta, source="perturbed", variant="noisy_replay")) for e in noisy]


def find_uncertain_states(state: LoopState, config: Config, num_states: int, context: StageContext) -> InitialStates:
    """For each task at most ``num_states`` initial states of training episodes: those with the lowest expected PSNR.

    A state's figure is the lowest over one imagined rollout of the policy, at the temperature of the recording.
    """
    dataset = context.open_clips(state.dataset, "train")
    ids: dict[str, int] = {}
    for episode in dataset.episode_index().tolist():
        if not dataset.cache.knows_state[episode]:  # the simulator cannot start there
            continue
        ids.setdefault(dataset.cache.metas[episode].initial_state_id, episode)
    episodes = torch.tensor(list(ids.values()))
    policy = context.models.load_policy(state.policy).to(context.device).eval()
    policy.temperature = config.temperature
    world_model = context.models.load_world_model(state.world_model).to(context.device).for_imagination()
    lowest: list[Tensor] = []
    with context.reporter.progress(len(episodes), "imagined episode") as progress:
        for number, block in enumerate(episodes.split(STATES_AT_ONCE)):
            key = (context.seed, state.iteration, "collect_episodes/uncertain", number)
            rollout = imagine_rollout(
                policy,
                world_model,
                state.calibrations or Calibrations(),
                dataset.observation(torch.stack([block, torch.zeros_like(block)], dim=1)),
                noise_key=make_row_keys(len(block), *key),
                world_key=make_row_keys(len(block), *key, "world_model"),
                initial_state_id=tuple(str(e) for e in block.tolist()),
                max_batch=context.max_imagination_batch,
            )
            certainty = rollout.lowest_expected_psnr_db
            lowest.append(torch.full((len(block),), torch.inf) if certainty is None else certainty)
            progress.advance(len(block))
    ranked = episodes[torch.cat(lowest).argsort(stable=True)].numpy()
    metas = dataset.cache.metas
    chosen = np.concatenate([[e for e in ranked if metas[e].task == t][:num_states] for t in context.spec.task_ids])
    chosen = chosen.astype(np.int64)
    return InitialStates(
        "train",
        tuple(metas[e].initial_state_id for e in chosen),
        tuple(metas[e].task for e in chosen),
        torch.from_numpy(dataset.cache.frames("sim_state", chosen, np.zeros_like(chosen))),
    )
