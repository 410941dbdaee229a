"""Experiment 024: which data make a world model right about the policy that was improved in it?

    python experiments/024_coverage/run.py measure TASK [key=value ...] [--seeds 0 1 2] [--arms base hot ...]
    python experiments/024_coverage/run.py report [key=value ...]     # result.json, coverage.png

``measure`` needs loops of experiment 016 under the same run_root, whose first improve_policy has ended. Its last
candidate is imagined in the loop's world model, from fresh validation states, eight times each. The simulator replays
the imagined actions. Every arm fits a world model from random weights and imagines these actions again:

- `loop`: the loop's own world model, on v001: scripted episodes and those of the clone
- `base`: the same data and steps once more, with other random draws
- `longer`: three times the steps
- `hot`: the clone's episodes replaced by as many of three temperatures
- `replays_N`: v001 and N replays of the candidate's imagined rollouts, from fresh training states
- `replays_N_longer`: three times the steps
- `landmarks`, `landmarks_N`: a world model that carries on where the cube is (`world_model.landmarks`)
- `members`, `members_N`: the same with the mean of four proprio heads (`world_model.num_members`)

Beside each stands a network that is told the cube's pose (state_network.py), with the same data.

TASK: push, pull. What was measured is not measured again.
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
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from replays import Replays, replay_policy  # noqa: E402
from state_network import ask_state_network, judge_gap  # noqa: E402
from trust_loops import begin_arm, configure, measure_or_report, open_beside, read_measured  # noqa: E402

from worldloop.core.files import to_json, write_file  # noqa: E402
from worldloop.core.statistics import auc, estimate_by_label, estimate_over_seeds, estimate_within_group_auc  # noqa: E402
from worldloop.core.types import Episode, Split  # noqa: E402
from worldloop.rollout.replay import Replay  # noqa: E402
from worldloop.sans.shard import ShardRef  # noqa: E402
from worldloop.simulators.maniskill import TASKS as MANISKILL_TASKS  # noqa: E402
from worldloop.stages import fit_world_model, improve_policy  # noqa: E402
from worldloop.stages.context import StageContext  # noqa: E402
from worldloop.storage.run_state import LoopState  # noqa: E402
from worldloop.world_model.model import VideoWorldModel  # noqa: E402

NUM_TEST_STATES, GROUP_SIZE = 60, 8
REPLAYS_PER_BLOCK, BLOCKS = 360, 3  # `replays_360` has the first block, `replays_1080` all
STATES_PER_BLOCK = REPLAYS_PER_BLOCK // 4
TEMPERATURES = {1.0: 180, 2.0: 90, 3.0: 90}  # of the episodes in `hot`
NUM_MEMBERS = 4
SHORT, LONG = (900, 1000), (2700, 3000)  # steps of the video and of the proprio head
ARMS = {  # the versions of the dataset are made in the loop's own store, whose other versions stay as they are
    "base": ("v001", SHORT),
    "longer": ("v001", LONG),
    "hot": ("hot", SHORT),
    "replays_360": ("replays_360", SHORT),
    "replays_360_longer": ("replays_360", LONG),
    "replays_1080": ("replays_1080", SHORT),
    "replays_1080_longer": ("replays_1080", LONG),
    "landmarks": ("v001", SHORT),
    "landmarks_360": ("replays_360", SHORT),
    "landmarks_1080": ("replays_1080", SHORT),
    "landmarks_1080_longer": ("replays_1080", LONG),
    "members": ("v001", SHORT),
    "members_1080": ("replays_1080", SHORT),
}


def measure(task: str, seed: int, overrides: list[str], arms: Sequence[str]) -> None:
    """Write measured.json into TASK-seedN-coverage beside the loop."""
    context, state = open_beside(configure(task, seed, overrides), "coverage", f"{task} {seed}")
    out = context.models.run_dir / "measured.json"
    measured: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"arms": {}, "told_state": {}}
    candidate = find_candidate(context)
    test = replay_candidate("test", "validation", NUM_TEST_STATES, GROUP_SIZE, candidate, state, context)
    if "loop" not in measured["arms"]:
        ended = [episode.is_success for episode in test]
        measured |= {"n": len(test), "replayed": float(np.mean(ended)), "loop_declared": score_of_loop(test)}
    for name in ("loop", *arms):
        if name in measured["arms"]:
            continue
        version = "v001"
        path = state.world_model
        if name != "loop":
            version = make_version(ARMS[name][0], candidate, state, context)
            path = fit(name, version, state, context)
        model = context.models.load_world_model(path).for_imagination()
        measured["arms"][name] = judge(model, test, context)
        if version not in measured["told_state"]:
            measured["told_state"][version] = tell_state(version, test, context)
        print(task, seed, name, json.dumps(measured["arms"][name]), json.dumps(measured["told_state"][version]))
        write_file(out, to_json(measured), out.name)


def find_candidate(context: StageContext) -> str:
    """The last candidate of the loop's first improvement."""
    folder = context.models.run_dir
    loop = folder.with_name(folder.name.removesuffix("-coverage"))
    found = sorted((loop / "checkpoints/iteration_001").glob("policy_after_???"))
    if not found:
        raise SystemExit(f"{loop} has no candidate yet: run experiments/016_trust/run.py run first")
    return str(found[-1])


def replay_candidate(
    name: str, split: Split, num_states: int, group_size: int, candidate: str, state: LoopState, context: StageContext
) -> list[Episode]:
    """Replays of the candidate's rollouts in the loop's world model, kept as the shard and version ``name``."""
    if name not in context.store.list_versions():
        rollouts = replay_policy(
            context,
            context.models.load_world_model(state.world_model).for_imagination(),
            candidate,
            f"coverage/{name}",
            num_states=num_states,
            group_size=group_size,
            split=split,
        )
        shard = context.store.append(rollouts.episodes, name, context.spec)
        context.store.snapshot(name, [shard], normalisation=context.store.version("v001").normalisation)
    cache = context.open_cache(name)
    return [cache.episode(e) for e in range(len(cache))]


def make_version(name: str, candidate: str, state: LoopState, context: StageContext) -> str:
    """Write the dataset version ``name`` and what it needs, once; returns its name."""
    if name in context.store.list_versions():
        return name
    base = context.store.version("v001")
    if name == "hot":
        scripted = [shard for shard in base.shards if "policy" not in shard.name]
        episodes = collect_hot(state, context)
        shard = context.store.append(episodes, "hot-policy", context.spec)
        context.store.snapshot(name, [*scripted, shard], normalisation=base.normalisation)
        return name
    shards: list[ShardRef] = []
    for block in range(int(name.removeprefix("replays_")) // REPLAYS_PER_BLOCK):
        of_block = f"replays-{block}"
        replay_candidate(of_block, "train", STATES_PER_BLOCK, 4, candidate, state, context)
        shards += context.store.version(of_block).shards
    context.store.snapshot(name, shards, parent=base)
    return name


def collect_hot(state: LoopState, context: StageContext) -> list[Episode]:
    """As many episodes of the clone as v001 has, at three temperatures, from fresh training states."""
    episodes: list[Episode] = []
    for temperature, number in TEMPERATURES.items():
        episodes += context.simulation.run(
            context.simulation.draw_fresh_states("train", number, "coverage/hot", int(10 * temperature)),
            block_size=10,
            purpose=f"coverage/hot/{temperature}",
            iteration=0,
            policy=state.clone,
            temperature=temperature,
        )
    return episodes


def fit(name: str, version: str, state: LoopState, context: StageContext) -> str:
    """The world model of the arm ``name``, from random weights on ``version``; its path."""
    path = f"world_models/{name}"
    if not (context.models.run_dir / path).exists():
        num_steps, num_proprio_steps = ARMS[name][1]
        begin_arm(context.models.run_dir, name)
        config = context.config_of(fit_world_model.Config)
        config = replace(config, num_steps=num_steps, num_proprio_steps=num_proprio_steps)
        kind = name.split("_")[0]
        of_arm = replace(
            context.models.world_model_config,
            landmarks=kind in ("landmarks", "members"),
            num_members=NUM_MEMBERS if kind == "members" else 1,
        )
        context.models.world_model_config = of_arm
        started = replace(state, iteration=2, dataset=version, world_model="", teacher="", calibrations=None)
        made = fit_world_model.run(started, config, context).world_model
        (context.models.run_dir / path).parent.mkdir(exist_ok=True)
        (context.models.run_dir / made).rename(context.models.run_dir / path)
    return path


def score_of_loop(test: Sequence[Episode]) -> float:
    """Mean imagined success probability of the test rollouts in the loop, as stored with their replays."""
    return float(np.mean([episode.meta.imagined_success for episode in test]))


def judge(world_model: VideoWorldModel, test: Sequence[Episode], context: StageContext) -> dict[str, Any]:
    """What ``world_model`` imagines of the replayed actions, against the replays."""
    num_chunks = context.config_of(improve_policy.Config).imagination_horizon
    truth = np.array([episode.is_success for episode in test])
    start = number_starts(test)
    replays = Replays(test, num_chunks, context.spec)
    probability, errors_m = replays.imagine(world_model, 0)
    score = confirm(probability)
    return {
        **figures(score, truth, start),
        "on true frames": figures(confirm(replays.read_truth(world_model)), truth, start),
        **{f"{part}_error_mm_by_frame": [round(1000 * float(e), 1) for e in by] for part, by in errors_m.items()},
    }


def confirm(probability: Tensor) -> np.ndarray:
    """f64 [n]: the highest success probability [n, C] that the next frame confirms."""
    return torch.minimum(probability[:, :-1], probability[:, 1:]).amax(1).double().numpy()


def figures(score: np.ndarray, truth: np.ndarray, start: np.ndarray) -> dict[str, Any]:
    """AUC within groups and over all, and the true negative rate where as many are declared as have succeeded."""
    within, pooled = estimate_within_group_auc(score, truth, start), estimate_by_label(auc, score, truth)
    declared = score >= np.sort(score)[::-1][max(int(truth.sum()), 1) - 1]
    return {
        "within_group_auc": within and within.to_dict(),
        "auc": pooled and pooled.to_dict(),
        "true_negative_rate": float(np.mean(~declared[~truth])) if (~truth).any() else None,
        "mean_score": float(score.mean()),
    }


def number_starts(episodes: Sequence[Episode]) -> np.ndarray:
    """int [n]: equal numbers for episodes from the same initial state."""
    return np.unique([episode.meta.initial_state_id for episode in episodes], return_inverse=True)[1]


def tell_state(version: str, test: Sequence[Episode], context: StageContext) -> dict[str, Any]:
    """The same figures of a network that is told the cube's pose and learns from ``version``."""
    num_chunks = context.config_of(improve_policy.Config).imagination_horizon
    task = MANISKILL_TASKS[context.spec.task_ids[0]]
    replay = Replay(Replays(test, num_chunks, context.spec).actions.flatten(1, 2), "candidate")
    score, errors = ask_state_network(context, test, replay, num_chunks, task, 0, version)
    truth = np.array([episode.is_success for episode in test])
    return judge_gap(score, truth, number_starts(test), task) | errors


def report(overrides: list[str]) -> None:
    """Write result.json and coverage.png from the loops that have been measured."""
    tasks: dict[str, Any] = {}
    for task, seeds in read_measured(overrides, "coverage").items():
        tasks[task] = {
            "arms": {arm: summarise([m["arms"].get(arm) for m in seeds.values()]) for arm in ("loop", *ARMS)},
            "told_state": {
                version: summarise([m["told_state"].get(version) for m in seeds.values()])
                for version in ("v001", *dict.fromkeys(version for version, _ in ARMS.values()))
            },
            "seeds": seeds,
        }
        for kind in ("arms", "told_state"):
            tasks[task][kind] = {name: entry for name, entry in tasks[task][kind].items() if entry}
    write_file(HERE / "result.json", to_json({"tasks": tasks}), "result.json")
    for task, measured in tasks.items():
        for kind in ("arms", "told_state"):
            for name, entry in measured[kind].items():
                print(task, kind, name, {k: (round(v["value"], 3), v["by_seed"]) for k, v in entry.items()})
    plot(tasks, HERE / "coverage.png")


def summarise(entries: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    """Mean over the seeds that have been measured, with t-intervals."""
    found = [entry for entry in entries if entry]
    summary = {}
    for name in ("within_group_auc", "auc", "true_negative_rate"):
        values = [value["value"] if isinstance(value := entry[name], dict) else value for entry in found]
        known = [round(float(value), 4) for value in values if value is not None]
        if known:
            summary[name] = estimate_over_seeds(known).to_dict() | {"by_seed": known}
    return summary


def plot(tasks: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(tasks), 2, figsize=(11, 3.4 * len(tasks)), squeeze=False)
    for row, (task, measured) in zip(axes, tasks.items(), strict=True):
        for axis, (name, bar) in zip(row, (("within_group_auc", 0.85), ("true_negative_rate", 0.8)), strict=True):
            entries = measured["arms"] | {f"told the pose: {k}": v for k, v in measured["told_state"].items()}
            for x, entry in enumerate(entries.values()):
                is_told = x >= len(measured["arms"])
                axis.bar(x, entry[name]["value"], color="lightblue" if is_told else "lightgrey")
                axis.plot([x] * len(entry[name]["by_seed"]), entry[name]["by_seed"], ".", color="black")
                arm = list(entries)[x].removeprefix("told the pose: ")
                for seed in measured["seeds"].values():
                    figure_of_seed = seed["told_state" if is_told else "arms"].get(arm, {}).get(name)
                    if isinstance(figure_of_seed, dict):  # of one seed: a bootstrap over states
                        axis.plot([x, x], [figure_of_seed["low"], figure_of_seed["high"]], color="black", lw=0.8)
            axis.axhline(bar, color="grey", lw=0.8, ls=":")
            axis.set_xticks(range(len(entries)), list(entries), rotation=60, ha="right", fontsize=7)
            axis.set(title=f"{task}: {name.replace('_', ' ')}", ylim=(0.4, 1.0))
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    measure_or_report(str(__doc__), measure, report, arms=list(ARMS))
