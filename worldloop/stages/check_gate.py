"""Judge the gate of a policy with two experts on held-out episodes: does it know an interaction when it sees one?"""

from __future__ import annotations

from dataclasses import dataclass

from worldloop.core.errors import require_range
from worldloop.core.interfaces import GatedPolicy
from worldloop.evaluation.gate import choose_held_out, judge_gate, run_gate
from worldloop.reporting.gate import describe_gate, write_gate, write_gated_videos
from worldloop.stages.context import Schedule, StageContext
from worldloop.storage.run_state import LoopState


@dataclass(frozen=True)
class Config:
    max_episodes: int = 100  # latest held-out episodes of each source, scripted and on_policy
    num_videos: int = 4  # videos in TensorBoard with the gate's word below, per source; 0: none

    def __post_init__(self) -> None:
        require_range("check_gate.max_episodes", self.max_episodes, 1)
        require_range("check_gate.num_videos", self.num_videos, 0)


def takes_part(config: Config, schedule: Schedule) -> bool:
    return schedule.policy_is_gated


def run(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """Record how the gate of ``state.policy`` agrees with the labels, by source; no decision depends on it."""
    policy = context.models.load_policy(state.policy).to(context.device)
    assert isinstance(policy, GatedPolicy)
    cache = context.open_cache(state.dataset)
    episodes = choose_held_out(cache, config.max_episodes)
    gated = {source: run_gate(policy, cache, context.spec, own) for source, own in episodes.items()}
    frames_per_chunk = context.chunk_length // context.spec.actions_per_frame
    judged = {source: judge_gate(own, frames_per_chunk) for source, own in gated.items()}
    for line in describe_gate(judged):
        context.reporter.log(line)
    write_gate(context.reporter, state.iteration, judged)
    cameras, rate = policy.spec.robot.camera_names, context.spec.frames_per_second
    write_gated_videos(context.reporter, state.iteration, gated, cache, cameras, rate, config.num_videos)
    return state.record(gate_check={source: judgement.to_dict() for source, judgement in judged.items()})
