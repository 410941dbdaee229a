"""Judge the planner: does it succeed in the simulator, and are its videos as smooth as real ones?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from worldloop.core.errors import require_range
from worldloop.core.randomness import make_row_keys
from worldloop.core.statistics import Rate
from worldloop.evaluation.plans import find_successes, judge_plans, plan_successes
from worldloop.policies.planner.policy import PlannerPolicy
from worldloop.stages.context import Schedule, StageContext
from worldloop.storage.run_state import LoopState

NAME = "check_planner"
FEWEST_FRAMES = 3  # in a plan: with the first frame, four give a jerk


@dataclass(frozen=True)
class Config:
    num_states: int = 40  # fresh validation states of each task in which it acts; 0: none
    block_size: int = 10  # initial states per simulator call
    num_frames: int = 6  # frames of a plan that is compared with a real success, 3 or more
    max_episodes: int = 100  # latest held-out successes with so many frame steps whose starts it plans from
    num_videos: int = 4  # plans in TensorBoard, beside the real video; 0: none

    def __post_init__(self) -> None:
        for name, lowest in (("num_states", 0), ("block_size", 1), ("max_episodes", 1), ("num_videos", 0)):
            require_range(f"check_planner.{name}", getattr(self, name), lowest)
        require_range("check_planner.num_frames", self.num_frames, FEWEST_FRAMES)


def takes_part(config: Config, schedule: Schedule) -> bool:
    return not schedule.is_first and schedule.uses_planner


def run(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """Record the rate of success and how plans compare with held-out successes; no decision depends on it."""
    checked: dict[str, Any] = {"success": act(state, config, context)}
    checked["plans"] = compare_plans(state, config, context)
    return state.record(planner_check=checked)


def act(state: LoopState, config: Config, context: StageContext) -> dict[str, Any] | None:
    """Success of the planner's policy in the simulator, by task as well. Its steps only measure: they do not count."""
    if not (config.num_states and state.clone):  # without a simulator there is no clone
        return None
    simulation = context.simulation
    states = simulation.draw_fresh_states("validation", config.num_states, NAME, state.iteration)
    counted = simulation.num_env_steps
    episodes = simulation.judge(
        states, block_size=config.block_size, purpose=NAME, iteration=state.iteration, policy=state.planner
    )
    simulation.num_env_steps = counted
    success = np.array([episode.is_success for episode in episodes])
    rate, tasks = Rate.of(success), np.array(states.tasks)
    context.reporter.log(f"the planner succeeds in {rate} of the states")
    with context.reporter.writer(NAME, purge_step=state.iteration) as writer:
        writer.scalars(state.iteration, {f"{NAME}/success": rate.rate})
    by_task = {name: Rate.of(success[tasks == name]).to_dict() for name in np.unique(tasks).tolist()}
    return rate.to_dict() | {"tasks": by_task}


def compare_plans(state: LoopState, config: Config, context: StageContext) -> dict[str, Any] | None:
    """Plans from the starts of held-out successes beside their videos; ``None`` if no success is long enough."""
    episodes = find_successes(context.open_cache(state.dataset), config.num_frames, config.max_episodes)
    if not episodes:
        context.reporter.log(f"no held-out success of {config.num_frames} frames, so no plan is compared with one")
        return None
    policy = context.models.load_policy(state.planner).to(context.device)
    assert isinstance(policy, PlannerPolicy)
    keys = make_row_keys(len(episodes), context.seed, state.iteration, NAME)
    videos = plan_successes(policy.planner, episodes, config.num_frames, keys)
    judge = context.models.load_inverse_dynamics(state.inverse_dynamics_judge).to(context.device)
    judged = judge_plans(videos, judge)
    context.reporter.log(f"plans: {judged}")
    values = {f"{NAME}/psnr_db": judged.psnr_db.value, f"{NAME}/still_psnr_db": judged.still_psnr_db.value}
    for name in ("penalty_ratio", "path_ratio"):
        if (figure := getattr(judged, name)) is not None:
            values[f"{NAME}/{name}"] = figure.value
    with context.reporter.writer(f"{NAME}/plans", purge_step=state.iteration) as writer:
        writer.scalars(state.iteration, values)
        for number, video in enumerate(videos.show()[: config.num_videos]):
            writer.video(f"{NAME}/plan_{number}", state.iteration, video, context.spec.frames_per_second)
    return judged.to_dict()
