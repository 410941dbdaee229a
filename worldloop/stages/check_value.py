"""Judge the critics on episodes that they have not learned from: do their values tell the outcome ahead of time?"""

from __future__ import annotations

from dataclasses import dataclass

from worldloop.core.errors import require_range
from worldloop.evaluation.episode_values import judge_critic
from worldloop.evaluation.value_at_events import find_all_events, judge_at_events
from worldloop.reporting.value import describe_critics, describe_events, write_critics, write_values
from worldloop.stages import fit_value
from worldloop.stages.context import Schedule, StageContext
from worldloop.storage.run_state import LoopState

NAME = "check_value"


@dataclass(frozen=True)
class Config:
    batch_size: int = 256  # frames that are valued at once
    num_videos: int = 4  # videos in TensorBoard with the value below, per source; 0: none

    def __post_init__(self) -> None:
        require_range("check_value.batch_size", self.batch_size, 1)
        require_range("check_value.num_videos", self.num_videos, 0)


def takes_part(config: Config, schedule: Schedule) -> bool:
    return not schedule.is_first and schedule.has_policy and schedule.uses_value


def run(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """Judge ``state.critics`` out of fold, by source, and record it; no decision depends on it."""
    frames = fit_value.open_frames(state, context.config_of(fit_value.Config), context)
    critics = [context.models.load_critic(path).to(context.device) for path in state.critics]
    values = frames.compute_values(critics, config.batch_size, context.reporter)
    judged = judge_critic(frames, values)
    events = find_all_events(frames)
    at_events = judge_at_events(frames, values, events)
    for line in (*describe_critics(judged), *describe_events(at_events)):
        context.reporter.log(line)
    write_critics(context.reporter, state.iteration, judged, at_events)
    write_values(context.reporter, state.iteration, frames, values, events, config.num_videos)
    return state.record(
        value_check={source: judgement.to_dict() for source, judgement in judged.items()},
        value_at_events={
            source: {name: change.to_dict() for name, change in changes.items()}
            for source, changes in at_events.items()
        },
    )
