"""The gate: the best candidate replaces the policy only if it is no worse on validation states in the real simulator.

Imagined success can go on rising after real success has turned, when the reward model is exploited. Hence several
candidates per improvement. The recorded gain is that of the best of them on the states that chose it, so it is
optimistic; evaluation states measure the honest one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from worldloop.core.statistics import Rate, paired_gain
from worldloop.rollout.simulation import success_of
from worldloop.stages.context import Schedule, StageContext
from worldloop.storage.run_state import LoopState


@dataclass(frozen=True)
class Config:
    gate: bool = True  # false promotes the last candidate unmeasured: for controls
    num_states: int = 100  # validation states, the same every iteration
    min_gain: float = 0.0  # paired gain in success rate that a candidate needs, in [-1, 1]
    block_size: int = 10  # initial states per simulator call

    def __post_init__(self) -> None:
        if self.num_states < 1 or self.block_size < 1:
            raise ValueError("promote_policy.num_states and promote_policy.block_size must be at least 1")
        if not -1 <= self.min_gain <= 1:
            raise ValueError(f"promote_policy.min_gain must be in [-1, 1], got {self.min_gain}")


def takes_part(config: Config, schedule: Schedule) -> bool:
    return not schedule.is_first and schedule.has_simulator


def run(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """Promote one of ``state.candidates`` or roll back to ``state.policy``; their checkpoints stay either way."""
    if not state.candidates:
        return state.record(promoted=False, promotion_gain=None, promotion_gain_reason="no candidate")
    if not config.gate:
        context.reporter.log("gate off: last candidate promoted unseen")
        return replace(state, policy=state.candidates[-1], candidates=(), validation_success=()).record(
            promoted=True, promotion_gain=None, promotion_gain_reason="gate off"
        )

    def measure(policy: str) -> tuple[bool, ...]:
        episodes = context.simulation.evaluate(
            "validation", config.num_states, config.block_size, policy, state.iteration
        )
        return success_of(episodes)

    current = state.validation_success or measure(state.policy)
    success = {candidate: measure(candidate) for candidate in state.candidates}
    best = max(state.candidates, key=lambda c: sum(success[c]))  # the earliest of equals
    gain = paired_gain(np.array(current), np.array(success[best]))
    promoted = gain.gain >= config.min_gain
    rates = ", ".join(str(Rate.of(np.array(s))) for s in success.values())
    context.reporter.log(
        f"candidates {rates} against {Rate.of(np.array(current))}: "
        + (f"promoted {best.rsplit('/', 1)[-1]}" if promoted else "rolled back")
    )
    state = replace(
        state,
        policy=best if promoted else state.policy,
        candidates=(),
        validation_success=success[best] if promoted else current,
    )
    return state.record(
        promoted=promoted,
        promotion_gain=gain.to_dict(),
        validation_success={c: Rate.of(np.array(s)).to_dict() for c, s in success.items()},
    )
