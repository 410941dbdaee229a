"""Experiment 031: does a policy get better by imitating what succeeds in imagination?

    python experiments/031_imagined_successes/run.py measure TASK [key=value ...] [--seeds 0 1 2] [--arms imagined ...]
    python experiments/031_imagined_successes/run.py report [key=value ...]      # result.json, success.png

A loop up to its first world model, then each arm from the clone in that model, without replays or refits:

- `grpo`: 28 updates, as in experiment 030
- `imagined`: two rounds of `imitate_imagined`
- `real`: as many optimizer steps as one round, on real successes alone

The clone and the policy after each round act greedily on the 200 evaluation states. TASK: push, pull, pick. What was
measured is not measured again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from common import fork_run, locate_run, open_context, run_until  # noqa: E402
from judged_loops import COMMON  # noqa: E402
from trust_loops import SEEDS, TASKS, begin_arm, configure, evaluate_arm, measure_or_report  # noqa: E402
from uninterrupted import configure_arm, fit_once  # noqa: E402

from worldloop.core.files import to_json, write_file  # noqa: E402
from worldloop.core.statistics import estimate_over_seeds, paired_gain, wilson_interval  # noqa: E402
from worldloop.stages import improve_policy  # noqa: E402
from worldloop.stages.context import StageContext  # noqa: E402
from worldloop.stages.improvement.grpo import improve_by_grpo  # noqa: E402
from worldloop.stages.improvement.imagined import imitate_imagined  # noqa: E402
from worldloop.storage.run_state import LoopState  # noqa: E402

IMITATION = {
    "method": "imitate_imagined",
    "num_imagined_groups": 480,
    "group_size": 8,
    "imagined_share": 0.75,
    "num_imitation_steps": 1600,
    "learning_rate": 3e-4,
    "num_candidates": 2,
}
ARMS: dict[str, dict[str, Any]] = {
    "imagined": IMITATION,
    "real": IMITATION | {"num_imagined_groups": 24, "imagined_share": 0.0, "num_candidates": 1},
    "grpo": {"num_candidates": 1},
}


def measure(task: str, seed: int, overrides: list[str], arms: Sequence[str]) -> None:
    """Write success.json into the folder of the world model."""
    base = run_until(configure(task, seed, [*COMMON, *overrides]), "fit_world_model")
    config = configure_arm(task, seed, overrides, "now", [])
    fork_run(base, config)
    directory = locate_run(config)
    context = open_context(config, directory.path, f"{task} {seed}")
    state = fit_once(directory.read_state(), context)
    out = directory.path / "success.json"
    measured: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"success": {}, "imagined": {}}
    if "clone" not in measured["success"]:
        evaluate_arm("clone", state.clone, context, measured, out)
    for arm in arms:
        improve(arm, state, context, measured, out)


def improve(arm: str, state: LoopState, context: StageContext, measured: dict[str, Any], out: Path) -> None:
    """Run the rounds of ``arm`` from the clone; evaluate the policy after each."""
    config = replace(context.config_of(improve_policy.Config), **ARMS[arm])
    run = improve_by_grpo if config.method == "grpo" else imitate_imagined
    state = replace(state, start=state.clone, newest=state.clone)
    for number in range(config.num_candidates):
        name = f"{arm}_{number + 1}"
        path = f"checkpoints/{name}"
        if not context.models.has(path):
            begin_arm(context.models.run_dir, name)
            record = run(state, config, context, context.spec.task_ids, path).records[state.iteration]
            measured["imagined"][name] = record["imagined_success_in_training"]
            write_file(out, to_json(measured), out.name)
        if name not in measured["success"]:
            evaluate_arm(name, path, context, measured, out)
        state = replace(state, newest=path, num_rounds=number + 1)


def report(overrides: list[str]) -> None:
    """Write result.json and success.png from what has been measured."""
    tasks: dict[str, Any] = {}
    for task in TASKS:
        for seed in SEEDS:
            out = locate_run(configure_arm(task, seed, overrides, "now", [])).path / "success.json"
            if out.exists():
                tasks.setdefault(task, {})[seed] = json.loads(out.read_text())
    over_seeds = {task: {arm: summarise(arm, seeds) for arm in list_arms(seeds)} for task, seeds in tasks.items()}
    write_file(HERE / "result.json", to_json({"arms": ARMS, "over_seeds": over_seeds, "tasks": tasks}), "result.json")
    for task, arms in over_seeds.items():
        for arm, figures in arms.items():
            print(task, arm, json.dumps(figures))
        plot(tasks[task], arms, HERE / "success.png")


def list_arms(seeds: dict[int, Any]) -> list[str]:
    return sorted({arm for measured in seeds.values() for arm in measured["success"]} - {"clone"})


def summarise(arm: str, seeds: dict[int, Any]) -> dict[str, Any]:
    """The gain of ``arm`` over the clone: over seeds with a t-interval, by seed, and over all pairs of outcomes."""
    pairs = [
        (np.array(m["success"]["clone"], dtype=bool), np.array(m["success"][arm], dtype=bool))
        for m in seeds.values()
        if arm in m["success"]
    ]
    gains = [paired_gain(before, after) for before, after in pairs]
    pooled = paired_gain(*(np.concatenate(side) for side in zip(*pairs, strict=True)))
    by_seed = {"by_seed": [own.gain for own in gains], "p_by_seed": [own.p_value for own in gains]}
    return {"gain": estimate_over_seeds([own.gain for own in gains]).to_dict() | by_seed, "pooled": pooled.to_dict()}


def plot(seeds: dict[int, Any], arms: dict[str, Any], path: Path) -> None:
    """Greedy success of every arm and seed, with Wilson intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 3.6))
    names = ["clone", *arms]
    for shift, (seed, measured) in zip(np.linspace(-0.2, 0.2, len(seeds)), seeds.items(), strict=True):
        known = [name for name in names if name in measured["success"]]
        rates = [float(np.mean(measured["success"][name])) for name in known]
        bounds = [wilson_interval(sum(measured["success"][n]), len(measured["success"][n])) for n in known]
        errors = np.abs(np.array(bounds).T - rates)
        at = [names.index(name) + shift for name in known]
        axis.errorbar(at, rates, errors, fmt="o", capsize=2, label=f"seed {seed}")
    axis.set(xticks=range(len(names)), ylabel="greedy success", ylim=(0, 1))
    axis.set_xticklabels(names)
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    measure_or_report(str(__doc__), measure, report, arms=list(ARMS))
