"""Experiment 003: how often do the scripted experts succeed, and what do the perturbed ones give?

    python experiments/003_scripted_variants/run.py --states 200 --perturbed-states 60

Each variant of every task (or of `--tasks`, keeping what is known of the others) is played from the first validation
states (of seed 0), in the control mode and chunks of configs/pushcube_cpu.yaml and the camera of the task; success is
ManiSkill's own within the task's steps.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from worldloop.config.loading import load_config
from worldloop.config.schema import LoopConfig
from worldloop.core.randomness import make_row_keys
from worldloop.core.statistics import Rate
from worldloop.core.types import OUTCOMES, Episode, InitialStates, Split
from worldloop.reporting.progress import TerminalDisplay
from worldloop.rollout.jobs import InitialStatesJob, RolloutJob, draw_initial_states, execute_rollout_job
from worldloop.rollout.simulation import FIXED_SEED, STATES_PER_JOB
from worldloop.runtime.inline import InlineRuntime
from worldloop.simulators.maniskill import TASKS
from worldloop.simulators.perturbations import SCRIPTED_VARIANTS

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parents[1] / "configs/pushcube_cpu.yaml"
BLOCK = 10
VALIDATION: Split = "validation"


def make_jobs(config: LoopConfig, states: InitialStates, variant: str) -> Iterator[RolloutJob]:
    keys = make_row_keys(len(states), "experiments/003", variant)
    for first in range(0, len(states), BLOCK):
        block = range(first, min(first + BLOCK, len(states)))
        yield RolloutJob(
            states=states.select(block),
            simulator=config.simulator,
            chunk_length=config.chunk_length,
            noise_key=keys[block.start : block.stop],
            iteration=0,
            splits=(VALIDATION,) * len(block),
            variants=(variant,) * len(block),
        )


def summarise(episodes: list[Episode]) -> dict[str, Any]:
    counts = Counter(e.meta.outcome for e in episodes)
    steps = [e.num_env_steps for e in episodes if e.is_success]
    return {
        "success": Rate.of(np.array([e.is_success for e in episodes])).to_dict(),
        "outcomes": {outcome: counts[outcome] for outcome in OUTCOMES},
        "median_steps_to_success": float(np.median(steps)) if steps else None,
    }


def plot(result: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = [task for task in TASKS if task in result["tasks"]]
    figure, grid = plt.subplots(
        math.ceil(len(tasks) / 4), 4, figsize=(11, 3.3 * math.ceil(len(tasks) / 4)), sharey=True
    )
    panels = grid.flatten()
    for axes in panels[len(tasks) :]:
        axes.axis("off")
    for axes, task in zip(panels, tasks, strict=False):
        left = np.zeros(len(SCRIPTED_VARIANTS))
        for outcome in OUTCOMES:
            values = [result["tasks"][task][v] for v in SCRIPTED_VARIANTS]
            share = np.array([v["outcomes"][outcome] / v["success"]["n"] for v in values])
            axes.barh(SCRIPTED_VARIANTS, share, left=left, label=outcome)
            left += share
        axes.set(title=task, xlabel="share of episodes", xlim=(0, 1))
    panels[0].invert_yaxis()  # of all: they share it
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=8, loc="lower center", ncols=len(OUTCOMES))
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--states", type=int, default=200, help="states that each expert is played from")
    parser.add_argument("--perturbed-states", type=int, default=60, help="states of every other variant")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    options = parser.parse_args()
    config = load_config(CONFIG)
    display = TerminalDisplay()
    runtime = InlineRuntime(config.resources.num_simulators, config.resources.max_retries, display)
    path = HERE / "result.json"
    tasks: dict[str, Any] = json.loads(path.read_text())["tasks"] if path.exists() else {}
    try:
        for task in options.tasks:
            here = load_config(CONFIG, [f"simulator.maniskill.tasks=[{task}]"])
            drawn = [
                InitialStatesJob(here.simulator, task, VALIDATION, STATES_PER_JOB, FIXED_SEED, first)
                for first in range(0, options.states, STATES_PER_JOB)
            ]
            states = InitialStates.cat(list(runtime.map(draw_initial_states, drawn)))
            tasks[task] = {}
            for variant in SCRIPTED_VARIANTS:
                count = options.states if variant == "expert" else min(options.perturbed_states, len(states))
                display.open(f"{task} {variant}", count, "episode")
                episodes: list[Episode] = []
                for block in runtime.map(execute_rollout_job, make_jobs(here, states.select(range(count)), variant)):
                    episodes.extend(block)
                    display.advance(len(block), {})
                display.close()
                tasks[task][variant] = summarise(episodes)
                print(f"{task:12} {variant:15} {Rate.of(np.array([e.is_success for e in episodes]))}", flush=True)
            path.write_text(json.dumps({"schema_version": 1, "tasks": tasks}, indent=1) + "\n")
    finally:
        runtime.close()
    plot({"tasks": tasks}, HERE / "outcomes.png")


if __name__ == "__main__":
    main()
