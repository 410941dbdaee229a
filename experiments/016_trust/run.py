"""Experiment 016: can the world model be trusted where the policy learns, in the closed loop?

    python experiments/016_trust/run.py run TASK [key=value ...] [--seeds 0 1 2]     # push, pull, pick
    python experiments/016_trust/run.py swap TASK [key=value ...] [--seeds 0 1 2]    # the swap test of loops that ended
    python experiments/016_trust/run.py parts TASK [key=value ...] [--seeds 0 1 2]   # which part of the model errs
    python experiments/016_trust/run.py rank TASK [key=value ...]                    # policies of different strength
    python experiments/016_trust/run.py report [key=value ...]                       # result.json, trust.png

``run`` is one iteration of `worldloop run configs/TASK_cpu.yaml` per seed, with eight imagined chunks, 50 validation
states in each check in the closed loop, one thread and one simulator process; begun again, it goes on. ``swap`` lets
the start of the improvement and its last candidate act with one part of what they see imagined. ``parts`` imagines
replayed rollouts of the last candidate again, with some parts replaced by what the simulator says. ``rank`` compares
imagined with simulated success of the policies of all seeds, in the world model of the first. ``report`` reads the
loops that have ended under run_root.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldloop.config.schema import LoopConfig
from worldloop.core.files import to_json, write_file
from worldloop.core.randomness import make_generator, make_row_keys
from worldloop.core.statistics import (
    auc,
    estimate,
    estimate_by_label,
    estimate_over_seeds,
    estimate_within_group_auc,
    rank_correlation,
)
from worldloop.core.success import Calibrations
from worldloop.evaluation.actions_only import score_actions
from worldloop.evaluation.closed_loop import judge_closed_loop
from worldloop.evaluation.outcomes import observe_start
from worldloop.evaluation.replayed_rollouts import score_by_chunk
from worldloop.reporting.closed_loop import CURVES
from worldloop.rollout.imagination import imagine_rollout
from worldloop.stages import improve_policy
from worldloop.stages.context import StageContext

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from common import has_ended, locate_run, open_context, run_or_report  # noqa: E402
from replays import Replays, replay_policy  # noqa: E402
from trust_loops import COMMON, SEEDS, TASKS, configure, list_checked, open_loop_run  # noqa: E402

FIGURES = (*CURVES, "own_minus_replay")
POLICIES = ("start", "after half of the updates", "after all updates")
NUM_SWAP_STATES = 60
NUM_RANK_STATES = 100
NUM_PARTS_STATES = 50
HOT = (2.0, 4.0)  # temperatures at which a clone is a bad policy


def measure_swap(task: str, seed: int, overrides: list[str]) -> None:
    """Write swap.json into the run: for its start and its last candidate, what each imagined part costs."""
    context, path = open_loop_run(task, seed, overrides, "swap")
    world_model = context.models.load_world_model(path).for_imagination()
    measured = {}
    checked = [entry["checkpoint"] for entry in list_checked(configure(task, seed, overrides))]
    for checkpoint in (checked[0], checked[-1]):
        rollouts = replay_policy(
            context, world_model, checkpoint, "swap", num_states=NUM_SWAP_STATES, group_size=1, swap_with=path
        )
        judged = judge_closed_loop(rollouts, threshold=0.5)
        measured[Path(checkpoint).name] = {
            "own": judged.own.to_dict(with_n=True),
            "own_minus_replay": judged.own_minus_replay.to_dict(with_n=True),
            "swapped_minus_own": {part: d.to_dict(with_n=True) for part, d in judged.swapped_minus_own.items()},
        }
        print(task, seed, Path(checkpoint).name, measured[Path(checkpoint).name], flush=True)
    write_file(context.models.run_dir / "swap.json", to_json(measured), "swap.json")


def measure_parts(task: str, seed: int, overrides: list[str]) -> None:
    """Write parts.json into the run: AUC within groups of the last candidate's rollouts, if the model knew more.

    The actions are those of imagined rollouts that the simulator has replayed. They are imagined again with the
    replays' true proprio, or from a later true frame on, or the success head reads the true frames.
    """
    context, path = open_loop_run(task, seed, overrides, "parts")
    world_model = context.models.load_world_model(path).for_imagination()
    num_chunks = context.config_of(improve_policy.Config).imagination_horizon
    checkpoint = list_checked(configure(task, seed, overrides))[-1]["checkpoint"]
    rollouts = replay_policy(context, world_model, checkpoint, "parts", num_states=NUM_PARTS_STATES, group_size=4)
    truth, start = rollouts.replayed[:, -1], rollouts.start
    episodes = Replays(rollouts.episodes, num_chunks, context.spec)

    def judge(probability: Tensor) -> dict[str, Any]:
        score = torch.minimum(probability[:, :-1], probability[:, 1:]).amax(1).double().numpy()
        within, pooled = estimate_within_group_auc(score, truth, start), estimate_by_label(auc, score, truth)
        return {"within_group_auc": within and within.to_dict(), "auc": pooled and pooled.to_dict()}

    imagined, errors_m = episodes.imagine(world_model, 0)
    measured: dict[str, Any] = {
        "policy": Path(checkpoint).name,
        "n": len(truth),
        "imagined": judge(imagined),
        "imagined, proprio true": judge(episodes.imagine(world_model, 0, true_proprio=True)[0]),
        "success head on true frames": judge(episodes.read_truth(world_model)),
        "hand_error_mm_by_frame": [round(1000 * float(e), 1) for e in errors_m["hand"]],
        "open loop, recorded actions alone": {"auc": judge_actions(context)},
    }
    for first in range(1, 5):
        measured[f"imagined from true frame {first} on"] = judge(episodes.imagine(world_model, first)[0])
    print(task, seed, json.dumps(measured), flush=True)
    write_file(context.models.run_dir / "parts.json", to_json(measured), "parts.json")


def judge_actions(context: StageContext) -> dict[str, Any] | None:
    """The floor of the open-loop AUC on the clone's held-out episodes: that of their recorded actions alone."""
    train, held_out = (context.open_clips("v001", split) for split in ("train", "validation"))
    own, episodes = (clips.episode_index(source="policy") for clips in (train, held_out))
    scores = score_actions(train, own, held_out, episodes, make_generator(context.seed, "parts/actions_only"))
    if scores is None:
        return None
    known = ~np.isnan(scores)
    success = np.array([held_out.cache.metas[e].outcome == "success" for e in episodes.tolist()])
    figure = estimate_by_label(auc, scores[known], success[known])
    return None if figure is None else figure.to_dict(with_n=True)


def measure_ranking(task: str, overrides: list[str]) -> None:
    """Write ranking.json into the run of the first seed: success of policies of different strength, own and imagined.

    They are the clone, the start and the last candidate of every seed, and the first clone at higher temperatures. No
    world model has seen an episode of most of them.
    """
    configs = {seed: configure(task, seed, overrides) for seed in SEEDS}
    directory = locate_run(configs[SEEDS[0]])
    context = open_context(configs[SEEDS[0]], directory.path, f"rank {task}")
    state = directory.read_state()
    world_model = context.models.load_world_model(state.world_model).for_imagination()
    improvement = context.config_of(improve_policy.Config)
    states = context.simulation.draw_fresh_states("validation", NUM_RANK_STATES, "rank")
    policies: list[tuple[str, Path, float]] = []
    for seed, config in configs.items():
        run = locate_run(config)
        if has_ended(run):
            checked = [entry["checkpoint"] for entry in list_checked(config)]
            for checkpoint in (run.read_state().clone, checked[0], checked[-1]):
                name = f"seed {seed}, {checkpoint.removeprefix('checkpoints/')}"
                policies.append((name, run.path / checkpoint, improvement.temperature))
    name, clone, _ = policies[0]
    policies += [(f"{name}, temperature {temperature}", clone, temperature) for temperature in HOT]
    measured = []
    for number, (name, checkpoint, temperature) in enumerate(policies):
        policy = context.models.load_policy(str(checkpoint)).eval()
        policy.temperature = temperature
        num_chunks = improvement.imagination_horizon
        own = context.simulation.run(
            states,
            block_size=10,
            purpose=f"rank/{number}",
            iteration=1,
            policy=str(checkpoint),
            temperature=temperature,
            row_chunks=torch.full((len(states),), num_chunks),
        )
        calibrations = state.calibrations or Calibrations()
        rollout = imagine_rollout(
            policy,
            world_model,
            calibrations,
            observe_start(own, world_model.spec.robot.camera_names),
            noise_key=make_row_keys(len(states), "rank", number, "policy"),
            world_key=make_row_keys(len(states), "rank", "world_model"),
            initial_state_id=states.ids,
            group_id=torch.arange(len(states)),
            max_chunks=num_chunks,
            ends_at_success=False,
        )
        declared = score_by_chunk(rollout, world_model.spec)[:, -1] >= calibrations.of(states.tasks[0]).threshold
        success = np.array([episode.is_success for episode in own])
        measured.append({"policy": name, "own": float(success.mean()), "declared": float(declared.mean())})
        print(task, measured[-1], flush=True)
    write_file(directory.path / "ranking.json", to_json({"num_states": len(states), "policies": measured}), "ranking")


def summarise(seed: int, config: LoopConfig) -> dict[str, Any]:
    """One loop: success of clone and promoted policy, and every check of its iteration."""
    clone, improved = locate_run(config).read_results()["iterations"]
    open_loop = improved["reward_alignment"]["on_policy"]
    extra = {name: locate_run(config).path / f"{name}.json" for name in ("swap", "parts")}
    return {
        "seed": seed,
        "clone": clone["simulated_success"],
        "promoted": improved["simulated_success"],
        "paired_gain": improved.get("paired_gain"),
        "promotion_test": improved.get("promotion_test"),
        "open_loop_auc": open_loop and open_loop["auc"],
        "checks": [
            {"policy": Path(entry["checkpoint"]).name} | {k: v for k, v in entry.items() if k != "checkpoint"}
            for entry in list_checked(config)
        ],
        **{name: json.loads(path.read_text()) if path.exists() else None for name, path in extra.items()},
    }


def report(overrides: list[str]) -> None:
    settings = [*COMMON, *overrides]
    result: dict[str, Any] = {
        "schema_version": 1,
        "settings": [setting for setting in settings if not setting.startswith("run_root=")],
        "tasks": {},
    }
    for task in TASKS:
        configs = {seed: configure(task, seed, overrides) for seed in SEEDS}
        loops = [summarise(seed, c) for seed, c in configs.items() if has_ended(locate_run(c))]
        if loops:
            path = locate_run(configs[SEEDS[0]]).path / "ranking.json"
            ranking = rank(json.loads(path.read_text())) if path.exists() else None
            result["tasks"][task] = {"mean": average(loops), "ranking": ranking, "loops": loops}
    write_file(HERE / "result.json", to_json(result), "result.json")
    plot(result, HERE / "trust.png")
    for task, values in result["tasks"].items():
        print(f"{task}, {len(values['loops'])} seeds")
        for policy, figures in values["mean"].items():
            print(f"  {policy}: " + ", ".join(f"{name} {show(figure)}" for name, figure in figures.items()))
        if values["ranking"]:
            print("  ranking: " + ", ".join(f"{name} {show(values['ranking'][name])}" for name in CORRELATIONS))


def average(loops: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Policy -> figure -> mean over seeds with a t-interval; figures that a seed cannot have are left out of it."""
    means: dict[str, dict[str, Any]] = {}
    for number, policy in enumerate(POLICIES):
        checks = [loop["checks"][number] for loop in loops if len(loop["checks"]) > number]
        for name in FIGURES:
            values = [check[name]["value"] for check in checks if check[name]]
            if values:
                mean = estimate_over_seeds(values).to_dict(with_n=True)
                means.setdefault(policy, {})[name] = mean | {"by_seed": values}
    return means


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(x, y)[0, 1]) if x.std() > 0 and y.std() > 0 else float("nan")


CORRELATIONS = {"pearson": pearson, "spearman": rank_correlation}


def rank(measured: dict[str, Any]) -> dict[str, Any]:
    """Does imagined success order policies as the simulator does? Intervals resample policies."""
    declared, own = (np.array([p[name] for p in measured["policies"]]) for name in ("declared", "own"))
    figures = {name: estimate(f, declared, own).to_dict(with_n=True) for name, f in CORRELATIONS.items()}
    return measured | figures


def show(figure: dict[str, Any]) -> str:
    bounds = "" if figure["low"] is None else f" ({figure['low']:.2f} to {figure['high']:.2f})"
    return f"{figure['value']:.3f}{bounds}"


def list_lines(values: dict[str, Any], name: str) -> Iterator[tuple[int, list[float], list[list[float]]]]:
    """(seed, values, error bars [2, n]) of the figure ``name`` over the checks of each loop."""
    for loop in values["loops"]:
        found = [check[name] for check in loop["checks"] if check[name]]
        value = [figure["value"] for figure in found]
        bounds = [(f["low"], f["high"]) if f["low"] is not None else (f["value"], f["value"]) for f in found]
        below = [v - low for v, (low, _) in zip(value, bounds, strict=True)]
        above = [high - v for v, (_, high) in zip(value, bounds, strict=True)]
        yield loop["seed"], value, [below, above]


def plot(result: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    titles = {
        "within_group_auc": ("AUC within groups", 0.5),
        "true_negative_rate": ("true negative rate", 0.8),
        "own": ("success in the simulator", None),
    }
    tasks = list(result["tasks"])
    figure, axes = plt.subplots(len(tasks), 3, figsize=(11, 3 * len(tasks)), squeeze=False, sharey=True)
    for row, task in zip(axes, tasks, strict=True):
        for axis, (name, (title, line)) in zip(row, titles.items(), strict=True):
            for seed, value, error in list_lines(result["tasks"][task], name):
                x = [i + 0.05 * (seed - 1) for i in range(len(value))]
                axis.errorbar(x, value, yerr=error, marker="o", capsize=2, lw=1, label=f"seed {seed}")
            if line is not None:
                axis.axhline(line, color="grey", lw=0.8, ls=":")
            axis.set(title=f"{task}: {title}", ylim=(0, 1.02), xticks=range(3))
            axis.set_xticklabels(["start", "half", "all updates"])
    axes[0][0].legend(loc="lower left")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str]) -> None:
    command, overrides = arguments[0] if arguments else "", [a for a in arguments if "=" in a]
    if command not in ("swap", "parts", "rank"):
        run_or_report(str(__doc__), tuple(TASKS), SEEDS, configure, report)
        return
    seeds = [int(a) for a in arguments[arguments.index("--seeds") + 1 :]] if "--seeds" in arguments else list(SEEDS)
    for task in (a for a in arguments[1:] if a in TASKS):
        if command == "rank":
            measure_ranking(task, overrides)
            continue
        for seed in seeds:
            (measure_swap if command == "swap" else measure_parts)(task, seed, overrides)


if __name__ == "__main__":
    main(sys.argv[1:])
