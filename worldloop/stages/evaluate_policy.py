"""The headline figure: greedy success of the current policy on evaluation states, in the real simulator.

Nothing measured here enters the dataset or any decision. If there is a world model, the same policy also runs in it
from the same first frames, so that imagined and simulated success are paired. With several tasks the policy can also
get the instruction of another task (``swapped_states``): a policy that follows instructions then fails.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from worldloop.evaluation.by_task import group_success
from worldloop.evaluation.outcomes import compare_outcomes, imagine_outcomes, measure_success, measure_swapped
from worldloop.reporting.success import describe_imagined, describe_simulated, describe_swapped
from worldloop.stages.context import Schedule, StageContext
from worldloop.storage.run_state import LoopState


@dataclass(frozen=True)
class Config:
    num_states: int = 200  # evaluation states of each task, the same for every run and seed
    swapped_states: int = 0  # how many of them are repeated with another task's instruction; 0: none
    block_size: int = 10  # initial states per simulator call

    def __post_init__(self) -> None:
        if self.num_states < 1 or self.block_size < 1:
            raise ValueError("evaluate_policy.num_states and evaluate_policy.block_size must be at least 1")
        if not 0 <= self.swapped_states <= self.num_states:
            bounds = f"0..num_states = {self.num_states}"
            raise ValueError(f"evaluate_policy.swapped_states must be in {bounds}, got {self.swapped_states}")


def takes_part(config: Config, schedule: Schedule) -> bool:
    return schedule.has_simulator


def run(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """Append this iteration's outcomes to ``evaluation_success`` and record the rates."""
    simulation, reporter, block_size = context.simulation, context.reporter, config.block_size
    episodes = simulation.evaluate(
        "evaluation",
        config.num_states,
        block_size,
        state.policy,
        state.iteration,
        keeps_start=state.calibrations is not None,
    )
    simulated = group_success(episodes)
    state = replace(state, evaluation_success=(*state.evaluation_success[: state.iteration], simulated))
    success = measure_success(state.evaluation_success[0], simulated)
    for line in describe_simulated(success):
        reporter.log(line)
    state = state.record(**success.to_record())

    if config.swapped_states and len(context.spec.tasks) > 1:
        told_otherwise = simulation.evaluate(
            "evaluation", config.swapped_states, block_size, state.policy, state.iteration, swaps_instructions=True
        )
        swapped = measure_swapped(simulated, group_success(told_otherwise))
        for line in describe_swapped(swapped):
            reporter.log(line)
        state = state.record(**swapped.to_record())

    if state.calibrations is None:
        reason = "the world model has not been checked" if state.world_model else "no world model yet"
        return state.record(imagined_success=None, imagined_success_reason=reason)
    imagined = imagine_outcomes(
        context.models.load_policy(state.policy).to(context.device),
        context.models.load_world_model(state.world_model).to(context.device).for_imagination(),
        state.calibrations,
        episodes,
        key=(context.seed, state.iteration, "evaluate_policy/imagined"),
        max_batch=context.max_imagination_batch,
    )
    comparison = compare_outcomes(imagined, simulated)
    for line in describe_imagined(comparison):
        reporter.log(line)
    return state.record(**comparison.to_record())
