"""The loops of experiment 016, and the command line of the experiments that measure more in them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from common import CONFIGS, locate_run

from worldloop.config.loading import load_config
from worldloop.config.schema import LoopConfig

TASKS = {"push": "pushcube", "pull": "pullcube", "pick": "pickcube"}
COMMON = [
    "num_iterations=1",
    "improve_policy.imagination_horizon=8",  # so that a success in time can also be confirmed
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
