"""The headline figure: greedy success of the current policy on evaluation states, in the real simulator.

Read-only: nothing it measures enters the dataset or any decision. Where a world model exists, the same policy is
also run inside it from the same first frames, so that imagined and simulated success can be compared pair by pair.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from worldloop.core.statistics import Rate, paired_gain
from worldloop.core.success import Calibration
from worldloop.evaluation.outcomes import compare_outcomes, imagine_outcomes
from worldloop.rollout.simulation import success_of
from worldloop.stages.context import Schedule, StageContext
from worldloop.storage.run_state import LoopState


@dataclass(frozen=True)
class Config:
    num_states: int = 200  # evaluation states, the same for every run and seed
    block_size: int = 10  # initial states per simulator call

    def __post_init__(self) -> None:
        if self.num_states < 1 or self.block_size < 1:
            raise ValueError("evaluate_policy.num_states and evaluate_policy.block_size must be at least 1")


def takes_part(config: Config, schedule: Schedule) -> bool:
    return schedule.has_simulator


def run(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """Append this iteration's outcomes to ``evaluation_success`` and record the rates."""
    episodes = context.simulation.evaluate(
        "evaluation", config.num_states, config.block_size, state.policy, state.iteration
    )
    success = success_of(episodes)
    state = replace(state, evaluation_success=(*state.evaluation_success[: state.iteration], success))
    gain = paired_gain(np.array(state.evaluation_success[0]), np.array(success))
    simulated = Rate.of(np.array(success))
    context.reporter.log(f"simulated success {simulated}")
    state = state.record(simulated_success=simulated.to_dict(), paired_gain=gain.to_dict())
    if not state.world_model:
        return state.record(imagined_success=None, imagined_success_reason="no world model yet")

    imagined = imagine_outcomes(
        context.models.load_policy(state.policy).to(context.device),
        context.models.load_world_model(state.world_model).to(context.device).for_imagination(),
        state.calibration or Calibration(),
        episodes,
        key=(context.seed, state.iteration, "evaluate_policy/imagined"),
        max_batch=context.max_imagination_batch,
    )
    comparison = compare_outcomes(imagined, np.array(success))
    context.reporter.log(f"imagined success  {comparison.imagined}")
    return state.record(**comparison.to_dict())
