"""Experiment 001: does the closed loop improve the policy, and because of what?

    python experiments/001_closed_loop/run.py [key=value ...] --settings first --seeds 0 1 2
    python experiments/001_closed_loop/run.py [key=value ...] --settings trusted --arms loop imitate --seeds 0 1 2

`first` is the loop as it was first built, `trusted` the repetition with the later world model and longer fits. Arms,
per training seed, all from the same iteration 0 (same demonstrations, clone and first collection):
(a) loop     the closed loop; GRPO goes on from the last promoted policy
(b) shuffled rewards permuted over all imagined rows, gate off: same compute, no information in the reward
(c) imitate  behaviour cloning on every success in SANS, scripted and collected, at the same number of real episodes
(d) both     the loop as it is configured since: GRPO starts from such a clone of every success

Arms are forked from (a) where they first differ, so nothing is computed twice. Interrupted, the same command goes on.
An arm that branches off at the first improvement may also be added to a loop that has ended.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from worldloop.config.loading import load_config
from worldloop.config.schema import LoopConfig
from worldloop.core.statistics import Rate, paired_gain
from worldloop.core.success import Trust
from worldloop.loop.run import run_loop
from worldloop.storage.card import read_card
from worldloop.storage.run_directory import RunDirectory
from worldloop.storage.run_state import LoopState

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from common import average_over_seeds, fork_run, has_ended, locate_run, read_success, subtract  # noqa: E402

CONFIGS = {"first": "configs/pushcube_cpu.yaml", "trusted": "configs/pushcube_long.yaml"}
OVERRIDES: dict[str, list[str]] = {  # what this experiment changes in them
    "trusted": [],
    "first": [
        "fit_world_model.num_steps=2000",
        "fit_world_model.num_refit_steps=1000",
        "collect_episodes.num_episodes=560",
        "improve_policy.num_updates=36",
        "improve_policy.num_candidates=3",
        "promote_policy.num_states=120",
    ],
}
RUN_ROOTS = {"first": "runs/001_closed_loop", "trusted": "runs/001_closed_loop_trusted"}
RESULTS = {"first": HERE / "result.json", "trusted": HERE / "result_trusted.json"}
NO_MATTER = ("run_root=", "runtime=", "resources.")  # overrides about the machine, not the experiment
ARMS = {
    "loop": ["improve_policy.restart_from=policy"],
    "shuffled": [
        "improve_policy.restart_from=policy",
        "improve_policy.shuffle_rewards=true",
        "promote_policy.gate=false",
    ],
    "imitate": ["improve_policy.method=imitate_successes"],
    "both": ["improve_policy.restart_from=successes"],
}
FORK_AT = {"shuffled": (1, "improve_policy"), "imitate": (1, "fit_world_model"), "both": (1, "improve_policy")}
CHECKED = (  # what iteration 1's record holds when its check has ended
    "iteration", "env_steps", "num_fits", "reward_alignment", "world_model_check", "psnr_db", "ssim", "lpips",
    "lpips_reason",
)  # fmt: skip

IMPROVEMENT = (  # what iteration 1's record says of its improvement
    "validation_success", "imagined_success_in_training", "imagined_success", "imagined_minus_simulated",
    "imagined_success_precision", "imagined_success_recall",
)  # fmt: skip
COLOURS = {"loop": "tab:blue", "shuffled": "tab:gray", "imitate": "tab:orange", "both": "tab:green"}


def configure(arm: str, seed: int, settings: str, overrides: list[str]) -> LoopConfig:
    changes = [*OVERRIDES[settings], f"run_root={RUN_ROOTS[settings]}", *overrides, *ARMS[arm]]
    return load_config(HERE.parents[1] / CONFIGS[settings], [*changes, f"seed={seed}", f"run_name={arm}-seed{seed}"])


def fork(source: RunDirectory, arm: str, seed: int, settings: str, overrides: list[str]) -> None:
    """Copy ``source`` as it stands to another arm's run directory, once."""

    def begin_arm(copy: RunDirectory) -> None:
        state = copy.read_state()
        if not state.next_stage:
            rewind(copy)
        elif arm == "imitate":
            copy.write_state(replace(state, next_stage="improve_policy"))

    fork_run(source, configure(arm, seed, settings, overrides), begin_arm)


def rewind(directory: RunDirectory) -> None:
    """Put a loop that has ended back to where iteration 1's improvement began."""
    state = directory.read_state()
    first, second = state.records[:2]
    fits = second["num_fits"]
    world_model = "checkpoints/iteration_001/world_model" + (f"_{fits}" if fits > 1 else "")
    for version in sorted((directory.path / "sans/versions").glob("v*.json"))[2:]:
        version.unlink()  # the store drops the shards that no version knows
    for left in (directory.path / "checkpoints").glob("iteration_00[12]/*"):
        if left != directory.path / world_model:
            shutil.rmtree(left)
    calibrations = read_card(directory.path / world_model).calibrations
    skipped = second.get("improvement_skipped", "")
    directory.write_state(
        LoopState(
            iteration=1,
            next_stage="improve_policy",
            dataset="v001",
            clone=state.clone,
            policy=state.clone,
            world_model=world_model,
            teacher=world_model,
            world_model_steps=count_steps(directory, fits),
            num_fits=fits,
            calibrations=calibrations,
            trust={task: Trust(not skipped, skipped) for task in calibrations.by_task},
            evaluation_success=state.evaluation_success[:1],
            num_scripted_episodes=state.num_scripted_episodes,
            env_steps=first["env_steps"],
            records=(first, {k: second[k] for k in CHECKED if k in second} | {"env_steps": first["env_steps"]}),
        )
    )


def count_steps(directory: RunDirectory, fits: int) -> int:
    """Optimizer steps of iteration 1's fits."""
    config = OmegaConf.create(directory.read_config()).fit_world_model
    return int(config.num_steps + (fits - 1) * config.num_refit_steps)


def run_seed(seed: int, arms: list[str], settings: str, overrides: list[str]) -> None:
    config = configure("loop", seed, settings, overrides)
    directory = locate_run(config)
    while (state := directory.read_state()).next_stage:
        for arm, point in FORK_AT.items():
            if (state.iteration, state.next_stage) == point and arm in arms:
                fork(directory, arm, seed, settings, overrides)
        run_loop(config, state.next_stage)
    for arm in arms:
        if arm != "loop":
            if FORK_AT[arm] == (1, "improve_policy"):
                fork(directory, arm, seed, settings, overrides)
            run_loop(configure(arm, seed, settings, overrides))


def collect(seeds: list[int], arms: list[str], settings: str, overrides: list[str]) -> dict[str, Any]:
    """The result of every finished run, and of earlier calls with the same settings and overrides."""
    changed = [*OVERRIDES[settings], *(o for o in overrides if not o.startswith(NO_MATTER))]
    path = RESULTS[settings]
    known: dict[str, Any] = {}
    if path.exists():
        stored = json.loads(path.read_text())
        known = stored["arms"] if stored["overrides"] == changed else {}
    result: dict[str, Any] = {"schema_version": 2, "config": CONFIGS[settings], "overrides": changed, "arms": {}}
    for arm in ARMS:
        runs = {run["seed"]: run for run in known.get(arm, {"runs": []})["runs"]}
        for seed in seeds if arm in arms else []:
            directory = locate_run(configure(arm, seed, settings, overrides))
            if has_ended(directory):
                runs[seed] = summarise(seed, directory)
        ordered = [runs[seed] for seed in sorted(runs)]
        result["arms"][arm] = {
            "pooled_gain": pool(ordered),
            "imagined_success": pool_imagined(ordered),
            "runs": ordered,
        }
    result["iteration_1"] = compare_first_iteration(seeds, settings, overrides)
    result["loop_minus"] = {arm: compare(result["arms"]["loop"], result["arms"][arm]) for arm in ARMS if arm != "loop"}
    return result


def compare_first_iteration(seeds: list[int], settings: str, overrides: list[str]) -> dict[str, Any]:
    """What every arm has reached after one iteration, from the same episodes; also of runs that have not ended."""
    reached: dict[str, dict[int, list[np.ndarray]]] = {arm: {} for arm in ARMS}
    records: dict[str, dict[int, Any]] = {arm: {} for arm in ARMS}
    for arm, seed in itertools.product(ARMS, seeds):
        directory = locate_run(configure(arm, seed, settings, overrides))
        success = read_success(directory)
        if len(success) > 1:
            reached[arm][seed] = success[:2]
            records[arm][seed] = directory.read_state().records[1]
    comparison: dict[str, Any] = {}
    for arm, runs in reached.items():
        others = {
            other: average([subtract(runs[s][1], known[s][1]) for s in runs if s in known])
            for other, known in reached.items()
            if other != arm
        }
        comparison[arm] = {
            "success": {s: Rate.of(outcomes[1]).to_dict() for s, outcomes in runs.items()},
            "gain": average([subtract(after, before) for before, after in runs.values()]),
            "minus": {other: value for other, value in others.items() if value},
            "records": {s: {k: r[k] for k in IMPROVEMENT if k in r} for s, r in records[arm].items()},
        }
    return comparison


def summarise(seed: int, directory: RunDirectory) -> dict[str, Any]:
    success = read_success(directory)
    timings = directory.read_timings()
    return {
        "seed": seed,
        "success": [Rate.of(s).to_dict() for s in success],
        "gain": paired_gain(success[0], success[-1]).to_dict(),
        "minutes": round(sum(t["seconds"] for t in timings) / 60, 1),
        "peak_memory_mib": max(t["peak_memory_mib"] for t in timings),
        "success_by_state": ["".join("01"[int(x)] for x in s) for s in success],
        "iterations": directory.read_results()["iterations"],
    }


def outcomes_of(run: dict[str, Any]) -> list[np.ndarray]:
    return [np.array(list(map(int, success))) for success in run["success_by_state"]]


def pool(runs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Success of the last iteration minus the clone's, over the states and seeds of ``runs``."""
    outcomes = [outcomes_of(run) for run in runs]
    return average([success[-1] - success[0] for success in outcomes])


def compare(loop: dict[str, Any], other: dict[str, Any]) -> dict[str, Any] | None:
    """Success of the loop's last policy minus that of ``other``'s, on the same states, over the seeds of both."""
    last = {run["seed"]: outcomes_of(run)[-1] for run in other["runs"]}
    return average([outcomes_of(run)[-1] - last[run["seed"]] for run in loop["runs"] if run["seed"] in last])


def pool_imagined(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Precision and recall of imagined success by iteration, over all runs; none where a run has not recorded them."""
    pooled: dict[str, Any] = {}
    for i in (1, 2):
        for name in ("precision", "recall"):
            rates = [run["iterations"][i].get(f"imagined_success_{name}") for run in runs]
            if rates and all(rates):
                rate = Rate.from_counts(sum(r["k"] for r in rates), sum(r["n"] for r in rates))
                pooled.setdefault(f"iteration_{i}", {})[name] = rate.to_dict()
    return pooled


def average(differences: list[np.ndarray]) -> dict[str, Any] | None:
    """Mean over seeds and states, see `average_over_seeds`."""
    return average_over_seeds(differences) if differences else None


def plot(result: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    for number, (arm, values) in enumerate(result["arms"].items()):
        for run in values["runs"]:
            rate = [s["rate"] for s in run["success"]]
            error = [[s["rate"] - s["low"] for s in run["success"]], [s["high"] - s["rate"] for s in run["success"]]]
            x = np.arange(len(rate)) + 0.06 * (number - 1) + 0.02 * run["seed"]
            label = arm if run is values["runs"][0] else None
            axes.errorbar(x, rate, yerr=error, color=COLOURS[arm], capsize=2, marker="o", lw=1, label=label)
    axes.set(xlabel="iteration", ylabel="simulated success (95 % Wilson)", ylim=(0, 1))
    axes.set_xticks(range(3), ["0 (clone)", "1", "2"])
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def plot_first_iteration(result: dict[str, Any], path: Path) -> None:
    """Success after one iteration, arm by arm, a point per seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.6))
    arms = [arm for arm, values in result["iteration_1"].items() if values["success"]]
    for x, arm in enumerate(arms):
        for number, rate in enumerate(result["iteration_1"][arm]["success"].values()):
            error = [[rate["rate"] - rate["low"]], [rate["high"] - rate["rate"]]]
            axes.errorbar(x + 0.12 * (number - 1), rate["rate"], yerr=error, color=COLOURS[arm], capsize=2, marker="o")
    axes.set(ylabel="simulated success (95 % Wilson)", ylim=(0, 1), title="after iteration 1, three training seeds")
    axes.set_xticks(range(len(arms)), arms)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", choices=list(CONFIGS), default="first")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--only-collect", action="store_true", help="read finished runs, run nothing")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()
    settings = options.settings
    if not options.only_collect:
        for seed in options.seeds:
            run_seed(seed, options.arms, settings, options.overrides)
    path = RESULTS[settings]
    result = collect(options.seeds, options.arms, settings, options.overrides)
    path.write_text(json.dumps(result, indent=1) + "\n")
    plot(result, path.with_name("success.png" if settings == "first" else f"success_{settings}.png"))
    plot_first_iteration(result, path.with_name(f"iteration_1_{settings}.png"))
    for arm, values in result["arms"].items():
        print(arm, values["pooled_gain"], "after iteration 1:", result["iteration_1"][arm]["minus"])
    print("loop minus", result["loop_minus"])


if __name__ == "__main__":
    main()
