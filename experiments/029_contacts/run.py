"""Experiment 029: does a world model that has seen more contacts let a policy gain?

    python experiments/029_contacts/run.py measure TASK [key=value ...] [--seeds 0 1 2] [--arms before plain noisy]
    python experiments/029_contacts/run.py report [key=value ...]      # result.json, contacts.png

A loop up to its first world model, then one uninterrupted run of GRPO in that model, from the clone.

- `before`: as `plain`, with the code of commit b0993b7, which predicted objects from all of proprio
- `plain`: the world model learns from what the loop has collected
- `noisy`: and from 500 noisy replays of the policy's training episodes

The clone and the policy after GRPO act in that model: 60 fresh validation states, eight rollouts each, which the
simulator replays. Both also act greedily on the 200 evaluation states.

TASK: push, pull, pick. What was measured is not measured again.
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
from common import fork_run, locate_run, open_context, run_stage, run_until  # noqa: E402
from judged_loops import COMMON, FIGURES, GROUP_SIZE, NUM_STATES, draw  # noqa: E402
from replays import replay_policy  # noqa: E402
from trust_loops import SEEDS, TASKS, configure, evaluate_arm, measure_or_report  # noqa: E402

from worldloop.core.files import to_json, write_file  # noqa: E402
from worldloop.core.statistics import wilson_interval  # noqa: E402
from worldloop.evaluation.closed_loop import judge_closed_loop  # noqa: E402
from worldloop.stages import collect_episodes, improve_policy  # noqa: E402
from worldloop.stages.context import StageContext  # noqa: E402
from worldloop.stages.improvement.grpo import improve_in_imagination  # noqa: E402
from worldloop.storage.run_state import LoopState  # noqa: E402

SETTINGS = [
    "improve_policy.learning_rate=1.5e-4",
    "improve_policy.restart_from=clone",
    "improve_policy.num_candidates=1",
]
ARMS = {"before": 0, "plain": 0, "noisy": 500}  # noisy replays
POLICIES = {"clone": "checkpoints/iteration_000/policy", "after": "checkpoints/iteration_001/policy_after_028"}


def measure(task: str, seed: int, overrides: list[str], arms: Sequence[str]) -> None:
    """Write contacts.json into the folder of each arm; all fork one loop before its first world model."""
    base = run_until(configure(task, seed, [*COMMON, *overrides]), "fit_world_model")
    for arm in arms:
        config = configure_arm(task, seed, overrides, arm)
        fork_run(base, config)
        directory = locate_run(config)
        context = open_context(config, directory.path, f"{task} {seed} {arm}")
        state = learn(ARMS[arm], directory.read_state(), context)
        out = directory.path / "contacts.json"
        measured: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"success": {}, "closed_loop": {}}
        for name, checkpoint in POLICIES.items():
            if name not in measured["success"]:
                evaluate_arm(name, checkpoint, context, measured, out)
            if name not in measured["closed_loop"]:
                measured["closed_loop"][name] = judge(name, checkpoint, state, context)
                print(task, seed, arm, name, measured["closed_loop"][name], flush=True)
                write_file(out, to_json(measured), out.name)


def configure_arm(task: str, seed: int, overrides: list[str], arm: str) -> Any:
    root = configure(task, seed, overrides).run_root
    return configure(task, seed, [*COMMON, *SETTINGS, *overrides, f"run_root={root}/{arm}"])


def learn(num_noisy_replays: int, state: LoopState, context: StageContext) -> LoopState:
    """Collect noisy replays, fit and check the world model, and run GRPO in it; each of them once."""
    kept = context.models.run_dir / "checked.json"
    if kept.exists():
        state = LoopState.from_dict(json.loads(kept.read_text()))
    else:
        if num_noisy_replays:
            state = replace(state, dataset=add_noisy_replays(num_noisy_replays, state, context))
        state = run_stage("check_world_model", run_stage("fit_world_model", state, context), context)
        write_file(kept, to_json(state.to_dict()), kept.name)
    if not context.models.has(POLICIES["after"]):
        config = context.config_of(improve_policy.Config)
        state = replace(state, start=state.clone, newest=state.clone)
        improve_in_imagination(state, config, context, context.spec.task_ids, POLICIES["after"])
    return state


def add_noisy_replays(number: int, state: LoopState, context: StageContext) -> str:
    """The name of a dataset version with ``number`` noisy replays of the policy's training episodes on top."""
    name = f"{state.dataset}-noisy"
    if name not in context.store.list_versions():
        config = replace(context.config_of(collect_episodes.Config), num_noisy_replays=number)
        cache = context.open_cache(state.dataset)
        own = [cache.episode(int(e)) for e in cache.select(source="policy", split="train")]
        noisy = collect_episodes.repeat_with_noise(own, state, config, context)
        shard = context.store.append(noisy, "noisy", context.spec)
        context.store.snapshot(name, [shard], parent=context.store.version(state.dataset))
    return name


def judge(name: str, checkpoint: str, state: LoopState, context: StageContext) -> dict[str, Any]:
    """The figures of the closed loop for the policy in ``checkpoint``."""
    world_model = context.models.load_world_model(state.world_model).for_imagination()
    calibrations = state.calibrations
    assert calibrations is not None
    rollouts = replay_policy(
        context,
        world_model,
        checkpoint,
        f"029/{name}",
        num_states=NUM_STATES,
        group_size=GROUP_SIZE,
        calibrations=calibrations,
    )
    judged = judge_closed_loop(rollouts, calibrations.of(context.spec.task_ids[0]).threshold)
    figures = {key: getattr(judged, key) for key in FIGURES}
    return {key: value and value.to_dict(with_n=True) for key, value in figures.items()}


def report(overrides: list[str]) -> None:
    """Write result.json and contacts.png from the arms that have been measured."""
    tasks: dict[str, Any] = {}
    for task in TASKS:
        for seed in SEEDS:
            for arm in ARMS:
                out = locate_run(configure_arm(task, seed, overrides, arm)).path / "contacts.json"
                if out.exists():
                    tasks.setdefault(task, {}).setdefault(seed, {})[arm] = json.loads(out.read_text())
    write_file(HERE / "result.json", to_json({"noisy_replays": ARMS, "tasks": tasks}), "result.json")
    for task, seeds in tasks.items():
        for seed, arms in seeds.items():
            for arm, measured in arms.items():
                for name in measured["closed_loop"]:
                    figures = {k: v and round(v["value"], 3) for k, v in measured["closed_loop"][name].items()}
                    success = float(np.mean(measured["success"][name]))
                    print(task, seed, arm, name, "greedy", success, figures)
    plot(tasks, HERE / "contacts.png")


def plot(tasks: dict[str, Any], path: Path) -> None:
    """For every arm and both policies: AUC within groups, AUC, and greedy success in the simulator."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    loops = {f"{task}, seed {seed}": arms for task, seeds in tasks.items() for seed, arms in seeds.items()}
    figure, axes = plt.subplots(len(loops), 3, figsize=(10, 3.0 * len(loops)), squeeze=False)
    for row, (loop, arms) in zip(axes, loops.items(), strict=True):
        for x, measured in enumerate(arms.values()):
            for name, colour, shift in zip(POLICIES, ("grey", "tab:blue"), (-0.1, 0.1), strict=True):
                figures = measured["closed_loop"][name]
                solved = np.array(measured["success"][name])
                low, high = wilson_interval(int(solved.sum()), len(solved))
                rate = {"value": float(solved.mean()), "low": low, "high": high}
                shown = figures["within_group_auc"], figures["auc"], rate
                for axis, found in zip(row, shown, strict=True):
                    draw(axis, x + shift, found, colour, colour)
        titles = "AUC within groups", "AUC", "greedy success"
        for axis, title in zip(row, titles, strict=True):
            axis.set_xticks(range(len(arms)), list(arms))
            axis.set(title=f"{loop}: {title}", xlim=(-0.5, len(arms) - 0.5), ylim=(0.4, 1.0))
    figure.suptitle("grey: the clone, blue: after 28 updates", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    measure_or_report(str(__doc__), measure, report, arms=list(ARMS))
