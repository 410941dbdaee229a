"""Iteration 0 without a simulator: episodes of a recorded LeRobot dataset become the only SANS version."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from worldloop.core.types import Episode
from worldloop.sans.recorded_episodes import read_recording
from worldloop.sans.recordings import RecordingConfig, open_recording
from worldloop.stages.context import Schedule, StageContext
from worldloop.storage.run_state import LoopState


@dataclass(frozen=True)
class Config:
    episodes_per_shard: int = 200  # recorded episodes per stored shard

    def __post_init__(self) -> None:
        if self.episodes_per_shard < 1:
            raise ValueError(f"import_dataset.episodes_per_shard must be at least 1, got {self.episodes_per_shard}")


def takes_part(config: Config, schedule: Schedule) -> bool:
    return schedule.is_first and not schedule.has_simulator


def run(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """Scale and subsample the recording into shards, and say what is doubtful about it."""
    settings = context.config_of(RecordingConfig)
    recording = open_recording(settings)
    for doubt in (*recording.doubts, *recording.outliers):
        context.reporter.log(f"  warning: {doubt}")
    counts: Counter[str] = Counter()
    env_steps = 0
    with context.reporter.progress(len(recording.used), "episode") as progress:

        def counted(episode: Episode) -> Episode:
            nonlocal env_steps
            counts[f"{episode.meta.split} {episode.meta.outcome}"] += 1
            env_steps += episode.num_env_steps
            progress.advance()
            return episode

        episodes = (counted(episode) for episode in read_recording(settings, context.spec, recording))
        shards = context.store.append_in_blocks(episodes, "000-recorded", config.episodes_per_shard, context.spec)
    outcomes = {kind.split()[1] for kind in counts}
    if len(outcomes) == 1:
        context.reporter.log(
            f"  warning: every episode ends in {outcomes.pop()}, so a success head has nothing to tell apart"
        )
    left_out = len(recording.dataset.episodes) - counts.total()
    context.store.snapshot("v000", shards)
    context.reporter.log(
        f"{counts.total()} recorded episodes: "
        + ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))
        + (f"; {left_out} left out" if left_out else "")
    )
    state = replace(state, dataset="v000", env_steps=env_steps)
    return state.record(recorded_episodes=dict(sorted(counts.items())), recorded_left_out=left_out)
