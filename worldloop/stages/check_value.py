"""Judge the critics on episodes that they have not learned from: do their values tell the outcome ahead of time?"""

from __future__ import annotations

from dataclasses import dataclass

from worldloop.core.errors import require_range
from worldloop.evaluation.episode_values import judge_critic
from worldloop.reporting.value import describe_critics, write_critics
from worldloop.stages import fit_value
from worldloop.stages.context import Schedule, StageContext
from worldloop.storage.run_state import LoopState

NAME = "check_value"


@dataclass(frozen=True)
class Config:
    batch_size: int = 256  # frames that are valued at once

    def __post_init__(self) -> None:
        require_range("check_value.batch_size", self.batch_size, 1)


def takes_part(config: Config, schedule: Schedule) -> bool:
    return not schedule.is_first and schedule.has_simulator and schedule.uses_advantages


def run(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """Judge ``state.critics`` out of fold, by source, and record it; no decision depends on it."""
    frames = fit_value.open_frames(state, context.config_of(fit_value.Config), context)
    critics = [context.models.load_critic(path).to(context.device) for path in state.critics]
    judged = judge_critic(frames, frames.compute_values(critics, config.batch_size, context.reporter))
    for line in describe_critics(judged):
        context.reporter.log(line)
    write_critics(context.reporter, state.iteration, judged)
    return state.record(value_check={source: judgement.to_dict() for source, judgement in judged.items()})
