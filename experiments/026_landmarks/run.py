"""Experiment 026: does a world model that carries on where the cube is stay right as the policy learns in it?

    python experiments/026_landmarks/run.py measure TASK [key=value ...] [--seeds 0 1 2] [--arms landmarks ...]
    python experiments/026_landmarks/run.py report [key=value ...]      # result.json, landmarks.png

``measure`` is one iteration of the loops of experiment 016 for each arm. All arms of a seed share iteration 0, under
run_root, and are forked to run_root/ARM. What was begun goes on. After it has ended, its last candidate and the policy
with which the improvement began act in the loop's last world model, from 60 fresh validation states, eight times each,
and the simulator replays their actions.

- `pictures`: the world model of experiment 016
- `landmarks`: it carries on where the cube is (`world_model.landmarks`)
- `rounds`: with four proprio heads (`world_model.num_members`); after every seven updates 120 rollouts from training
  states are replayed and the world model is fitted further to them, three times

TASK: push, pull, pick.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from common import fork_run, has_ended, locate_run, open_context, run_until  # noqa: E402
from replays import replay_policy  # noqa: E402
from trust_loops import SEEDS, TASKS, configure, list_checked, measure_or_report  # noqa: E402

from worldloop.core.files import to_json, write_file  # noqa: E402
from worldloop.core.statistics import estimate_over_seeds  # noqa: E402
from worldloop.evaluation.closed_loop import judge_closed_loop  # noqa: E402
from worldloop.evaluation.replayed_rollouts import ReplayedRollouts  # noqa: E402
from worldloop.loop.run import run_loop  # noqa: E402

COMMON = ["check_world_model.probe_steps=0", "check_world_model.num_videos=0"]
ARMS = {
    "pictures": ["world_model.landmarks=false", "world_model.num_members=1"],
    "landmarks": ["world_model.landmarks=true", "world_model.num_members=1"],
    "rounds": [
        "world_model.landmarks=true",
        "world_model.num_members=4",
        "improve_policy.num_candidates=4",
        "check_closed_loop.num_states=20",
        "check_closed_loop.num_training_states=30",
        "refit_world_model.num_steps=300",
        "refit_world_model.num_proprio_steps=300",
    ],
}
NUM_STATES, GROUP_SIZE = 60, 8
POLICIES = ("start", "last candidate")
BARS = {"within_group_auc": 0.85, "auc": 0.90, "true_negative_rate": 0.80}
FIGURES = (*BARS, "own", "replay", "declared", "own_minus_replay", "imagined_minus_simulated")


def measure(task: str, seed: int, overrides: list[str], arms: Sequence[str]) -> None:
    """Run the loop of each arm, and write closed_loop.json into it."""
    base = run_until(configure(task, seed, [*COMMON, *overrides]), "fit_world_model")
    for arm in arms:
        config = configure_arm(task, seed, overrides, arm)
        directory = locate_run(config)
        fork_run(base, config)
        if not has_ended(directory):
            run_loop(config)
        if not (directory.path / "closed_loop.json").exists():
            judge(task, seed, overrides, arm)


def configure_arm(task: str, seed: int, overrides: list[str], arm: str) -> Any:
    root = configure(task, seed, overrides).run_root
    return configure(task, seed, [*COMMON, *overrides, *ARMS[arm], f"run_root={root}/{arm}"])


def judge(task: str, seed: int, overrides: list[str], arm: str) -> None:
    """Replay rollouts of the start and of the last candidate; thresholds declare as many successes as there are."""
    config = configure_arm(task, seed, overrides, arm)
    path = locate_run(config).path
    context = open_context(config, path, f"{task} {seed} {arm}")
    world_model = context.models.load_world_model(locate_run(config).read_state().world_model).for_imagination()
    checked = [entry["checkpoint"] for entry in list_checked(config)]
    measured = {}
    for name, checkpoint in zip(POLICIES, (checked[0], checked[-1]), strict=True):
        rollouts = replay_policy(
            context,
            world_model,
            checkpoint,
            f"026/{name}",
            num_states=NUM_STATES,
            group_size=GROUP_SIZE,
        )
        calibrations = locate_run(config).read_state().calibrations
        assert calibrations is not None
        threshold = calibrations.of(context.spec.task_ids[0]).threshold
        judged = judge_closed_loop(rollouts, threshold)
        figures = {key: getattr(judged, key) for key in FIGURES}
        measured[name] = {key: value and value.to_dict(with_n=True) for key, value in figures.items()}
        keep_scores(path / f"scores_{name.replace(' ', '_')}.npz", rollouts, threshold)
        print(
            task, seed, arm, name, {key: value and value["value"] for key, value in measured[name].items()}, flush=True
        )
    write_file(path / "closed_loop.json", to_json(measured), "closed_loop.json")


def keep_scores(path: Path, rollouts: ReplayedRollouts, threshold: float) -> None:
    """Of each rollout its score, its outcome and the number of its start, to try other thresholds on."""
    np.savez(path, score=rollouts.score, replayed=rollouts.replayed, start=rollouts.start, threshold=threshold)


def report(overrides: list[str]) -> None:
    """Write result.json and landmarks.png from the loops that have been measured."""
    tasks: dict[str, Any] = {}
    for task in TASKS:
        for arm in ARMS:
            found = {}
            for seed in SEEDS:
                config = configure_arm(task, seed, overrides, arm)
                out = locate_run(config).path / "closed_loop.json"
                if out.exists():
                    found[seed] = json.loads(out.read_text()) | {"loop": describe_loop(config)}
            if found:
                tasks.setdefault(task, {})[arm] = {"over_seeds": summarise(found), "seeds": found}
    write_file(HERE / "result.json", to_json({"tasks": tasks}), "result.json")
    for task, arms in tasks.items():
        for arm, entry in arms.items():
            for policy in POLICIES:
                print(task, arm, policy, {k: v["by_seed"] for k, v in entry["over_seeds"][policy].items()})
            print(task, arm, "loops", [m["loop"] for m in entry["seeds"].values()])
    plot(tasks, HERE / "landmarks.png")


def describe_loop(config: Any) -> dict[str, Any]:
    """Success on the evaluation states before and after, the checks on the way, and what the loop cost in steps.

    ``None`` is what a loop that has not ended does not know yet.
    """
    results = locate_run(config).read_results()
    begin, improved = results["iterations"]
    return {
        "success": [(entry.get("simulated_success") or {}).get("rate") for entry in (begin, improved)],
        "promoted": improved.get("promoted"),
        "env_steps": improved["env_steps"],
        "simulator_steps": improved["simulator_steps"],
        "within_group_auc_by_check": [
            entry["within_group_auc"] and entry["within_group_auc"]["value"] for entry in list_checked(config)
        ],
    }


def summarise(found: dict[int, Any]) -> dict[str, Any]:
    """Means over seeds with t-intervals."""
    summary: dict[str, Any] = {}
    for policy in POLICIES:
        summary[policy] = {}
        for key in FIGURES:
            values = [m[policy][key]["value"] for m in found.values() if m[policy][key]]
            if values:
                summary[policy][key] = estimate_over_seeds(values).to_dict() | {"by_seed": values}
    return summary


def plot(tasks: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(tasks), len(BARS), figsize=(12, 3.2 * len(tasks)), squeeze=False)
    for row, (task, arms) in zip(axes, tasks.items(), strict=True):
        for axis, (key, bar) in zip(row, BARS.items(), strict=True):
            for x, entry in enumerate(arms.values()):
                for policy, colour, shift in zip(POLICIES, ("grey", "tab:blue"), (-0.12, 0.12), strict=True):
                    for number, seed in enumerate(entry["seeds"].values()):
                        if found := seed[policy][key]:
                            at = x + shift + 0.04 * (number - 1)
                            axis.plot([at, at], [found["low"], found["high"]], color=colour, lw=0.8)
                            label = policy if x == number == 0 else None
                            axis.plot(at, found["value"], "o", color=colour, ms=4, label=label)
            axis.axhline(bar, color="black", lw=0.8, ls=":")
            axis.set_xticks(range(len(arms)), list(arms))
            axis.set(title=f"{task}: {key.replace('_', ' ')}", ylim=(0.0, 1.0))
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    measure_or_report(str(__doc__), measure, report, arms=list(ARMS))
