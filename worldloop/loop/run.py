"""The closed loop: each iteration is a sequence of stages. A stage can be interrupted and run again."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from worldloop.config.loading import list_settings, to_yaml
from worldloop.config.schema import LoopConfig
from worldloop.core.device import choose_device
from worldloop.core.errors import WorldloopError, first_line
from worldloop.core.files import claim_folder, join_claim
from worldloop.factory.build import build_spec
from worldloop.factory.models import Models
from worldloop.loop.changes import describe_taken_over, take_over_changes
from worldloop.loop.cleaning import clean_after_iteration
from worldloop.loop.copying import RunCopier
from worldloop.loop.inputs import describe_inputs, require_same_inputs
from worldloop.loop.schedule import advance, list_remaining_stages, list_stages
from worldloop.loop.startup import check_run_can_start
from worldloop.loop.waiting import WAITING, describe_waiting
from worldloop.reporting.progress import Display, TerminalDisplay
from worldloop.reporting.reporter import StageReporter
from worldloop.reporting.status import StatusDisplay
from worldloop.reporting.tensorboard import write_iteration
from worldloop.rollout.kept_blocks import KeptBlocks
from worldloop.rollout.simulation import Executor, Simulation
from worldloop.runtime.inline import InlineRuntime
from worldloop.runtime.memory import begin_peak, read_peak
from worldloop.sans.store import SansStore
from worldloop.stages import STAGES, trains
from worldloop.stages.context import StageContext
from worldloop.storage.mirror import Mirror
from worldloop.storage.run_directory import PeakMemory, RunDirectory
from worldloop.storage.run_state import LoopState
from worldloop.training.data_parallel import DataParallel
from worldloop.training.resume import TrainingSetup


def run_stage(
    state: LoopState, config: LoopConfig, run_dir: str, executor: Executor, display: Display
) -> tuple[LoopState, PeakMemory]:
    """Execute ``state.next_stage`` in this process; returns the new state and the stage's peak memory."""
    name = state.next_stage
    if name not in STAGES:
        raise WorldloopError(f"unknown stage {name!r}; stages: {', '.join(STAGES)}")
    begin_peak()
    stage = STAGES[name]
    _claim(Path(run_dir), DataParallel.of_process_group() if trains(name) else DataParallel())
    context = make_context(name, config, Path(run_dir), executor, display, KeptBlocks(Path(run_dir)))
    state = note_device(state, context.setup.device.type, context.reporter.log)
    state = stage.run(state, config.section(stage.Config), context)
    state = replace(state, simulator_steps=state.simulator_steps + context.simulation.num_env_steps)
    return state.record(env_steps=state.env_steps, simulator_steps=state.simulator_steps), read_peak()


def note_device(state: LoopState, device: str, log: Callable[[str], None]) -> LoopState:
    """Record on which kinds of device this iteration computes; ``log`` when a run goes on on another kind."""
    before = {name for record in state.records for name in record.get("devices", [])}
    if before and device not in before:
        log(f"  the run began on {' and '.join(sorted(before))} and goes on on {device}: not repeatable bit by bit")
    return state.record(devices=sorted({*state.recorded("devices", []), device}))


def _claim(run_dir: Path, data_parallel: DataParallel) -> None:
    """Refuse what an earlier process of this run, cut off from the driver, may still write."""
    if data_parallel.is_main:
        claim_folder(run_dir)
    data_parallel.barrier()
    if not data_parallel.is_main:
        join_claim(run_dir)


def make_context(
    name: str, config: LoopConfig, run_dir: Path, executor: Executor, display: Display, kept: KeptBlocks | None = None
) -> StageContext:
    """The context in which the stage called ``name`` runs in this process. For ``kept`` see `Simulation`."""
    resources = config.resources
    torch.set_num_threads(resources.num_threads)
    data_parallel = DataParallel.of_process_group() if trains(name) else DataParallel()
    setup = TrainingSetup(
        device=choose_device(resources.device),
        data_parallel=data_parallel,
        num_microbatches=config.num_microbatches,
        checkpoint_root=run_dir / "partial",
        checkpoint_every_s=resources.checkpoint_every_s,
        shard_world_model=resources.shard_world_model and data_parallel.world_size > 1,
    )
    spec = build_spec(config.source, config.simulator, config.recording)
    reporter = StageReporter(name, display, run_dir / "tensorboard", writes=data_parallel.is_main)
    return StageContext(
        seed=config.seed,
        chunk_length=config.chunk_length,
        spec=spec,
        store=SansStore(run_dir / "sans"),
        models=Models(
            config.policy, config.world_model, config.value, spec, config.chunk_length, run_dir, data_parallel
        ),
        simulation=Simulation(
            config.simulator,
            config.chunk_length,
            config.seed,
            run_dir,
            executor,
            reporter,
            kept,
            policy_kind=config.policy.kind,
        ),
        setup=setup,
        reporter=reporter,
        max_imagination_batch=resources.max_imagination_batch,
        has_simulator=config.source == "simulator",
        configs=config.sections(),
    )


def make_runtime(config: LoopConfig, display: Display) -> Any:
    if config.runtime == "inline":
        resources = config.resources
        return InlineRuntime(resources.num_simulators, resources.max_retries, display, resources.block_timeout_s)
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
        block_timeout_s=config.resources.block_timeout_s,
        cluster_grows=config.resources.cluster_grows,
        show_prints=config.resources.show_prints,
    )


def open_run(config: LoopConfig, only_stage: str = "") -> RunDirectory:
    """The locked run directory of ``config``: a new one, or the one to resume; with ``only_stage``, if that comes next.

    A run that is not on this machine is fetched from ``config.mirror``. Raises `WorldloopError` if the run was made
    with another config under which it cannot go on, or if a new run cannot start.
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
            _require_next(only_stage, list_stages(config, 0)[0], directory)
            directory.create(to_yaml(config), describe_inputs(config))
            return directory
        require_same_inputs(config, directory)
        take_over_changes(config, directory, f"it and its copy {mirror.place}" if mirror else "it")
        _require_next(only_stage, read_loop_state(config, directory).next_stage, directory)
    except BaseException:
        directory.unlock()
        raise
    return directory


def read_loop_state(config: LoopConfig, directory: RunDirectory) -> LoopState:
    """The state of the run in ``directory``; of one that has no dataset yet, the first stage comes next."""
    state = directory.read_state()
    return state if state.dataset else replace(state, next_stage=list_stages(config, 0)[0])


def _require_next(only_stage: str, next_stage: str, directory: RunDirectory) -> None:
    if only_stage not in ("", next_stage):
        found = next_stage or "none, it has ended"
        raise WorldloopError(f"the next stage of {directory.path} is {found}, not {only_stage}")


def run_loop(config: LoopConfig, only_stage: str = "") -> RunDirectory:
    """Run the rest of the loop. With ``only_stage``, run only the next stage, which must have that name."""
    directory = open_run(config, only_stage)
    display = StatusDisplay(TerminalDisplay(), directory.path)
    runtime = None
    outcome = "failed"
    try:
        copier = RunCopier(config, directory.path, display)
        state = read_loop_state(config, directory)
        if changed := describe_taken_over(state):
            display.log(changed)
        waiting = ""
        while state.next_stage and not (waiting := describe_waiting(config, directory.path, state)):
            if runtime is None:
                runtime = make_runtime(config, display)
            state = _run_next(config, state, directory, runtime, display, copier)
            if only_stage:
                break
        copier.finish()  # also the files that an earlier stage or start could not copy
        if waiting:
            display.log(waiting)
        outcome = WAITING if waiting else "stopped" if state.next_stage else "ended"
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


def _run_next(
    config: LoopConfig,
    state: LoopState,
    directory: RunDirectory,
    runtime: Any,
    display: StatusDisplay,
    copier: RunCopier,
) -> LoopState:
    began = time.monotonic()
    name, iteration = state.next_stage, state.iteration
    stages = list_stages(config, iteration)
    number, left = stages.index(name) + 1, list_remaining_stages(config, state)
    require_same_inputs(config, directory)
    display.begin(iteration, config.num_iterations, name, number, len(stages), left)
    with copier.during_stage():
        new_state, peak = runtime.run_stage(run_stage, state, config, str(directory.path), trains=trains(name))
    new_state = advance(config, new_state)
    seconds = time.monotonic() - began
    directory.add_timing(iteration, name, seconds, peak)
    ends_iteration = new_state.iteration != iteration or not new_state.next_stage
    if ends_iteration:
        tensorboard = directory.path / "tensorboard"
        write_iteration(
            tensorboard, new_state.records[: iteration + 1], directory.read_timings(), list_settings(config)
        )
    directory.write_state(new_state)
    KeptBlocks(directory.path).drop()
    if ends_iteration and config.retention.automatic:
        clean_after_iteration(directory, new_state, config.retention, display.log)
    if new_state.next_stage:
        copier.copy()
    display.log(f"  {name} took {time.monotonic() - began:.1f} s")
    display.finish(seconds=round(seconds, 2), peak_memory_mib=round(peak.process_mib))
    return new_state
