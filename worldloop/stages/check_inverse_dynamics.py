"""Judge the inverse dynamics models on held-out video, and follow it with them in the simulator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldloop.core.errors import require_range
from worldloop.core.statistics import Rate
from worldloop.core.types import Episode
from worldloop.evaluation.inverse_dynamics import cut_videos, infer_episode, judge_inverse_dynamics
from worldloop.executability.inverse_dynamics import InverseDynamics
from worldloop.stages.context import Schedule, StageContext
from worldloop.stages.fit_inverse_dynamics import NAMES
from worldloop.storage.run_state import LoopState

NAME = "check_inverse_dynamics"


@dataclass(frozen=True)
class Config:
    max_episodes: int = 200  # latest held-out episodes of each task that are judged, and followed if they succeeded
    block_size: int = 10  # initial states per simulator call
    required_success: float = 0.85  # least share of them that must succeed again, else the log warns

    def __post_init__(self) -> None:
        for name in ("max_episodes", "block_size"):
            require_range(f"check_inverse_dynamics.{name}", getattr(self, name), 1)
        require_range("check_inverse_dynamics.required_success", self.required_success, 0, 1)


def takes_part(config: Config, schedule: Schedule) -> bool:
    return not schedule.is_first and schedule.uses_inverse_dynamics


def run(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """Judge both models on held-out episodes of ``state.dataset``, and record it; no decision depends on it."""
    cache = context.open_cache(state.dataset)
    held_out = [cache.select(task=task, split="validation")[-config.max_episodes :] for task in context.spec.task_ids]
    episodes = [cache.episode(number) for number in np.concatenate(held_out).tolist()]
    if not episodes:
        context.reporter.log("no held-out episode, so the inverse dynamics models are not checked")
        return state.record(inverse_dynamics_check=None)
    checked: dict[str, Any] = {}
    for name, path in zip(NAMES, (state.inverse_dynamics, state.inverse_dynamics_judge), strict=True):
        model = context.models.load_inverse_dynamics(path).to(context.device)
        judged = judge_inverse_dynamics(model, episodes, [infer_episode(model, episode) for episode in episodes])
        shown = ", ".join(f"{part} {figure}" for part, figure in judged.explained.items())
        context.reporter.log(f"{name}: share of variance explained: {shown}; {judged.num_episodes} episodes")
        checked[name] = judged.to_dict() | {"followed": execute(model, path, episodes, state, config, context)}
    values = {
        f"{NAME}/{name}_{part}": figures["explained"][part]["value"]
        for name, figures in checked.items()
        for part in figures["explained"]
    }
    values |= {f"{NAME}/{name}_followed": f["followed"]["rate"] for name, f in checked.items() if f["followed"]}
    with context.reporter.writer(NAME, purge_step=state.iteration) as writer:
        writer.scalars(state.iteration, values)
    return state.record(inverse_dynamics_check=checked)


def execute(
    model: InverseDynamics,
    path: str,
    episodes: Sequence[Episode],
    state: LoopState,
    config: Config,
    context: StageContext,
) -> dict[str, Any] | None:
    """Follow the video of each success in the simulator: how many succeed again, by task as well.

    ``None`` without a simulator, or without a success. Its steps only measure, so they are not counted.
    """
    solved = [e for e in episodes if e.is_success and e.sim_state.shape[1] and np.isfinite(e.sim_state).all()]
    if not solved:
        return None
    states, video, num_chunks = cut_videos(model.spec.robot.camera_names, path, solved, context.chunk_length)
    counted = context.simulation.num_env_steps
    repeated = context.simulation.judge(
        states,
        block_size=config.block_size,
        purpose=NAME,
        iteration=state.iteration,
        video=video,
        row_chunks=num_chunks,
    )
    context.simulation.num_env_steps = counted
    success = np.array([episode.is_success for episode in repeated])
    rate = Rate.of(success)
    warning = "" if rate.rate >= config.required_success else "warning: "
    context.reporter.log(f"{warning}followed in the simulator, {rate} of these successes succeed again")
    tasks = np.array(states.tasks)
    by_task = {name: Rate.of(success[tasks == name]).to_dict() for name in np.unique(tasks).tolist()}
    return rate.to_dict() | {"tasks": by_task}
