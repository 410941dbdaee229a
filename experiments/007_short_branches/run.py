"""Experiment 007: should GRPO imagine whole episodes, or short branches from the middle of real ones with a critic?

    python experiments/007_short_branches/run.py run SEED [key=value ...] [--arms ARM ...]   # one training seed
    python experiments/007_short_branches/run.py report [key=value ...]                      # result.json, gain.png

Per seed the loop of ``configs/pushcube_cpu.yaml`` runs up to the first check; every arm goes on from there, on the same
world model and clone, with the same number of frames that may be imagined. The last policy of each arm, unseen by any
gate, is evaluated in the simulator on the evaluation states. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from worldloop.config.loading import load_config
from worldloop.config.schema import LoopConfig
from worldloop.core.statistics import Rate, paired_gain
from worldloop.loop.run import run_loop
from worldloop.storage.run_directory import RunDirectory

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from common import (  # noqa: E402
    CONFIGS,
    average_over_seeds,
    fork_run,
    has_ended,
    locate_run,
    read_success,
    run_until,
    subtract,
)

SEEDS = (0, 1, 2)
COMMON = [
    "runtime=inline",
    "resources.num_threads=1",
    "resources.num_simulators=1",
    "num_iterations=1",
    "check_world_model.required_auc=0",
    "improve_policy.restart_from=policy",
    "improve_policy.num_candidates=1",
    "promote_policy.gate=false",
    "evaluate_policy.num_states=300",
]
BRANCHES = ["groups_per_update=60", "imagination_horizon=4", "mid_episode_share=1.0", "require_success=false"]
MIXED = ["groups_per_update=40", "imagination_horizon=6", "mid_episode_share=0.25"]
ARMS = {  # groups x chunks is 240 in each
    "whole": ["groups_per_update=24", "imagination_horizon=10", "mid_episode_share=0.0"],
    "mixed": MIXED,
    "branches": [*BRANCHES, "bootstraps=true"],
    "branches_no_critic": BRANCHES,
    "penalty": [*MIXED, "reward.certainty=0.05"],
    "truncated": [*MIXED, "truncates_uncertain=true"],
}


def configure(arm: str, seed: int, overrides: list[str]) -> LoopConfig:
    changes = [f"improve_policy.{change}" for change in ARMS.get(arm, [])]
    name = f"run_name=short_branches_{arm}_seed{seed}"
    return load_config(CONFIGS / "pushcube_cpu.yaml", [*COMMON, *changes, f"seed={seed}", name, *overrides])


def run(seed: int, arms: list[str], overrides: list[str]) -> None:
    base = run_until(configure("base", seed, overrides), "improve_policy")
    for arm in arms:
        config = configure(arm, seed, overrides)
        fork_run(base, config)
        run_loop(config)


def summarise(seed: int, directory: RunDirectory) -> dict[str, Any]:
    before, after = read_success(directory)
    record = directory.read_state().records[1]
    seconds = {t["stage"]: t["seconds"] for t in directory.read_timings() if t["iteration"] == 1}
    return {
        "seed": seed,
        "clone": Rate.of(before).to_dict(),
        "improved": Rate.of(after).to_dict(),
        "gain": paired_gain(before, after).to_dict(),
        "imagined_minus_simulated": record["imagined_minus_simulated"],
        "imagined_frames": record["imagined_frames"],
        "critics": record.get("value_check"),
        "improve_seconds": round(seconds["improve_policy"]),
        "on_policy_auc_of_world_model": record["reward_alignment"]["on_policy"]["auc"],
        "success": after.tolist(),
        "clone_success": before.tolist(),
    }


def report(overrides: list[str]) -> None:
    arms: dict[str, Any] = {}
    for arm in ARMS:
        runs = [(seed, locate_run(configure(arm, seed, overrides))) for seed in SEEDS]
        done = [summarise(seed, directory) for seed, directory in runs if has_ended(directory)]
        if done:
            arms[arm] = {"pooled_gain": pool(done), "runs": done}
    against = {
        arm: compare(arms["mixed"]["runs"], arms[arm]["runs"]) for arm in arms if arm != "mixed" and "mixed" in arms
    }
    result = {"schema_version": 1, "common": COMMON, "arm_overrides": ARMS, "arms": arms, "minus_mixed": against}
    (HERE / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    for arm, entry in arms.items():
        print(f"{arm:20s} gain {entry['pooled_gain']}", [r["gain"]["gain"] for r in entry["runs"]])
    print(against)
    plot(arms)


def pool(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Mean gain over seeds, with an interval over evaluation states."""
    return average([subtract(np.array(r["success"]), np.array(r["clone_success"])) for r in runs])


def compare(base: list[dict[str, Any]], other: list[dict[str, Any]]) -> dict[str, float]:
    """Success of ``other`` minus that of ``base`` on the same states and seeds."""
    by_seed = {r["seed"]: r for r in base}
    pairs = [(r, by_seed[r["seed"]]) for r in other if r["seed"] in by_seed]
    return average([subtract(np.array(a["success"]), np.array(b["success"])) for a, b in pairs])


def average(differences: list[np.ndarray]) -> dict[str, float]:
    mean = average_over_seeds(differences)
    return {"value": mean["gain"], "low": mean["low"], "high": mean["high"], "seeds": mean["num_seeds"]}


def plot(arms: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5.5, 3.2))
    for x, entry in enumerate(arms.values()):
        gains = [r["gain"]["gain"] for r in entry["runs"]]
        axes.plot([x - 0.1] * len(gains), gains, "o", alpha=0.6)
        pooled = entry["pooled_gain"]
        spread = [[pooled["value"] - pooled["low"]], [pooled["high"] - pooled["value"]]]
        axes.errorbar([x + 0.1], [pooled["value"]], spread, fmt="ks", capsize=4)
    axes.axhline(0, color="k", linewidth=0.8)
    axes.set_xticks(range(len(arms)), [a.replace("_", "\n") for a in arms], fontsize=8)
    axes.set_ylabel("gain in simulated success over the clone")
    figure.tight_layout()
    figure.savefig(HERE / "gain.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run")
    command.add_argument("seed", type=int, choices=SEEDS)
    command.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    command.add_argument("overrides", nargs="*")
    commands.add_parser("report").add_argument("overrides", nargs="*")
    given = parser.parse_args()
    run(given.seed, given.arms, given.overrides) if given.command == "run" else report(given.overrides)


if __name__ == "__main__":
    main()
