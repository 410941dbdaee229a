"""Experiment 018: does RECAP make a better policy of a loop's own episodes than imitating its successes?

    python experiments/018_recap/run.py measure TASK [key=value ...] [--seeds 0 1 2] [--arms recap_1 ...]
    python experiments/018_recap/run.py report [key=value ...]      # result.json, recap.png

``measure`` needs loops of experiment 016 that have ended under the same run_root. On their dataset v001 (scripted
episodes, and those of the clone) it fits critics, labels advantages, and trains policies of the same size and number of
steps. Each acts greedily on the same evaluation states:

- `everything`: imitates all episodes, told nothing; `successes`: imitates the successes alone. GRPO starts from the
  latter after 900 steps
- `recap_B`: imitates all episodes, told which actions were good; acts with guidance B: told nothing (0), told "good"
  (1), guided (1.5, 2.5). `recap_bad` is told "not good"
- `random_1`: the same with the labels permuted over the frame steps of each source, told "good". In all arms the
  successes of experts stay good

TASK: push, pull, pick; without ``--arms``, all of them. What was measured is not measured again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from common import link_dataset, locate_run, open_context, run_stage  # noqa: E402
from trust_loops import SEEDS, TASKS, configure, measure_or_report  # noqa: E402

from worldloop.core.files import to_json, write_file  # noqa: E402
from worldloop.core.statistics import estimate_over_seeds  # noqa: E402
from worldloop.core.types import OUTCOMES, SOURCES  # noqa: E402
from worldloop.policies.token_vla.policy import TokenVLA  # noqa: E402
from worldloop.sans.advantages import AdvantageLabels, read_labels, write_labels  # noqa: E402
from worldloop.sans.imitation import EVERY_SUCCESS, EpisodeSelection  # noqa: E402
from worldloop.stages import clone_policy, evaluate_policy  # noqa: E402
from worldloop.stages.context import StageContext  # noqa: E402
from worldloop.storage.run_state import LoopState  # noqa: E402

GUIDANCE = {"recap_0": 0.0, "recap_1": 1.0, "recap_1.5": 1.5, "recap_2.5": 2.5}
BASELINES = {"successes": EVERY_SUCCESS, "everything": EpisodeSelection(sources=SOURCES, outcomes=OUTCOMES)}
NUM_STEPS = 2700  # optimizer steps of every policy: `recap` learns from 2.4 times as many episodes as `successes`
ARMS = (*BASELINES, *GUIDANCE, "recap_bad", "random_1")


def measure(task: str, seed: int, overrides: list[str], arms: Sequence[str]) -> None:
    """Write measured.json into TASK-seedN-recap beside the loop."""
    changes = ["improve_policy.method=recap", f"improve_policy.num_recap_steps={NUM_STEPS}", *overrides]
    config = configure(task, seed, changes)
    loop = locate_run(config)
    folder = loop.path.with_name(f"{loop.path.name}-recap")
    if not folder.exists():
        link_dataset(loop.path, folder)
    context = open_context(config, folder, f"{task} {seed}")
    out = folder / "measured.json"
    measured: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"success": {}}

    state = LoopState(iteration=1, dataset="v001")
    for name in ("fit_value", "check_value", "label_advantages"):
        state = run_stage(name, state, context)
    measured |= {key: state.records[1][key] for key in ("value_check", "good_share")}
    for name in arms:
        if name not in measured["success"]:
            checkpoint = make_policy(name, state, context)
            num_states = context.config_of(evaluate_policy.Config).num_states
            episodes = context.simulation.evaluate("evaluation", num_states, 10, checkpoint, 1)
            measured["success"][name] = [episode.is_success for episode in episodes]
            write_file(out, to_json(measured), out.name)
            print(task, seed, name, np.mean(measured["success"][name]), flush=True)


def make_policy(name: str, state: LoopState, context: StageContext) -> str:
    """The checkpoint of the arm ``name``."""
    if name == "random_1":
        return train(permute_labels(state, context), context, "random")
    if name not in BASELINES:
        recap = train(state, context, "recap")
        return guide(recap, context, GUIDANCE.get(name, 1.0), is_good=name != "recap_bad")
    path = f"checkpoints/iteration_001/{name}"
    cloning = replace(context.config_of(clone_policy.Config), num_steps=NUM_STEPS)
    clone_policy.imitate(state, cloning, context, BASELINES[name], path)
    return path


def train(state: LoopState, context: StageContext, name: str) -> str:
    """The checkpoint of a policy that `improve_policy` trained on ``state.labels``, kept under ``name``."""
    path = f"checkpoints/iteration_001/{name}"
    if not context.models.has(path):
        made = run_stage("improve_policy", state, context).newest
        (context.models.run_dir / made).rename(context.models.run_dir / path)
    return path


def guide(checkpoint: str, context: StageContext, guidance: float, is_good: bool) -> str:
    """A copy of the policy that acts with ``guidance``; without ``is_good`` it is told that its actions are bad."""
    path = f"{checkpoint}_{guidance:g}" if is_good else f"{checkpoint}_bad"
    if not context.models.has(path):
        policy = context.models.load_policy(checkpoint)
        assert isinstance(policy, TokenVLA)
        policy.guidance = guidance
        if not is_good:
            with torch.no_grad():
                policy.indicator[1] = policy.indicator[0]
        context.models.save_policy(policy, path)
    return path


def permute_labels(state: LoopState, context: StageContext) -> LoopState:
    """``state`` with the labels of all labelled frame steps permuted."""
    run_dir = context.models.run_dir
    labels = read_labels(run_dir / state.labels, context.store.version(state.dataset).fingerprint)
    cache = context.open_cache(state.dataset)
    source = np.repeat([meta.source for meta in cache.metas], cache.num_steps)
    generator = np.random.default_rng(context.seed)
    advantage, is_good = labels.advantage.copy(), labels.is_good.copy()
    for name in np.unique(source):
        known = np.flatnonzero(~np.isnan(labels.advantage) & (source == name))
        order = generator.permutation(known)
        advantage[known], is_good[known] = labels.advantage[order], labels.is_good[order]
    permuted: AdvantageLabels = replace(labels, advantage=advantage, is_good=is_good)
    write_labels(run_dir / "labels/permuted", permuted)
    return replace(state, labels="labels/permuted")


def report(overrides: list[str]) -> None:
    """Write result.json and recap.png from the loops that have been measured."""
    tasks: dict[str, Any] = {}
    for task in TASKS:
        seeds = {}
        for seed in SEEDS:
            loop = locate_run(configure(task, seed, overrides)).path
            out = loop.with_name(f"{loop.name}-recap") / "measured.json"
            if out.exists():
                seeds[seed] = json.loads(out.read_text())
        if seeds:
            tasks[task] = summarise(seeds)
    write_file(HERE / "result.json", to_json({"tasks": tasks}), "result.json")
    for task, figures in tasks.items():
        for name, arm in figures["arms"].items():
            gain = arm["minus_successes"]
            bounds = "" if gain["low"] is None else f" ({gain['low']:+.3f} to {gain['high']:+.3f})"
            print(f"{task} {name:<12} {arm['success']['value']:.3f} {arm['by_seed']}, {gain['value']:+.3f}{bounds}")
    plot(tasks, HERE / "recap.png")


def summarise(seeds: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Of each arm the mean over seeds with a t-interval, alone and minus the imitation of successes."""
    arms = {}
    for name in ARMS:
        done = [m["success"] for m in seeds.values() if name in m["success"] and "successes" in m["success"]]
        rates = [float(np.mean(success[name])) for success in done]
        gains = [float(np.mean(s[name]) - np.mean(s["successes"])) for s in done]
        if rates:
            arms[name] = {
                "success": estimate_over_seeds(rates).to_dict(),
                "minus_successes": estimate_over_seeds(gains).to_dict(),
                "by_seed": rates,
            }
    checks = {seed: {key: m[key] for key in ("value_check", "good_share")} for seed, m in seeds.items()}
    return {"arms": arms, "critics": checks}


def plot(tasks: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(tasks), figsize=(6 * len(tasks), 3.5), squeeze=False)
    for axis, (task, figures) in zip(axes[0], tasks.items(), strict=True):
        names = list(figures["arms"])
        axis.bar(names, [figures["arms"][name]["success"]["value"] for name in names], color="lightgrey")
        for x, name in enumerate(names):
            rates = figures["arms"][name]["by_seed"]
            axis.plot([x] * len(rates), rates, ".", color="black")
        axis.set(title=task, ylim=(0, 1), ylabel="success, evaluation states")
        axis.tick_params(axis="x", rotation=45)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    measure_or_report(str(__doc__), measure, report, arms=ARMS)
