"""Experiment 015: one loop of two tasks and two cameras, beside two loops of one task each.

    python experiments/015_push_and_pull/run.py run ARM [key=value ...] [--seeds 0 1 2]    # both | push | pull
    python experiments/015_push_and_pull/run.py report [key=value ...]                     # result.json, success.png

``both`` is configs/push_and_pull_cpu.yaml as it stands. ``push`` and ``pull`` are the same with one of its tasks, and
with the optimizer steps of configs/pushcube_cpu.yaml. All with one thread and one simulator process; begun again, they
go on. ``report`` reads the loops under run_root, up to the last iteration that all of them have evaluated.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from worldloop.config.loading import load_config
from worldloop.config.schema import LoopConfig
from worldloop.core.statistics import Rate, paired_gain
from worldloop.storage.run_directory import RunDirectory

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from common import CONFIGS, average_over_seeds, locate_run, run_or_report, subtract  # noqa: E402

TASKS = {"push": "PushCube-v1", "pull": "PullCube-v1"}
ARMS = ("both", *TASKS)
COMMON = ["runtime=inline", "resources.num_threads=1", "resources.num_simulators=1", "run_root=runs/015_push_and_pull"]
ONE_TASK = ["clone_policy.num_steps=300", "fit_world_model.num_steps=900", "fit_world_model.num_refit_steps=450"]
SEEDS = (0, 1, 2)
CHECKED = ("auc", "balanced_accuracy", "n", "num_success")
IMPROVED = ("imagined_success", "imagined_minus_simulated", "imagined_success_precision", "imagined_success_recall")


def configure(arm: str, seed: int, overrides: list[str]) -> LoopConfig:
    own = [] if arm == "both" else [f"simulator.maniskill.tasks=[{TASKS[arm]}]", *ONE_TASK]
    changes = [*COMMON, *own, *overrides, f"seed={seed}", f"run_name={arm}-seed{seed}"]
    return load_config(CONFIGS / "push_and_pull_cpu.yaml", changes)


def count_iterations(directory: RunDirectory) -> int:
    """The iterations after the clone that a loop has evaluated."""
    return len(directory.read_state().evaluation_success) - 1 if directory.exists else 0


def summarise(seed: int, directory: RunDirectory, last: int) -> dict[str, Any]:
    """One loop up to the evaluation of iteration ``last``: its cost, each task's success and what its model did."""
    timings = [t for t in directory.read_timings() if (t["iteration"], t["stage"]) != (last, "collect_episodes")]
    minutes: dict[str, float] = {}
    for timing in timings:
        if timing["iteration"] <= last:
            minutes[timing["stage"]] = minutes.get(timing["stage"], 0.0) + timing["seconds"] / 60
    state, records = directory.read_state(), directory.read_results()["iterations"][: last + 1]
    evaluated = state.evaluation_success[: last + 1]
    success = {task: [outcomes[task] for outcomes in evaluated] for task in evaluated[0]}
    return {
        "seed": seed,
        "minutes": round(sum(minutes.values()), 1),
        "minutes_by_stage": {stage: round(spent, 1) for stage, spent in minutes.items()},
        "env_steps": records[-1]["env_steps"],
        "promoted": [record.get("promoted") for record in records[1:]],
        "tasks": {task: describe_task(task, outcomes, records) for task, outcomes in success.items()},
    }


def describe_task(task: str, success: list[tuple[bool, ...]], records: list[dict[str, Any]]) -> dict[str, Any]:
    own = [record.get("tasks", {}).get(task, record) for record in records]
    iterations = []
    for outcomes, record in zip(success, own, strict=True):
        entry: dict[str, Any] = {"success": Rate.of(np.array(outcomes)).to_dict()}
        entry |= {key: record[key] for key in (*IMPROVED, "swapped_success", "swapped_minus_told") if key in record}
        if record.get("reward_alignment"):
            entry |= {key: record["reward_alignment"]["on_policy"][key] for key in CHECKED}
        iterations.append(entry)
    return {
        "success_by_state": ["".join("01"[solved] for solved in outcomes) for outcomes in success],
        "gain": [paired_gain(np.array(success[0]), np.array(after)).to_dict() for after in success[1:]],
        "iterations": iterations,
    }


def read_outcomes(loop: dict[str, Any], task: str, iteration: int) -> np.ndarray:
    return np.array([int(solved) for solved in loop["tasks"][task]["success_by_state"][iteration]])


def pool(arms: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Over seeds and for each task: gain of each arm over its clone, and success of ``both`` minus the task's own."""
    pooled: dict[str, Any] = {"gain": {}, "both_minus_one": {}}
    for arm, loops in arms.items():
        for task in loops[0]["tasks"]:
            last = len(loops[0]["tasks"][task]["success_by_state"]) - 1
            gains = [subtract(read_outcomes(loop, task, last), read_outcomes(loop, task, 0)) for loop in loops]
            pooled["gain"].setdefault(arm, {})[task] = average_over_seeds(gains)
    for arm, task in TASKS.items():
        alone = {loop["seed"]: loop for loop in arms.get(arm, [])}
        pairs = [(loop, alone[loop["seed"]]) for loop in arms.get("both", []) if loop["seed"] in alone]
        if pairs:
            last = len(pairs[0][0]["tasks"][task]["success_by_state"]) - 1
            differences = [subtract(read_outcomes(a, task, last), read_outcomes(b, task, last)) for a, b in pairs]
            pooled["both_minus_one"][task] = average_over_seeds(differences)
    shared = set.intersection(*({loop["seed"] for loop in arms.get(arm, [])} for arm in ARMS))
    if shared:
        spent = {arm: np.mean([loop["minutes"] for loop in arms[arm] if loop["seed"] in shared]) for arm in ARMS}
        pooled["minutes"] = {arm: round(float(mean), 1) for arm, mean in spent.items()}
        pooled["cost_of_both"] = round(float(spent["both"] / (spent["push"] + spent["pull"])), 2)
    return pooled


def report(overrides: list[str]) -> None:
    runs = {arm: {seed: locate_run(configure(arm, seed, overrides)) for seed in SEEDS} for arm in ARMS}
    begun = {arm: {seed: run for seed, run in of.items() if count_iterations(run) > 0} for arm, of in runs.items()}
    last = min(count_iterations(run) for of in begun.values() for run in of.values())
    arms = {arm: [summarise(seed, run, last) for seed, run in of.items()] for arm, of in begun.items() if of}
    result = {
        "schema_version": 1,
        "config": "configs/push_and_pull_cpu.yaml",
        "iterations": last,
        "pooled": pool(arms),
        "arms": arms,
    }
    (HERE / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(arms, last, HERE / "success.png")
    for arm, loops in arms.items():
        for loop in loops:
            print(f"{arm}, seed {loop['seed']}: {loop['minutes']} minutes, {loop['env_steps']} environment steps")
            for task, values in loop["tasks"].items():
                rates = [entry["success"]["rate"] for entry in values["iterations"]]
                swapped = [entry.get("swapped_success", {}).get("rate") for entry in values["iterations"]]
                aucs = [entry["auc"]["value"] for entry in values["iterations"][1:] if entry.get("auc")]
                print(f"  {task}: success {rates}, told otherwise {swapped}, on-policy AUC {aucs}")
    print(json.dumps(result["pooled"], indent=1))


def plot(arms: dict[str, list[dict[str, Any]]], last: int, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(TASKS), figsize=(8, 3.6), sharey=True)
    colours = {"both": "tab:blue", "one": "tab:gray", "swapped": "tab:red"}
    for axis, (own, task) in zip(axes, TASKS.items(), strict=True):
        for arm, label, colour in (("both", "one loop of both", "both"), (own, "a loop of its own", "one")):
            for loop in arms.get(arm, []):
                rates = [entry["success"] for entry in loop["tasks"][task]["iterations"]]
                value = [rate["rate"] for rate in rates]
                error = [[r["rate"] - r["low"] for r in rates], [r["high"] - r["rate"] for r in rates]]
                x = np.arange(len(rates)) + 0.05 * (loop["seed"] - 1) + (0.02 if arm == "both" else -0.02)
                shown = label if loop["seed"] == arms[arm][0]["seed"] else None
                axis.errorbar(x, value, yerr=error, capsize=2, marker="o", lw=1, color=colours[colour], label=shown)
        for loop in arms.get("both", []):
            swapped = [entry["swapped_success"]["rate"] for entry in loop["tasks"][task]["iterations"]]
            shown = "one loop of both, told the other task" if loop is arms["both"][0] else None
            x = np.arange(len(swapped)) + 0.05 * (loop["seed"] - 1)
            axis.plot(x, swapped, marker="x", ls=":", color=colours["swapped"], label=shown)
        axis.set(title=task, xlabel="iteration (0: the clone)", ylim=(0, 1), xticks=range(last + 1))
    axes[0].set_ylabel("simulated success (95 % Wilson)")
    axes[0].legend(loc="upper left", fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    run_or_report(__doc__, ARMS, SEEDS, configure, report)
