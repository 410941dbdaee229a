"""Experiment 013: does the loop of `make loop` also improve the policy on PullCube-v1 and PickCube-v1?

    python experiments/013_other_tasks/run.py run TASK [key=value ...] [--seeds 0 1 2]    # pullcube | pickcube
    python experiments/013_other_tasks/run.py report [key=value ...]                      # result.json, success.png

``run`` is `worldloop run configs/TASK_cpu.yaml` per seed, with one thread and one simulator process; begun again, it
goes on. ``report`` reads the loops that have ended under run_root.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from worldloop.config.loading import load_config
from worldloop.config.schema import LoopConfig
from worldloop.core.statistics import paired_gain
from worldloop.storage.run_directory import RunDirectory

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from common import CONFIGS, average_over_seeds, has_ended, locate_run, read_success, run_or_report  # noqa: E402

TASKS = {"pullcube": "PullCube-v1", "pickcube": "PickCube-v1"}
COMMON = ["runtime=inline", "resources.num_threads=1", "resources.num_simulators=1", "run_root=runs/013_other_tasks"]
SEEDS = (0, 1, 2)


def configure(task: str, seed: int, overrides: list[str]) -> LoopConfig:
    changes = [*COMMON, *overrides, f"seed={seed}", f"run_name={task}-seed{seed}"]
    return load_config(CONFIGS / f"{task}_cpu.yaml", changes)


def summarise(seed: int, directory: RunDirectory) -> dict[str, Any]:
    """One loop: success by iteration and state, and what each iteration says of its world model and its candidates."""
    success = read_success(directory)
    timings = directory.read_timings()
    return {
        "seed": seed,
        "minutes": round(sum(t["seconds"] for t in timings) / 60, 1),
        "success_by_state": ["".join("01"[int(x)] for x in s) for s in success],
        "gain": [paired_gain(success[0], s).to_dict() for s in success[1:]],
        "iterations": [describe(record) for record in directory.read_results()["iterations"]],
    }


def describe(record: dict[str, Any]) -> dict[str, Any]:
    counted = ("simulated_success", "scripted_episodes", "collected_episodes")
    kept: dict[str, Any] = {key: record[key] for key in counted if key in record}
    if not record.get("reward_alignment"):
        return kept
    alignment = record["reward_alignment"]["on_policy"]
    kept |= {key: alignment[key] for key in ("auc", "balanced_accuracy", "n", "num_success")}
    improvement = ("imagined_minus_simulated", "imagined_success_precision", "imagined_success_recall", "promoted")
    kept |= {key: record[key] for key in (*improvement, "psnr_db", "num_fits") if key in record}
    kept["validation_success"] = {Path(k).name: v for k, v in record.get("validation_success", {}).items()}
    return kept


def outcomes(loop: dict[str, Any], iteration: int) -> np.ndarray:
    return np.array([int(x) for x in loop["success_by_state"][iteration]])


def pool(loops: list[dict[str, Any]], iteration: int) -> dict[str, Any]:
    """Success minus the clone's, see `average_over_seeds`."""
    return average_over_seeds([outcomes(loop, iteration) - outcomes(loop, 0) for loop in loops])


def report(overrides: list[str]) -> None:
    result: dict[str, Any] = {"schema_version": 1, "tasks": {}}
    for task, name in TASKS.items():
        loops = []
        for seed in SEEDS:
            directory = locate_run(configure(task, seed, overrides))
            if has_ended(directory):
                loops.append(summarise(seed, directory))
        if loops:
            pooled = [pool(loops, i) for i in range(1, len(loops[0]["success_by_state"]))]
            result["tasks"][name] = {"config": f"configs/{task}_cpu.yaml", "pooled_gain": pooled, "loops": loops}
    (HERE / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(result, HERE / "success.png")
    for name, values in result["tasks"].items():
        print(name)
        for loop in values["loops"]:
            rates = [entry["simulated_success"]["rate"] for entry in loop["iterations"]]
            print(f"  seed {loop['seed']}: success {rates}, {loop['minutes']} minutes")
            for entry in loop["iterations"][1:]:
                candidates = {k: f"{v['k']}/{v['n']}" for k, v in entry["validation_success"].items()}
                difference = entry.get("imagined_minus_simulated")
                print(f"    AUC {entry['auc']}; imagined minus simulated {difference}\n    validation {candidates}")
        print(f"  pooled gain by iteration {values['pooled_gain']}")


def plot(result: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(TASKS), figsize=(8, 3.5), sharey=True)
    for axis, (name, values) in zip(axes, result["tasks"].items(), strict=False):
        for loop in values["loops"]:
            rates = [entry["simulated_success"] for entry in loop["iterations"]]
            value = [rate["rate"] for rate in rates]
            error = [[r["rate"] - r["low"] for r in rates], [r["high"] - r["rate"] for r in rates]]
            x = np.arange(len(rates)) + 0.04 * (loop["seed"] - 1)
            axis.errorbar(x, value, yerr=error, capsize=2, marker="o", lw=1, label=f"seed {loop['seed']}")
        axis.set(title=name, xlabel="iteration", ylim=(0, 1), xticks=range(3))
        axis.set_xticklabels(["0 (clone)", "1", "2"])
        axis.legend(loc="lower right")
    axes[0].set_ylabel("simulated success (95 % Wilson)")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    run_or_report(__doc__, tuple(TASKS), SEEDS, configure, report)
