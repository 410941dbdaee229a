"""The loops of experiment 016, which experiment 017 reads as well."""

from __future__ import annotations

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
