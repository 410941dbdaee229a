"""Can the world model be trusted where the policy learns? The simulator replays imagined rollouts of the newest policy.

`check_world_model` imagines recorded actions, which carry the outcome with them. Here the policy that is improved
next acts on imagined frames, and the simulator says what its actions do (`evaluation.closed_loop`). The stage runs
before the first round of the improvement and after each.

- Replays from fresh training states enter SANS with the policy's own episodes from there: they show the next fit where
  this policy is imagined wrongly. They also set the threshold from which a success counts: as many successes are
  declared as the replays have. ``max_false_positive_rate`` can make it stricter.
- Replays from fresh validation states judge the model. If its AUC within groups is below ``required_auc`` in a task, no
  further round improves the policy there. Nor does it if no two replays from one state ended differently: then there is
  nothing to learn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from worldloop.core.errors import require_range
from worldloop.core.success import Calibrations, Trust
from worldloop.core.types import Split
from worldloop.evaluation.closed_loop import (
    ClosedLoop,
    choose_threshold,
    judge_closed_loop,
    judge_closed_loop_trust,
)
from worldloop.evaluation.replayed_rollouts import ReplayedRollouts, replay_imagination
from worldloop.reporting.closed_loop import describe_closed_loop, record_closed_loop, write_closed_loop
from worldloop.stages.context import Schedule, StageContext
from worldloop.stages.improvement.config import ImprovementConfig
from worldloop.stages.improvement.rounds import count_steps, note_distrust
from worldloop.storage.run_state import LoopState

NAME = "check_closed_loop"


@dataclass(frozen=True)
class Config:
    num_states: int = 25  # fresh validation states of each task per check, to judge by; 0: no check in the closed loop
    num_training_states: int = 10  # fresh training states of each task per check; their episodes enter SANS; 0: none
    group_size: int = 4  # imagined and replayed rollouts per state
    required_auc: float = 0.6  # least AUC within groups for a further round; 0: no rule
    max_false_positive_rate: float = 1.0  # most failing training replays that may count as successes, a share; 1: any
    swap_test: bool = False  # also let the policy act with one part of what it sees imagined, from the held-out states
    block_size: int = 10  # initial states per simulator call

    def __post_init__(self) -> None:
        if self.num_states < 0 or self.num_training_states < 0:
            raise ValueError("check_closed_loop.num_states and check_closed_loop.num_training_states must be >= 0")
        if self.group_size < 2 or self.block_size < 1:
            raise ValueError("check_closed_loop: group_size must be at least 2 and block_size at least 1")
        require_range("check_closed_loop.required_auc", self.required_auc, 0, 1)
        require_range("check_closed_loop.max_false_positive_rate", self.max_false_positive_rate, 0, 1)


def takes_part(config: Config, schedule: Schedule) -> bool:
    takes_part = not schedule.is_first and schedule.has_simulator and schedule.in_rounds
    return takes_part and config.num_states > 0


def run(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """Judge ``state.newest`` in ``state.world_model``; set ``trust`` and thresholds, add training replays to SANS."""
    calibrations = state.calibrations or Calibrations()
    if config.num_training_states:
        training = replay(state, calibrations, "train", config.num_training_states, config, context)
        calibrations = choose_thresholds(training, calibrations, config.max_false_positive_rate)
        state = add_to_dataset(state, training, context)
    held_out = replay(state, calibrations, "validation", config.num_states, config, context)
    judged: dict[str, ClosedLoop] = {}
    trust = dict(state.trust)
    for task in context.spec.task_ids:
        judged[task] = judge_closed_loop(held_out.of_task(task), calibrations.of(task).threshold)
        if trust.get(task, Trust(True)).is_trusted:
            trust[task] = judge_closed_loop_trust(judged[task], config.required_auc)

    num_steps = count_steps(state, context.config_of(ImprovementConfig))
    for line in describe_closed_loop(state.newest, judged):
        context.reporter.log(line)
    write_closed_loop(context.reporter, num_steps, judged)
    before, is_candidate = state.recorded("closed_loop", {}), state.num_rounds > 0
    record = record_closed_loop(before, state.newest, judged, is_candidate)
    context.models.update_card(state.world_model, calibrations, record["checkpoints"][-1])
    state = state.record(closed_loop=record)
    return note_distrust(replace(state, calibrations=calibrations, trust=trust), context)


def replay(
    state: LoopState, calibrations: Calibrations, split: Split, num_states: int, config: Config, context: StageContext
) -> ReplayedRollouts:
    """Replay imagined rollouts of ``state.newest`` from fresh states of ``split``, as long as those it learns from."""
    improvement = context.config_of(ImprovementConfig)
    policy = context.models.load_policy(state.newest).to(context.device).eval()
    policy.temperature = improvement.temperature
    key = (state.iteration, NAME, split, state.num_rounds)
    return replay_imagination(
        policy,
        state.newest,
        context.models.load_world_model(state.world_model).to(context.device).for_imagination(),
        calibrations,
        context.simulation,
        context.simulation.draw_fresh_states(split, num_states, *key),
        group_size=config.group_size,
        num_chunks=improvement.imagination_horizon,
        temperature=improvement.temperature,
        block_size=config.block_size,
        iteration=state.iteration,
        key=(context.seed, *key),
        max_batch=context.max_imagination_batch,
        swap_with=state.world_model if config.swap_test and split == "validation" else "",
    )


def choose_thresholds(rollouts: ReplayedRollouts, calibrations: Calibrations, max_rate: float) -> Calibrations:
    """The calibrations with each task's threshold chosen on ``rollouts``; see `choose_threshold`."""
    by_task = dict(calibrations.by_task)
    for task in sorted(set(rollouts.task)):
        own, calibration = rollouts.of_task(task), calibrations.of(task)
        threshold = choose_threshold(own.score[:, -1], own.replayed[:, -1], max_rate)
        by_task[task] = replace(calibration, threshold=threshold)
    return Calibrations(by_task)


def add_to_dataset(state: LoopState, rollouts: ReplayedRollouts, context: StageContext) -> LoopState:
    """Append the replays and the policy's own episodes as a shard; ``state.dataset`` becomes the new version."""
    episodes = [*rollouts.own_episodes, *rollouts.episodes]
    shard = context.store.append(episodes, f"{state.iteration:03d}-replay-{state.num_rounds}", context.spec)
    name = f"v{state.iteration:03d}-{state.num_rounds}"
    context.store.snapshot(name, [shard], parent=context.store.version(state.dataset))
    num_steps = sum(episode.num_env_steps for episode in episodes)
    return replace(state, dataset=name, env_steps=state.env_steps + num_steps)
