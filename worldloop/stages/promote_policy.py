"""The gate: the best candidate replaces the policy only if it gains ``min_gain`` on validation states in the simulator.

With several tasks the mean gain counts, and the candidate must not be significantly worse at any task.

Imagined success can go on rising after real success has begun to fall, when the policy exploits the reward model. So
each improvement gives several candidates. The recorded gain is optimistic, because the best candidate was chosen on the
same states; evaluation states give an unbiased figure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from worldloop.evaluation.by_task import group_success
from worldloop.evaluation.promotion import judge_candidates
from worldloop.reporting.closed_loop import record_promoted
from worldloop.reporting.success import describe_promotion
from worldloop.stages.context import Schedule, StageContext
from worldloop.storage.run_state import LoopState


@dataclass(frozen=True)
class Config:
    gate: bool = True  # false: promote the last candidate unmeasured, for controls
    num_states: int = 100  # validation states of each task, the same every iteration
    min_gain: float = 0.0  # least paired gain in success rate for promotion, in [-1, 1]; 0: no worse
    block_size: int = 10  # initial states per simulator call

    def __post_init__(self) -> None:
        if self.num_states < 1 or self.block_size < 1:
            raise ValueError("promote_policy.num_states and promote_policy.block_size must be at least 1")
        if not -1 <= self.min_gain <= 1:
            raise ValueError(f"promote_policy.min_gain must be in [-1, 1], got {self.min_gain}")


def takes_part(config: Config, schedule: Schedule) -> bool:
    return not schedule.is_first and schedule.has_simulator


def run(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """Promote one of ``state.candidates`` or keep ``state.policy``; all checkpoints stay."""
    state = choose(replace(state, start="", newest="", num_rounds=0), config, context)
    if checked := state.recorded("closed_loop", None):
        state = state.record(closed_loop=record_promoted(checked, state.policy))
    return replace(state, candidates=())


def choose(state: LoopState, config: Config, context: StageContext) -> LoopState:
    if not state.candidates:
        return state.record(promoted=False, promotion_gain=None, promotion_gain_reason="no candidate")
    if not config.gate:
        context.reporter.log("gate off: last candidate promoted unseen")
        return replace(state, policy=state.candidates[-1], validation_success={}).record(
            promoted=True, promotion_gain=None, promotion_gain_reason="gate off"
        )

    def measure(policy: str) -> dict[str, tuple[bool, ...]]:
        return group_success(
            context.simulation.evaluate("validation", config.num_states, config.block_size, policy, state.iteration)
        )

    current = state.validation_success or measure(state.policy)
    success = {candidate: measure(candidate) for candidate in state.candidates}
    verdict = judge_candidates(current, success, config.min_gain)
    for line in describe_promotion(verdict):
        context.reporter.log(line)
    state = replace(
        state,
        policy=verdict.best if verdict.is_promoted else state.policy,
        validation_success=success[verdict.best] if verdict.is_promoted else current,
    )
    return state.record(**verdict.to_record())
