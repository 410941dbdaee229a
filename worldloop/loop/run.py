"""The closed loop: a line of stages per iteration, each of which can be interrupted and run again."""

from __future__ import annotations

import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from worldloop.config.loading import find_differences, list_settings, to_yaml
from worldloop.config.schema import LoopConfig
from worldloop.core.errors import WorldloopError, first_line
from worldloop.factory.startup import check_run_can_start
from worldloop.loop.session import Executor, Session
from worldloop.reporting.progress import Display, TerminalDisplay
from worldloop.reporting.status import StatusDisplay
from worldloop.reporting.tensorboard import write_iteration
from worldloop.runtime.inline import InlineRuntime
from worldloop.runtime.memory import PeakMemory, begin_peak, read_peak
from worldloop.stages import (
    check_world_model,
    clone_policy,
    collect_episodes,
    distil_world_model,
    evaluate_policy,
    fit_world_model,
    import_dataset,
    improve_policy,
    promote_policy,
    seed_dataset,
)
from worldloop.storage.mirror import Mirror, StoreError
from worldloop.storage.run_directory import RunDirectory
from worldloop.storage.run_state import LoopState
from worldloop.training.data_parallel import Workers

FITTING = ("fit_world_model", "distil_world_model", "check_world_model")
RECORDED = (("import_dataset",), FITTING)  # iterations 0 and 1, without a simulator
FIRST_ITERATION = ("seed_dataset", "clone_policy", "evaluate_policy", "collect_episodes")
ITERATION = (*FITTING, "improve_policy", "promote_policy", "evaluate_policy", "collect_episodes")
TRAINING = ("clone_policy", "fit_world_model", "distil_world_model", "improve_policy")  # on several workers, if any
STAGES = tuple(dict.fromkeys((*FIRST_ITERATION, *ITERATION, *RECORDED[0])))


def list_stages(config: LoopConfig, iteration: int) -> tuple[str, ...]:
    """The stages of one iteration. The last one collects nothing, since no iteration would read it."""
    is_recorded = config.source == "recording"
    stages = RECORDED[iteration] if is_recorded else FIRST_ITERATION if iteration == 0 else ITERATION
    skipped: set[str] = set()
    if config.distil_world_model.num_steps == 0:
        skipped |= {"distil_world_model"}
    if config.improve_policy.method == "imitate_successes" and not is_recorded:
        skipped |= set(FITTING)
    if iteration == config.num_iterations:
        skipped |= {"collect_episodes"}
    return tuple(stage for stage in stages if stage not in skipped)


def advance(config: LoopConfig, state: LoopState) -> LoopState:
    """The state with ``next_stage`` moved past the stage that has just ended; "" after the last.

    From the check back to the fit while the world model is not good enough and may be fitted again.
    """
    if (
        state.next_stage == "check_world_model"
        and state.distrust
        and state.num_fits < config.check_world_model.max_fits
    ):
        return replace(state, next_stage="fit_world_model")
    stages = list_stages(config, state.iteration)
    position = stages.index(state.next_stage) + 1
    if position < len(stages):
        return replace(state, next_stage=stages[position])
    if state.iteration == config.num_iterations:
        return replace(state, next_stage="")
    iteration = state.iteration + 1
    return replace(state, iteration=iteration, num_fits=0, next_stage=list_stages(config, iteration)[0])


def run_stage(
    state: LoopState, config: LoopConfig, run_dir: str, executor: Executor, display: Display
) -> tuple[LoopState, PeakMemory]:
    """Execute ``state.next_stage``; returns the new state and what the stage held in memory, in this process."""
    name = state.next_stage
    begin_peak()
    workers = Workers.of_process_group() if name in TRAINING else None
    context: Any = Session(config, Path(run_dir), name, executor, display, workers)
    match name:
        case "seed_dataset":
            state = seed_dataset.run(state, config.seed_dataset, context)
        case "import_dataset":
            state = import_dataset.run(state, config.recording, context)
        case "clone_policy":
            state = clone_policy.run(state, config.clone_policy, context)
        case "fit_world_model":
            state = fit_world_model.run(state, config.fit_world_model, config.clips, context)
        case "distil_world_model":
            state = distil_world_model.run(
                state, config.distil_world_model, config.fit_world_model, config.clips, context
            )
        case "check_world_model":
            state = check_world_model.run(state, config.check_world_model, context)
        case "improve_policy":
            state = improve_policy.run(state, config.improve_policy, config.clone_policy, context)
        case "promote_policy":
            state = promote_policy.run(state, config.promote_policy, context)
        case "evaluate_policy":
            state = evaluate_policy.run(state, config.evaluate_policy, context)
        case "collect_episodes":
            state = collect_episodes.run(state, config.collect_episodes, context)
        case _:
            raise WorldloopError(f"unknown stage {name!r}; stages: {', '.join(STAGES)}")
    state = state.record(env_steps=state.env_steps)
    return state, read_peak()


def make_runtime(config: LoopConfig, display: Display) -> Any:
    if config.runtime == "inline":
        return InlineRuntime(config.resources.num_simulators, config.resources.max_retries, display)
    from worldloop.runtime.ray import RayRuntime

    return RayRuntime(
        address=config.resources.ray_address,
        num_simulators=config.resources.num_simulators,
        cpus_per_simulator=config.resources.cpus_per_simulator,
        num_workers=config.resources.num_workers,
        trainer_cpus=config.resources.trainer_cpus,
        trainer_gpus=config.resources.trainer_gpus,
        max_retries=config.resources.max_retries,
        display=display,
    )


def open_run(config: LoopConfig) -> RunDirectory:
    """The locked run directory of ``config``: a new one, or the one to resume if it was made by the same config.

    One that is not here is fetched from ``config.mirror``.
    """
    directory = RunDirectory(Path(config.run_root).absolute() / config.run_name)
    mirror = Mirror(config.mirror, config.run_name) if config.mirror else None
    if not directory.exists and not (mirror and mirror.exists):
        check_run_can_start(config)
    directory.lock()
    try:
        if mirror:
            mirror.fetch(directory.path)
        if not directory.exists:
            directory.create(to_yaml(config))
            return directory
        differences = find_differences(directory.read_config(), to_yaml(config))
        if differences:
            shown = ", ".join(differences[:5]) + (" ..." if len(differences) > 5 else "")
            it = f"it and its copy {mirror.place}" if mirror else "it"
            raise WorldloopError(
                f"{directory.path} was made with another config: {shown}; give another run_name, or delete {it}"
            )
    except WorldloopError:
        directory.unlock()
        raise
    return directory


def run_loop(config: LoopConfig, only_stage: str = "") -> RunDirectory:
    """Run what is left of the loop, or only its next stage, which must then be ``only_stage``."""
    directory = open_run(config)
    display = StatusDisplay(TerminalDisplay(), directory.path)
    runtime = None
    outcome = "failed"
    try:
        state = directory.read_state()
        if not state.dataset:
            state = replace(state, next_stage=list_stages(config, 0)[0])
        if only_stage and state.next_stage != only_stage:
            raise WorldloopError(
                f"the next stage of {directory.path} is {state.next_stage or 'none, it has ended'}, not {only_stage}"
            )
        while state.next_stage:
            if runtime is None:
                runtime = make_runtime(config, display)
            state = _run_next(config, state, directory, runtime, display)
            if only_stage:
                break
        if config.mirror:  # also what an earlier stage, or an earlier start, could not copy
            Mirror(config.mirror, config.run_name).push(directory.path)
        outcome = "stopped" if state.next_stage else "ended"
    except KeyboardInterrupt:
        outcome = "interrupted"
        raise
    except WorldloopError as error:
        outcome = f"failed: {error}"
        raise
    except Exception as error:
        outcome = f"failed: {type(error).__name__}: {first_line(error)}"
        display.note_traceback(traceback.format_exc())
        raise
    finally:
        display.end(outcome)
        if runtime is not None:
            runtime.close()
        directory.unlock()
    return directory


def copy_to_mirror(config: LoopConfig, directory: RunDirectory, display: Display) -> None:
    """A store that is out of reach stops no run before its end: the next stage's copy has this one's files too."""
    try:
        Mirror(config.mirror, config.run_name).push(directory.path)
    except StoreError as error:
        display.log(f"  not copied, the next stage tries again: {error}")


def _run_next(
    config: LoopConfig, state: LoopState, directory: RunDirectory, runtime: Any, display: StatusDisplay
) -> LoopState:
    began = time.monotonic()
    name, iteration = state.next_stage, state.iteration
    stages = list_stages(config, iteration)
    number = stages.index(name) + 1
    left = [*stages[number:]]
    left += [stage for later in range(iteration + 1, config.num_iterations + 1) for stage in list_stages(config, later)]
    display.begin(iteration, config.num_iterations, name, number, len(stages), left)
    new_state, peak = runtime.run_stage(run_stage, state, config, str(directory.path), trains=name in TRAINING)
    new_state = advance(config, new_state)
    seconds = time.monotonic() - began
    directory.add_timing(iteration, name, seconds, peak)
    if new_state.iteration != iteration or not new_state.next_stage:
        tensorboard = directory.path / "tensorboard"
        write_iteration(
            tensorboard, new_state.records[: iteration + 1], directory.read_timings(), list_settings(config)
        )
    directory.write_state(new_state)
    if config.mirror and new_state.next_stage:
        copy_to_mirror(config, directory, display)
    display.log(f"  {name} took {time.monotonic() - began:.1f} s")
    display.finish(seconds=round(seconds, 2), peak_memory_mib=round(peak.process_mib))
    return new_state
