"""A stage of one's own, in one file: it notes how many episodes the dataset holds. The other line is in `STAGES`."""

from __future__ import annotations

from dataclasses import dataclass

from worldloop.stages.context import Schedule, StageContext
from worldloop.storage.run_state import LoopState


@dataclass(frozen=True)
class Config:
    only_first: bool = True  # iteration 0 alone
    note: str = "episodes"  # what the count is called

    def __post_init__(self) -> None:
        if not self.note:
            raise ValueError("count_episodes.note must not be empty")


def takes_part(config: Config, schedule: Schedule) -> bool:
    return schedule.is_first or not config.only_first


def run(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """Record the count of all splits."""
    cache = context.open_cache(state.dataset)
    context.reporter.log(f"{len(cache)} {config.note}")
    return state.record(**{config.note: len(cache)})
