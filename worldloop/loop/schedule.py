"""Which stages an iteration has, and which stage comes next."""

from __future__ import annotations

from dataclasses import replace

from worldloop.config.schema import LoopConfig
from worldloop.stages import STAGES, check_world_model, improve_policy
from worldloop.stages.context import Schedule
from worldloop.storage.run_state import LoopState


def list_stages(config: LoopConfig, iteration: int) -> tuple[str, ...]:
    """The names of the stages of one iteration, in order."""
    has_simulator = config.source == "simulator"
    method = improve_policy.METHODS[config.section(improve_policy.Config).method]
    schedule = Schedule(
        iteration=iteration,
        num_iterations=config.num_iterations,
        has_simulator=has_simulator,
        uses_world_model=method.uses_world_model or not has_simulator,
    )
    return tuple(name for name, stage in STAGES.items() if stage.takes_part(config.section(stage.Config), schedule))


def list_remaining_stages(config: LoopConfig, state: LoopState) -> list[str]:
    """The stages after ``state.next_stage``, to the end of the loop."""
    here = list_stages(config, state.iteration)
    left = list(here[here.index(state.next_stage) + 1 :])
    for iteration in range(state.iteration + 1, config.num_iterations + 1):
        left += list_stages(config, iteration)
    return left


def advance(config: LoopConfig, state: LoopState) -> LoopState:
    """The state with ``next_stage`` set to the stage after the one that has just ended; "" after the last.

    If the check does not trust the world model in a task and a further fit may help, the fit is next again, up to
    ``max_fits`` fits.
    """
    max_fits = config.section(check_world_model.Config).max_fits
    can_improve = any(trust.can_improve for trust in state.trust.values())
    if state.next_stage == "check_world_model" and can_improve and state.num_fits < max_fits:
        return replace(state, next_stage="fit_world_model")
    stages = list_stages(config, state.iteration)
    position = stages.index(state.next_stage) + 1
    if position < len(stages):
        return replace(state, next_stage=stages[position])
    if state.iteration == config.num_iterations:
        return replace(state, next_stage="")
    iteration = state.iteration + 1
    return replace(state, iteration=iteration, num_fits=0, next_stage=list_stages(config, iteration)[0])
