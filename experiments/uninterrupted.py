"""A world model, one uninterrupted run of GRPO in it, and what both are worth: experiments 029 and 030.

The clone and the policy after GRPO act in that model: 60 fresh validation states, eight rollouts each, which the
simulator replays. Both also act greedily on the 200 evaluation states.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import fork_run, locate_run, open_context, run_stage, run_until
from judged_loops import COMMON, FIGURES, GROUP_SIZE, NUM_STATES, draw
from replays import replay_policy
from trust_loops import SEEDS, TASKS, configure, evaluate_arm, measure_or_report

from worldloop.config.schema import LoopConfig
from worldloop.core.files import to_json, write_file
from worldloop.core.statistics import estimate_over_seeds, paired_gain, wilson_interval
from worldloop.evaluation.closed_loop import judge_closed_loop
from worldloop.stages import collect_episodes, improve_policy
from worldloop.stages.context import StageContext
from worldloop.stages.improvement.grpo import improve_by_grpo
from worldloop.storage.run_state import LoopState

SETTINGS = [
    "improve_policy.learning_rate=1.5e-4",
    "improve_policy.restart_from=clone",
    "improve_policy.num_candidates=1",
]
POLICIES = {"clone": "checkpoints/iteration_000/policy", "after": "checkpoints/iteration_001/policy_after_028"}
MEASURED = "contacts.json"


Arms = Mapping[str, Sequence[str]]  # name -> settings


def run_arms(doc: str, arms: Arms, folder: Path, earlier: Sequence[str] = ()) -> None:
    """The command line of `measure_or_report` for ``arms``, with the option ``--arms``; results go to ``folder``.

    The arms ``earlier`` were measured with an earlier commit; they are only reported.
    """

    def measure(task: str, seed: int, overrides: list[str], **chosen: Sequence[str]) -> None:
        measure_arms(task, seed, overrides, {name: arms[name] for name in chosen["arms"]})

    known = {**arms, **{name: [] for name in earlier}}
    measure_or_report(doc, measure, lambda overrides: report(overrides, known, folder), arms=list(arms))


def measure_arms(task: str, seed: int, overrides: list[str], arms: Arms) -> None:
    """Write `MEASURED` into the folder of each arm; all fork one loop before its first world model."""
    base = run_until(configure(task, seed, [*COMMON, *overrides]), "fit_world_model")
    for arm, settings in arms.items():
        config = configure_arm(task, seed, overrides, arm, settings)
        fork_run(base, config)
        directory = locate_run(config)
        context = open_context(config, directory.path, f"{task} {seed} {arm}")
        state = learn(directory.read_state(), context)
        out = directory.path / MEASURED
        measured: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"success": {}, "closed_loop": {}}
        for name, checkpoint in POLICIES.items():
            if name not in measured["success"]:
                evaluate_arm(name, checkpoint, context, measured, out)
            if name not in measured["closed_loop"]:
                measured["closed_loop"][name] = judge(name, checkpoint, state, context)
                print(task, seed, arm, name, measured["closed_loop"][name], flush=True)
                write_file(out, to_json(measured), out.name)


def configure_arm(task: str, seed: int, overrides: list[str], arm: str, settings: Sequence[str]) -> LoopConfig:
    root = configure(task, seed, overrides).run_root
    return configure(task, seed, [*COMMON, *SETTINGS, *settings, *overrides, f"run_root={root}/{arm}"])


def learn(state: LoopState, context: StageContext) -> LoopState:
    """`fit_once`, then GRPO in that world model, once."""
    state = fit_once(state, context)
    if not context.models.has(POLICIES["after"]):
        config = context.config_of(improve_policy.Config)
        state = replace(state, start=state.clone, newest=state.clone)
        improve_by_grpo(state, config, context, context.spec.task_ids, POLICIES["after"])
    return state


def fit_once(state: LoopState, context: StageContext) -> LoopState:
    """Collect noisy replays if any are wanted, fit and check the world model; each of them once."""
    kept = context.models.run_dir / "checked.json"
    if kept.exists():
        state = LoopState.from_dict(json.loads(kept.read_text()))
    else:
        if number := context.config_of(collect_episodes.Config).num_noisy_replays:
            state = replace(state, dataset=add_noisy_replays(number, state, context))
        state = run_stage("check_world_model", run_stage("fit_world_model", state, context), context)
        write_file(kept, to_json(state.to_dict()), kept.name)
    return state


def add_noisy_replays(number: int, state: LoopState, context: StageContext) -> str:
    """The name of a dataset version with ``number`` noisy replays of the policy's training episodes on top."""
    name = f"{state.dataset}-noisy"
    if name not in context.store.list_versions():
        cache = context.open_cache(state.dataset)
        own = [cache.episode(int(e)) for e in cache.select(source="policy", split="train")]
        noisy = collect_episodes.repeat_with_noise(own, state, context.config_of(collect_episodes.Config), context)
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
        f"029/{name}",  # the same states in all experiments
        num_states=NUM_STATES,
        group_size=GROUP_SIZE,
        calibrations=calibrations,
    )
    judged = judge_closed_loop(rollouts, calibrations.of(context.spec.task_ids[0]).threshold)
    figures = {key: getattr(judged, key) for key in FIGURES}
    return {key: value and value.to_dict(with_n=True) for key, value in figures.items()}


def report(overrides: list[str], arms: Arms, folder: Path) -> None:
    """Write result.json and contacts.png from the arms that have been measured."""
    tasks: dict[str, Any] = {}
    for task in TASKS:
        for seed in SEEDS:
            for arm, settings in arms.items():
                out = locate_run(configure_arm(task, seed, overrides, arm, settings)).path / MEASURED
                if out.exists():
                    tasks.setdefault(task, {}).setdefault(seed, {})[arm] = json.loads(out.read_text())
    over_seeds = {
        task: {arm: summarise([found[arm] for found in seeds.values() if arm in found]) for arm in arms}
        for task, seeds in tasks.items()
    }
    settings_of = {arm: list(settings) for arm, settings in arms.items()}
    result = {"settings": settings_of, "over_seeds": over_seeds, "tasks": tasks}
    write_file(folder / "result.json", to_json(result), "result.json")
    for task, seeds in tasks.items():
        for seed, measured_arms in seeds.items():
            for arm, measured in measured_arms.items():
                for name in measured["closed_loop"]:
                    figures = {k: v and round(v["value"], 3) for k, v in measured["closed_loop"][name].items()}
                    success = float(np.mean(measured["success"][name]))
                    print(task, seed, arm, name, "greedy", success, figures)
        print(task, json.dumps(over_seeds[task], indent=1))
    plot(tasks, folder / "contacts.png")


def summarise(measured: list[dict[str, Any]]) -> dict[str, Any]:
    """Of one arm, over its seeds: the gain in greedy success on the evaluation states, and the mean of every figure.

    ``pooled`` takes every state of every seed as a pair of its own.
    """
    if not measured:
        return {}
    pairs = [tuple(np.array(found["success"][name], dtype=bool) for name in POLICIES) for found in measured]
    gains = [paired_gain(before, after) for before, after in pairs]
    pooled = paired_gain(*(np.concatenate(side) for side in zip(*pairs, strict=True)))
    gain = average([own.gain for own in gains]) | {"p_by_seed": [own.p_value for own in gains]}
    figures: dict[str, Any] = {}
    for name in POLICIES:
        judged = [found["closed_loop"][name] for found in measured]
        figures[name] = {key: average([own[key]["value"] for own in judged if own[key]]) for key in FIGURES}
    return {"gain": gain, "pooled": pooled.to_dict(), "closed_loop": figures}


def average(values: list[float]) -> dict[str, Any]:
    """The mean over seeds with its t-interval, and the value of each seed."""
    return estimate_over_seeds(values).to_dict() | {"by_seed": values}


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
            axis.set(title=f"{loop}: {title}", xlim=(-0.5, len(arms) - 0.5), ylim=(0.2, 1.0))
    figure.suptitle("grey: the clone, blue: after 28 updates", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
