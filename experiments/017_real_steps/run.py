"""Experiment 017: why a world model, when the simulator is there? Success against real environment steps.

    python experiments/017_real_steps/run.py measure TASK [key=value ...] [--seeds 0 1 2]
    python experiments/017_real_steps/run.py report [key=value ...]     # result.json, real_steps.png

``measure`` needs loops of experiment 016 that have ended under the same run_root. Beside their clone and their promoted
policy it evaluates, on the same evaluation states:

- the imitation of all successes that the loop had collected, from which GRPO started
- clones of more expert demonstrations: the first 20, 100 and 300 of one list, 900 optimizer steps each

TASK: push, pull, pick. What was measured is not measured again. ``report`` also counts the episodes that only judge:
those of the checks in the closed loop, and of the gate.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from common import locate_run, open_context  # noqa: E402
from trust_loops import SEEDS, TASKS, configure, list_checked, measure_or_report  # noqa: E402

from worldloop.core.files import to_json, write_file  # noqa: E402
from worldloop.core.statistics import estimate_over_seeds  # noqa: E402
from worldloop.sans.imitation import EpisodeSelection  # noqa: E402
from worldloop.sans.store import SansStore  # noqa: E402
from worldloop.stages import clone_policy, evaluate_policy  # noqa: E402
from worldloop.stages.context import StageContext  # noqa: E402
from worldloop.storage.run_state import LoopState  # noqa: E402

NUM_DEMONSTRATIONS = (20, 100, 300)
NUM_STEPS = 900  # of imitation, as many as the loop's imitation of successes takes


def measure(task: str, seed: int, overrides: list[str]) -> None:
    """Write measured.json into TASK-seedN-demonstrations beside the loop."""
    config = configure(task, seed, overrides)
    loop = locate_run(config)
    folder = loop.path.with_name(f"{loop.path.name}-demonstrations")
    folder.mkdir(exist_ok=True)
    out = folder / "measured.json"
    measured: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"demonstrations": {}}
    context = open_context(config, folder, f"{task} {seed}")

    def evaluate(checkpoint: str) -> list[bool]:
        num_states = context.config_of(evaluate_policy.Config).num_states
        episodes = context.simulation.evaluate("evaluation", num_states, 10, checkpoint, 0)
        return [episode.is_success for episode in episodes]

    if "imitation" not in measured:
        start = list_checked(config)[0]["checkpoint"]
        measured["imitation"] = {"checkpoint": start, "success": evaluate(str(loop.path / start))}
        write_file(out, to_json(measured), out.name)
    if "clone_steps" not in measured:
        own = SansStore(loop.path / "sans")
        cache = own.open_cache(own.version("v000"))
        experts = cache.select(source="expert").tolist()
        measured["clone_steps"] = sum(cache.episode(e).num_env_steps for e in experts)
        write_file(out, to_json(measured), out.name)
    steps = record_demonstrations(context)
    for number in NUM_DEMONSTRATIONS:
        if str(number) not in measured["demonstrations"]:
            path = f"checkpoints/iteration_000/clone_of_{number}"
            cloning = replace(context.config_of(clone_policy.Config), num_steps=NUM_STEPS)
            select = EpisodeSelection(max_episodes=number)
            clone_policy.imitate(LoopState(dataset="v000"), cloning, context, select, path)
            entry: dict[str, Any] = {"steps": sum(steps[:number]), "success": evaluate(path)}
            measured["demonstrations"][str(number)] = entry
            write_file(out, to_json(measured), out.name)
            print(task, seed, number, entry["steps"], np.mean(entry["success"]), flush=True)


def record_demonstrations(context: StageContext) -> list[int]:
    """Make v000, expert episodes alone, unless it is there; returns the environment steps of each."""
    if "v000" not in context.store.list_versions():
        states = context.simulation.initial_states("train", max(NUM_DEMONSTRATIONS))
        episodes = context.simulation.run(
            states, block_size=10, purpose="demonstrations", iteration=0, variants=("expert",) * len(states)
        )
        context.store.snapshot("v000", [context.store.append(episodes, "000-demonstrations", context.spec)])
    cache = context.open_cache("v000")
    return [cache.episode(e).num_env_steps for e in range(len(cache))]


def count_real_steps(task: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """Success of the loop's policies on the evaluation states, and the real steps until then."""
    config = configure(task, seed, overrides)
    loop = locate_run(config)
    clone, improved = loop.read_results()["iterations"]
    measured = json.loads((loop.path.with_name(f"{loop.path.name}-demonstrations") / "measured.json").read_text())
    return {
        "clone": {"steps": measured["clone_steps"], "success": clone["simulated_success"]["rate"]},
        "imitation": {"steps": clone["env_steps"], "success": float(np.mean(measured["imitation"]["success"]))},
        "loop": {"steps": improved["env_steps"], "success": improved["simulated_success"]["rate"]},
        "judging_episodes": count_judging_episodes(improved),
        "demonstrations": {
            number: {"steps": entry["steps"], "success": float(np.mean(entry["success"]))}
            for number, entry in measured["demonstrations"].items()
        },
    }


def count_judging_episodes(record: dict[str, Any]) -> int:
    """Episodes that only judged: those of the checks on validation states, and of the gate."""
    checks = sum(check["n"] + check["num_starts"] for check in record["closed_loop"]["checkpoints"])
    choosing = sum(rate["n"] for rate in record.get("validation_success", {}).values())
    return checks + choosing + 2 * record.get("promotion_test", {}).get("n", 0)


def report(overrides: list[str]) -> None:
    """Write result.json and real_steps.png."""
    tasks: dict[str, Any] = {}
    for task in TASKS:
        paths = {seed: locate_run(configure(task, seed, overrides)).path for seed in SEEDS}
        there = [s for s, path in paths.items() if path.with_name(f"{path.name}-demonstrations").exists()]
        if there:
            tasks[task] = summarise({seed: count_real_steps(task, seed, overrides) for seed in there})
    write_file(HERE / "result.json", to_json({"tasks": tasks}), "result.json")
    for task, figures in tasks.items():
        for name, arm in figures["arms"].items():
            print(f"{task:<6}{name:<24}{arm['steps']:>9,} steps  {arm['success']['value']:.3f} {arm['by_seed']}")
    plot(tasks, HERE / "real_steps.png")


def summarise(seeds: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Of each arm the mean over seeds, with a t-interval, and the mean number of steps."""
    named = {
        seed: {name: m[name] for name in ("clone", "imitation", "loop")}
        | {f"{number} demonstrations": entry for number, entry in m["demonstrations"].items()}
        for seed, m in seeds.items()
    }
    first = next(iter(named.values()))
    arms = {}
    for name in first:
        entries = [arms_of_seed[name] for arms_of_seed in named.values() if name in arms_of_seed]
        arms[name] = {
            "steps": round(float(np.mean([entry["steps"] for entry in entries]))),
            "success": estimate_over_seeds([entry["success"] for entry in entries]).to_dict(),
            "by_seed": [entry["success"] for entry in entries],
        }
    judging = [m["judging_episodes"] for m in seeds.values()]
    return {"seeds": list(seeds), "judging_episodes": judging, "arms": arms}


def plot(tasks: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(tasks), figsize=(5 * len(tasks), 3.5), squeeze=False)
    for axis, (task, figures) in zip(axes[0], tasks.items(), strict=True):
        lines = {"the loop": [], "more demonstrations": []}  # type: dict[str, list[dict[str, Any]]]
        for name, arm in figures["arms"].items():
            lines["more demonstrations" if name.endswith("demonstrations") else "the loop"].append(arm)
        for (label, arms), marker in zip(lines.items(), "os", strict=True):
            axis.plot([a["steps"] for a in arms], [a["success"]["value"] for a in arms], marker=marker, label=label)
            for arm in arms:
                axis.plot([arm["steps"]] * len(arm["by_seed"]), arm["by_seed"], ".", color="grey", ms=4)
        axis.set(title=task, xscale="log", xlabel="real environment steps in the dataset", ylim=(0, 1.02))
        axis.legend(loc="lower right")
    axes[0][0].set_ylabel("success on 200 evaluation states")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    measure_or_report(str(__doc__), measure, report)
