"""Judge the inverse dynamics models on held-out video, and execute what they read from it in the simulator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from worldloop.core.errors import require_range
from worldloop.core.statistics import Rate
from worldloop.core.types import Episode
from worldloop.evaluation.inverse_dynamics import infer_episode, judge_inverse_dynamics, make_replay
from worldloop.executability.inverse_dynamics import InverseDynamics
from worldloop.stages.context import Schedule, StageContext
from worldloop.stages.fit_inverse_dynamics import NAMES
from worldloop.storage.run_state import LoopState

NAME = "check_inverse_dynamics"


@dataclass(frozen=True)
class Config:
    num_executed: int = 200  # held-out successes whose inferred actions the simulator repeats; 0: none
    required_success: float = 0.85  # least share of them that must succeed again, else the log warns

    def __post_init__(self) -> None:
        require_range("check_inverse_dynamics.num_executed", self.num_executed, 0)
        require_range("check_inverse_dynamics.required_success", self.required_success, 0, 1)


def takes_part(config: Config, schedule: Schedule) -> bool:
    return not schedule.is_first and schedule.uses_inverse_dynamics


def run(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """Judge both models on the held-out episodes of ``state.dataset``, and record it; no decision depends on it."""
    cache = context.open_cache(state.dataset)
    episodes = [cache.episode(number) for number in cache.select(split="validation").tolist()]
    if not episodes:
        context.reporter.log("no held-out episode, so the inverse dynamics models are not checked")
        return state.record(inverse_dynamics_check=None)
    checked: dict[str, Any] = {}
    for name, path in zip(NAMES, (state.inverse_dynamics, state.inverse_dynamics_judge), strict=True):
        model = context.models.load_inverse_dynamics(path).to(context.device)
        judged = judge_inverse_dynamics(model, episodes, [infer_episode(model, episode) for episode in episodes])
        shown = ", ".join(f"{part} {figure}" for part, figure in judged.explained.items())
        context.reporter.log(f"{name}: explains of the variance of {shown}; {judged.num_episodes} episodes")
        checked[name] = judged.to_dict() | {"executed": execute(model, episodes, state, config, context)}
    values = {
        f"{NAME}/{name}_{part}": figures["explained"][part]["value"]
        for name, figures in checked.items()
        for part in figures["explained"]
    }
    values |= {f"{NAME}/{name}_executed": f["executed"]["rate"] for name, f in checked.items() if f["executed"]}
    with context.reporter.writer(NAME, purge_step=state.iteration) as writer:
        writer.scalars(state.iteration, values)
    return state.record(inverse_dynamics_check=checked)


def execute(
    model: InverseDynamics, episodes: list[Episode], state: LoopState, config: Config, context: StageContext
) -> dict[str, Any] | None:
    """Repeat what ``model`` reads from held-out successes in the simulator: how many succeed again, by task as well.

    ``None`` without a simulator, or without a success.
    """
    solved = [episode for episode in episodes if episode.is_success and episode.sim_state.shape[1]]
    solved = solved[: config.num_executed]
    if not solved:
        return None
    states, replay, num_chunks = make_replay(
        model, solved, [infer_episode(model, episode) for episode in solved], context.chunk_length
    )
    repeated = context.simulation.run(
        states, block_size=10, purpose=NAME, iteration=state.iteration, replay=replay, row_chunks=num_chunks
    )
    success = np.array([episode.is_success for episode in repeated])
    rate = Rate.of(success)
    verdict = "" if rate.rate >= config.required_success else f", below {config.required_success}"
    context.reporter.log(f"executed in the simulator: {rate} of held-out successes succeed again{verdict}")
    tasks = np.array(states.tasks)
    by_task = {name: Rate.of(success[tasks == name]).to_dict() for name in np.unique(tasks).tolist()}
    return rate.to_dict() | {"tasks": by_task}
