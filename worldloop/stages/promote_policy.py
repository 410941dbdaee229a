"""The gate: a candidate replaces the policy only if it wins a paired test in the simulator, on fresh validation states.

Imagined success can go on rising after real success has begun to fall, when the policy exploits the reward model. So
each improvement gives several candidates. The best on ``num_states`` states is then tested against the policy on other
states, until one leads by ``net_wins`` states (`evaluation.promotion`), on at most ``max_states``. If neither does, the
policy stays. States are fresh in every iteration: states that are used again and again select for luck.

Without a simulator the last candidate becomes the policy, unmeasured.

The best of the other candidates is kept as ``state.rejected``: `collect_episodes` records what it does. Its failures
are where the world model was wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from worldloop.core.types import InitialStates
from worldloop.evaluation.by_task import Outcomes, group_success
from worldloop.evaluation.promotion import Verdict, judge_candidate, rank_candidates, rate_candidates
from worldloop.reporting.closed_loop import record_promoted
from worldloop.reporting.success import describe_candidates, describe_promotion
from worldloop.stages.context import Schedule, StageContext
from worldloop.storage.run_state import LoopState

NAME = "promote_policy"


@dataclass(frozen=True)
class Config:
    gate: bool = True  # false: promote the last candidate unmeasured, for controls
    num_states: int = 40  # fresh validation states of each task on which the best of several candidates is chosen
    max_states: int = 160  # most further fresh validation states of each task in the test against the policy
    states_per_look: int = 40  # states of each task between two looks at the test
    net_wins: int = 8  # lead, in states of all tasks, that promotes the candidate; as large a deficit refuses it
    block_size: int = 10  # initial states per simulator call

    def __post_init__(self) -> None:
        for name in ("num_states", "max_states", "states_per_look", "net_wins", "block_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"promote_policy.{name} must be at least 1, got {getattr(self, name)}")


def takes_part(config: Config, schedule: Schedule) -> bool:
    return not schedule.is_first and schedule.has_policy


def run(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """Promote one of ``state.candidates`` or keep ``state.policy``; all checkpoints stay."""
    before = state.policy
    state = choose(replace(state, start="", newest="", num_rounds=0), config, context)
    if checked := state.recorded("closed_loop", None):
        state = state.record(closed_loop=record_promoted(checked, state.policy))
    left = [candidate for candidate in state.candidates if candidate not in (state.policy, before)]
    return replace(state, candidates=(), rejected=left[0] if left else "")


def choose(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """The state with the policy that is in place from now on; ``candidates`` are ranked, the best first."""
    if not state.candidates:
        return state.record(promoted=False, promotion_gain=None, promotion_gain_reason="no candidate")
    if not config.gate or not context.has_simulator:
        reason = "gate off" if context.has_simulator else "no simulator"
        context.reporter.log(f"{reason}: last candidate promoted unseen")
        return replace(state, policy=state.candidates[-1], candidates=state.candidates[::-1]).record(
            promoted=True, promotion_gain=None, promotion_gain_reason=reason
        )
    if len(state.candidates) > 1:
        states = context.simulation.draw_fresh_states("validation", config.num_states, state.iteration, NAME, "choose")
        success = {candidate: measure(candidate, states, state, config, context) for candidate in state.candidates}
        context.reporter.log(describe_candidates(success))
        state = replace(state, candidates=tuple(rank_candidates(success)))
        state = state.record(validation_success=rate_candidates(success))
    verdict = compare_with_policy(state.candidates[0], state, config, context)
    for line in describe_promotion(verdict):
        context.reporter.log(line)
    state = state.record(**verdict.to_record())
    return replace(state, policy=verdict.candidate) if verdict.is_promoted else state


def compare_with_policy(candidate: str, state: LoopState, config: Config, context: StageContext) -> Verdict:
    """Let ``candidate`` and ``state.policy`` act from the same fresh states, until one leads by ``net_wins``."""
    states = context.simulation.draw_fresh_states("validation", config.max_states, state.iteration, NAME, "test")
    by_task = [[row for row, own in enumerate(states.tasks) if own == task] for task in dict.fromkeys(states.tasks)]
    current: dict[str, tuple[bool, ...]] = {}
    outcomes: dict[str, tuple[bool, ...]] = {}
    for first in range(0, config.max_states, config.states_per_look):
        block = states.select([row for rows in by_task for row in rows[first : first + config.states_per_look]])
        for policy, so_far in ((state.policy, current), (candidate, outcomes)):
            for task, more in measure(policy, block, state, config, context).items():
                so_far[task] = (*so_far.get(task, ()), *more)
        verdict = judge_candidate(candidate, current, outcomes, config.net_wins)
        if verdict.decision != "undecided":
            break
    return verdict


def measure(policy: str, states: InitialStates, state: LoopState, config: Config, context: StageContext) -> Outcomes:
    """Task -> greedy success of the checkpoint ``policy`` from each of ``states``."""
    episodes = context.simulation.judge(
        states, block_size=config.block_size, purpose=NAME, iteration=state.iteration, policy=policy
    )
    return group_success(episodes)
