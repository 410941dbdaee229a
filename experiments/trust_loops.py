"""The loops of experiment 016, and the command line of the experiments that measure more in them."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import CONFIGS, link_dataset, locate_run, open_context

from worldloop.config.loading import load_config
from worldloop.config.schema import LoopConfig
from worldloop.core.files import to_json, write_file
from worldloop.core.statistics import estimate_over_seeds
from worldloop.stages import evaluate_policy
from worldloop.stages.context import StageContext
from worldloop.storage.run_state import LoopState

TASKS = {"push": "pushcube", "pull": "pullcube", "pick": "pickcube"}
COMMON = [
    "num_iterations=1",
    "improve_policy.imagination_horizon=8",  # so that a success in time can also be confirmed
    "improve_policy.restart_from=successes",  # this and the next two: as pickcube_cpu.yaml was
    "improve_policy.learning_rate=6.0e-4",
    "collect_episodes.num_noisy_replays=0",
    "check_closed_loop.num_states=50",
    "check_closed_loop.required_auc=0",  # every round runs, so that all seeds have as many
    "runtime=inline",
    "resources.num_threads=1",
    "resources.num_simulators=1",
    "run_root=runs/016_trust",
]
SEEDS = (0, 1, 2)


def configure(task: str, seed: int, overrides: list[str]) -> LoopConfig:
    changes = [*COMMON, *overrides, f"seed={seed}", f"run_name={task}-seed{seed}"]
    return load_config(CONFIGS / f"{TASKS[task]}_cpu.yaml", changes)


def list_checked(config: LoopConfig) -> list[dict[str, Any]]:
    """The checks in the closed loop of a loop that has ended: start, after half of the updates, after all."""
    _, improved = locate_run(config).read_results()["iterations"]
    entries: list[dict[str, Any]] = improved["closed_loop"]["checkpoints"]
    return entries


def open_loop_run(task: str, seed: int, overrides: list[str], label: str) -> tuple[StageContext, str]:
    """What stages work with in the run, and the path of its world model."""
    config = configure(task, seed, overrides)
    directory = locate_run(config)
    return open_context(config, directory.path, f"{label} {task} {seed}"), directory.read_state().world_model


def open_beside(config: LoopConfig, suffix: str, label: str) -> tuple[StageContext, LoopState]:
    """What stages work with in a folder beside the loop of ``config``, and a state after its first world model.

    The folder is named after the loop, with ``suffix``. It shares the loop's dataset, initial states, clone and world
    model; whatever a stage makes is its own. The state has the dataset v001 and no policy of the loop but the clone.
    It stays the same when the loop goes on. Ends with a message if the loop is not that far.
    """
    loop = locate_run(config)
    folder = loop.path.with_name(f"{loop.path.name}-{suffix}")
    stored = folder / "state.json"
    if stored.exists():
        return open_context(config, folder, label), LoopState.from_dict(json.loads(stored.read_text()))
    reached = loop.read_state()
    if not reached.world_model or not reached.calibrations:
        raise SystemExit(f"{loop.path} has no checked world model yet: run experiments/016_trust/run.py run first")
    if not folder.exists():
        link_dataset(loop.path, folder)
        for shared in ("initial_states", "checkpoints/iteration_000", f"{reached.world_model}"):
            (folder / shared).parent.mkdir(parents=True, exist_ok=True)
            (folder / shared).symlink_to((loop.path / shared).resolve())
    state = LoopState(
        iteration=1,
        dataset="v001",
        clone=reached.clone,
        policy=reached.clone,
        world_model=reached.world_model,
        calibrations=reached.calibrations,
        records=reached.records[:1],
    )
    write_file(stored, to_json(state.to_dict()), stored.name)
    return open_context(config, folder, label), state


def begin_arm(folder: Path, name: str) -> None:
    """Remove what another arm left half done in ``folder``: its training checkpoints, critics, policies, planners and
    labels.

    Stages go on with what they find under their own names, whoever made it.
    """
    marker = folder / "arm.txt"
    if marker.exists() and marker.read_text() == name:
        return
    made = folder / "checkpoints/iteration_001"
    own = [made / name for name in ("policy", "planner", "planner_aligned")]
    for left in (folder / "partial", folder / "labels/iteration_001", *own, *made.glob("critic_?")):
        shutil.rmtree(left, ignore_errors=True)
    for left in made.glob("policy_after_???"):
        shutil.rmtree(left)
    write_file(marker, name.encode(), marker.name)


def keep(folder: Path, made: str, name: str) -> str:
    """Rename the folder ``made`` below ``folder`` to ``name``, in place of one of that name; returns ``name``."""
    shutil.rmtree(folder / name, ignore_errors=True)
    (folder / made).rename(folder / name)
    return name


def read_measured(overrides: list[str], suffix: str, name: str = "measured.json") -> dict[str, dict[int, Any]]:
    """Task -> seed -> what was measured in the folder of `open_beside` with that ``suffix``, where there is any."""
    tasks: dict[str, dict[int, Any]] = {}
    for task in TASKS:
        for seed in SEEDS:
            loop = locate_run(configure(task, seed, overrides)).path
            out = loop.with_name(f"{loop.name}-{suffix}") / name
            if out.exists():
                tasks.setdefault(task, {})[seed] = json.loads(out.read_text())
    return tasks


def evaluate_arm(name: str, path: str, context: StageContext, measured: dict[str, Any], out: Path) -> None:
    """Write the outcomes of the policy at ``path`` on the evaluation states to ``measured["success"][name]``, and that
    to the file ``out``."""
    num_states = context.config_of(evaluate_policy.Config).num_states
    episodes = context.simulation.evaluate("evaluation", num_states, 10, path, 1)
    measured["success"][name] = [episode.is_success for episode in episodes]
    write_file(out, to_json(measured), out.name)
    print(out.parent.name, name, sum(measured["success"][name]) / num_states, flush=True)


def compare_arms(seeds: Mapping[int, Any], names: Sequence[str], baseline: str) -> dict[str, dict[str, Any]]:
    """Of each arm in ``names`` its success by seed, and minus that of ``baseline``, with t-intervals over seeds."""
    arms = {}
    for name in names:
        done = [m["success"] for m in seeds.values() if {name, baseline} <= set(m["success"])]
        if done:
            rates = [float(np.mean(success[name])) for success in done]
            gains = [float(np.mean(success[name]) - np.mean(success[baseline])) for success in done]
            arms[name] = {
                "success": estimate_over_seeds(rates).to_dict(),
                f"minus_{baseline}": estimate_over_seeds(gains).to_dict(),
                "by_seed": rates,
            }
    return arms


def print_arms(task: str, arms: Mapping[str, Any], baseline: str) -> None:
    """One line for each arm of `compare_arms`."""
    for name, arm in arms.items():
        gain = arm[f"minus_{baseline}"]
        bounds = "" if gain["low"] is None else f" ({gain['low']:+.3f} to {gain['high']:+.3f})"
        print(f"{task} {name:<20} {arm['by_seed']}, minus {baseline} {gain['value']:+.3f}{bounds}")


def plot_success(tasks: Mapping[str, Any], path: Path) -> None:
    """Draw for each task a bar per arm of ``tasks[task]["arms"]``, the mean of its ``by_seed``, and a dot per seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(tasks), figsize=(7 * len(tasks), 3.5), squeeze=False)
    for axis, (task, figures) in zip(axes[0], tasks.items(), strict=True):
        for x, arm in enumerate(figures["arms"].values()):
            axis.bar(x, sum(arm["by_seed"]) / len(arm["by_seed"]), color="lightgrey")
            axis.plot([x] * len(arm["by_seed"]), arm["by_seed"], ".", color="black")
        axis.set_xticks(range(len(figures["arms"])), figures["arms"], rotation=45, ha="right")
        axis.set(title=task, ylim=(0, 1), ylabel="success, evaluation states")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def measure_or_report(
    doc: str, measure: Callable[..., None], report: Callable[[list[str]], None], **choices: Sequence[str]
) -> None:
    """The command line ``measure TASK ... [key=value ...] [--seeds ...]`` and ``report [key=value ...]``.

    Calls ``measure(task, seed, overrides)`` for each task and seed. ``choices``: name -> allowed values of one more
    option each, all by default; ``measure`` gets them by name.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["measure", "report"])
    parser.add_argument("arguments", nargs="*", metavar="TASK, key=value", help=f"tasks: {', '.join(TASKS)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    for name, allowed in choices.items():
        parser.add_argument(f"--{name}", nargs="+", choices=allowed, default=list(allowed))
    options = parser.parse_intermixed_args()
    overrides = [a for a in options.arguments if "=" in a]
    if options.command == "report":
        report(overrides)
        return
    tasks = [a for a in options.arguments if "=" not in a]
    if unknown := [task for task in tasks if task not in TASKS]:
        parser.error(f"unknown task {unknown[0]!r}, allowed: {', '.join(TASKS)}")
    if not tasks:
        parser.error(f"nothing to measure: name some of {', '.join(TASKS)}")
    for task in tasks:
        for seed in options.seeds:
            measure(task, seed, overrides, **{name: getattr(options, name) for name in choices})
