"""What several experiments do: go on with runs, fork them, and run single stages in a folder, outside of a loop."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from worldloop.config.loading import to_yaml
from worldloop.config.schema import LoopConfig
from worldloop.core.interfaces import WorldModel
from worldloop.core.statistics import estimate, estimate_over_seeds
from worldloop.evaluation.by_task import pool_outcomes
from worldloop.evaluation.open_loop import ImaginedEpisodes, imagine_held_out
from worldloop.loop.run import make_context, run_loop
from worldloop.reporting.progress import TerminalDisplay
from worldloop.reporting.reporter import StageReporter
from worldloop.runtime.inline import InlineRuntime
from worldloop.stages import STAGES
from worldloop.stages.context import StageContext
from worldloop.storage.run_directory import RunDirectory
from worldloop.storage.run_state import LoopState

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
EPISODES_AT_ONCE = 64  # imagined together


def run_or_report(
    doc: str,
    names: Sequence[str],
    seeds: Sequence[int],
    configure: Callable[[str, int, list[str]], LoopConfig],
    report: Callable[[list[str]], None],
) -> None:
    """The command line of whole loops: ``run NAME ... [key=value ...] [--seeds ...]``, ``report [key=value ...]``."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report"])
    parser.add_argument("arguments", nargs="*", metavar="NAME, key=value", help=f"names: {', '.join(names)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    options = parser.parse_intermixed_args()
    overrides = [a for a in options.arguments if "=" in a]
    if options.command == "report":
        report(overrides)
        return
    wanted = [a for a in options.arguments if "=" not in a]
    if unknown := [name for name in wanted if name not in names]:
        raise SystemExit(f"unknown name {unknown[0]!r}, allowed: {', '.join(names)}")
    if not wanted:
        raise SystemExit(f"nothing to run: name some of {', '.join(names)}")
    for name in wanted:
        for seed in options.seeds:
            run_loop(configure(name, seed, overrides))


def locate_run(config: LoopConfig) -> RunDirectory:
    """Where the run of ``config`` is, or will be."""
    return RunDirectory(Path(config.run_root).absolute() / config.run_name)


def has_ended(directory: RunDirectory) -> bool:
    return not directory.read_state().next_stage


def run_until(config: LoopConfig, stage: str) -> RunDirectory:
    """Go on with the loop of ``config`` up to where ``stage`` is the next one; ``SystemExit`` if it has ended."""
    directory = locate_run(config)
    while (next_stage := directory.read_state().next_stage) != stage:
        if not next_stage:
            raise SystemExit(f"{directory.path} has ended, and does not stop before {stage} any more")
        run_loop(config, next_stage)
    return directory


def fork_run(
    source: RunDirectory, config: LoopConfig, change: Callable[[RunDirectory], None] = lambda directory: None
) -> None:
    """Copy ``source`` as it stands to the run of ``config``, once; ``change`` may alter the copy before it is there."""
    target = locate_run(config).path
    if target.exists():
        return
    partial = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source.path, partial, ignore=shutil.ignore_patterns(".lock"))
    (partial / "config.yaml").write_text(to_yaml(config))
    change(RunDirectory(partial))
    partial.rename(target)


def read_success(directory: RunDirectory) -> list[np.ndarray]:
    """Of every iteration's policy, bool [n]: success on the evaluation states."""
    return [pool_outcomes(outcomes, outcomes) for outcomes in directory.read_state().evaluation_success]


def average_over_seeds(differences: Sequence[np.ndarray]) -> dict[str, Any]:
    """Mean of ``differences`` of success, f [n] of each seed, with a t-interval over the seeds.

    ``states_low`` and ``states_high`` are of a bootstrap over states that keeps a state's seeds together. They say what
    other states would change, not other seeds; results of earlier versions have them as ``low`` and ``high``.
    """
    states = estimate(lambda values: float(values.mean()), np.mean(differences, axis=0))
    seeds = estimate_over_seeds([float(difference.mean()) for difference in differences]).to_dict()
    return {
        "gain": seeds["value"],
        "low": seeds["low"],
        "high": seeds["high"],
        "states_low": states.low,
        "states_high": states.high,
        "num_seeds": len(differences),
        "num_states": states.n,
        "by_seed": [round(float(difference.mean()), 4) for difference in differences],
    }


def subtract(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """int [n] in {-1, 0, 1}, of two outcomes bool [n]."""
    return after.astype(int) - before.astype(int)


def link_dataset(run: Path, out: Path) -> None:
    """Make the folder ``out``, whose dataset is that of ``run``; one that has a result is left alone."""
    if (out / "result.json").exists():
        raise SystemExit(f"{out} has a result already")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / "sans").symlink_to((run / "sans").resolve())


def open_context(config: LoopConfig, directory: Path, label: str, runtime: InlineRuntime | None = None) -> StageContext:
    """What stages work with in ``directory``; ``label`` stands beside their progress.

    ``runtime`` has the simulators; without one they run in this process.
    """
    display = TerminalDisplay()
    context = make_context("fit_world_model", config, directory, runtime or InlineRuntime(0, 0, display), display)
    return replace(context, reporter=StageReporter(label, display, directory / "tensorboard", writes=True))


def run_stage(name: str, state: LoopState, context: StageContext) -> LoopState:
    """``state`` after the stage called ``name``, with its own section of the config."""
    stage = STAGES[name]
    return stage.run(state, context.config_of(stage.Config), context)


def imagine_all(world_model: WorldModel, version: str, context: StageContext) -> dict[str, ImaginedEpisodes]:
    """Source -> all held-out episodes of the SANS version called ``version``, which has one task."""
    dataset = context.open_clips(version, "validation", world_model.spec)
    (task,) = world_model.spec.task_ids
    return imagine_held_out(
        world_model,
        dataset,
        task,
        max_episodes=len(dataset.cache),
        batch_size=EPISODES_AT_ONCE,
        seed=context.seed,
        reporter=context.reporter,
    )
