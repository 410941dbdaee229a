"""Which stages an iteration has, and which stage comes next."""

from __future__ import annotations

from dataclasses import replace

from worldloop.config.schema import LoopConfig
from worldloop.stages import (
    STAGES,
    align_world_model,
    check_world_model,
    improve_policy,
)
from worldloop.stages.context import Schedule
from worldloop.storage.run_state import LoopState

IMPROVEMENT = ("improve_policy", "check_closed_loop", "refit_world_model")  # alternate within an iteration


def list_stages(config: LoopConfig, iteration: int) -> tuple[str, ...]:
    """The names of the stages of one iteration, in order."""
    has_simulator, has_robot = config.source == "simulator", config.source == "robot"
    has_policy = has_simulator or has_robot
    improvement = config.section(improve_policy.Config)
    method = improve_policy.METHODS[improvement.method]
    uses_value = method.uses_advantages or (improvement.method == "grpo" and improvement.uses_value)
    is_aligned = config.section(align_world_model.Config).enabled
    builds_on_world_model = config.uses_planner or is_aligned or (uses_value and config.value.uses_world_model)
    schedule = Schedule(
        iteration=iteration,
        num_iterations=config.num_iterations,
        has_simulator=has_simulator,
        uses_world_model=method.uses_world_model or not has_policy or builds_on_world_model,
        in_rounds=method.in_rounds,
        uses_value=uses_value,
        uses_advantages=method.uses_advantages,
        uses_inverse_dynamics=config.uses_inverse_dynamics,
        uses_planner=config.uses_planner,
        policy_is_planned=config.policy_is_planned,
        policy_is_gated=config.policy_is_gated,
        has_robot=has_robot,
    )
    return tuple(name for name, stage in STAGES.items() if stage.takes_part(config.section(stage.Config), schedule))


def list_remaining_stages(config: LoopConfig, state: LoopState) -> list[str]:
    """The stages after ``state.next_stage``, to the end of the loop, if the world model is trusted."""
    left = []
    while (state := advance(config, assume_done(state))).next_stage:
        left.append(state.next_stage)
    return left


def assume_done(state: LoopState) -> LoopState:
    """``state`` as if ``state.next_stage`` had run, as far as `advance` reads it."""
    if state.next_stage == "fit_world_model":
        return replace(state, trust={}, num_fits=state.num_fits + 1)
    if state.next_stage == "improve_policy":
        return replace(state, start=state.start or "start", num_rounds=state.num_rounds + bool(state.start))
    return replace(state, start="", num_rounds=0) if state.next_stage == "promote_policy" else state


def advance(config: LoopConfig, state: LoopState) -> LoopState:
    """The state with ``next_stage`` set to the stage after the one that has just ended; "" after the last.

    - If the check does not trust the world model in a task and a further fit may help, the fit is next again, up to
      ``max_fits`` fits.
    - `improve_policy` and `check_closed_loop` alternate until all rounds are done, or until the world model is trusted
      in no task any more. `refit_world_model` comes before every round but the first.
    """
    max_fits = config.section(check_world_model.Config).max_fits
    can_improve = any(trust.can_improve for trust in state.trust.values())
    if state.next_stage == "check_world_model" and can_improve and state.num_fits < max_fits:
        return replace(state, next_stage="fit_world_model")
    stages = list_stages(config, state.iteration)
    if state.next_stage in IMPROVEMENT:
        return replace(state, next_stage=_continue_improvement(config, state, stages))
    position = stages.index(state.next_stage) + 1
    if position < len(stages):
        return replace(state, next_stage=stages[position])
    if state.iteration == config.num_iterations:
        return replace(state, next_stage="")
    iteration = state.iteration + 1
    return replace(state, iteration=iteration, num_fits=0, next_stage=list_stages(config, iteration)[0])


def _continue_improvement(config: LoopConfig, state: LoopState, stages: tuple[str, ...]) -> str:
    improvement = config.section(improve_policy.Config)
    if not improve_policy.METHODS[improvement.method].in_rounds or state.is_distrusted:
        return "promote_policy"
    following = IMPROVEMENT[IMPROVEMENT.index(state.next_stage) + 1 :]
    left = [name for name in following if name in stages]
    if state.num_rounds == improvement.num_candidates or state.num_rounds == 0:
        left = [name for name in left if name != "refit_world_model"]
    if left:
        return left[0]
    return "improve_policy" if state.num_rounds < improvement.num_candidates else "promote_policy"
