"""Arms of loops of one iteration, whose last world model is judged on fresh states: experiments 026 and 028."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import fork_run, has_ended, locate_run, open_context, run_until
from replays import Replays, replay_policy
from trust_loops import SEEDS, TASKS, configure, list_checked, measure_or_report

from worldloop.config.schema import LoopConfig
from worldloop.core.files import to_json, write_file
from worldloop.core.statistics import auc, estimate_by_label, estimate_over_seeds, estimate_within_group_auc
from worldloop.evaluation.closed_loop import judge_closed_loop
from worldloop.evaluation.replayed_rollouts import ReplayedRollouts
from worldloop.loop.run import run_loop
from worldloop.world_model.model import VideoWorldModel

COMMON = ["check_world_model.probe_steps=0", "check_world_model.num_videos=0"]
ROUNDS = [
    "world_model.landmarks=true",
    "world_model.num_members=4",
    "improve_policy.num_candidates=4",
    "check_closed_loop.num_states=20",
    "check_closed_loop.num_training_states=30",
    "refit_world_model.num_steps=300",
    "refit_world_model.num_proprio_steps=300",
]
NUM_STATES, GROUP_SIZE = 60, 8
POLICIES = ("start", "last candidate")
BARS = {"within_group_auc": 0.85, "auc": 0.90, "true_negative_rate": 0.80}
BARS_OF = {"pick": {"within_group_auc": 0.80, "auc": 0.85, "true_negative_rate": 0.80}}
CHECKED = (*BARS, "own", "replay", "declared")
FIGURES = (*BARS, "own", "replay", "declared", "own_minus_replay", "imagined_minus_simulated")


Arms = Mapping[str, Sequence[str]]  # name -> settings


def run_arms(doc: str, arms: Arms, folder: Path, picture: str) -> None:
    """The command line of `measure_or_report` for ``arms``, with the option ``--arms``; results go to ``folder``."""

    def measure(task: str, seed: int, overrides: list[str], **chosen: Sequence[str]) -> None:
        measure_arms(task, seed, overrides, {name: arms[name] for name in chosen["arms"]})

    measure_or_report(doc, measure, lambda overrides: report_arms(overrides, arms, folder, picture), arms=list(arms))


def measure_arms(task: str, seed: int, overrides: list[str], arms: Arms) -> None:
    """Run the loop of each arm, and write closed_loop.json into it; they share iteration 0. What was begun goes on."""
    base = run_until(configure(task, seed, [*COMMON, *overrides]), "fit_world_model")
    for arm, settings in arms.items():
        config = configure_arm(task, seed, overrides, arm, settings)
        directory = locate_run(config)
        fork_run(base, config)
        if not has_ended(directory):
            run_loop(config)
        if not (directory.path / "closed_loop.json").exists():
            judge(config, f"{task} {seed} {arm}")


def configure_arm(task: str, seed: int, overrides: list[str], arm: str, settings: Sequence[str]) -> LoopConfig:
    root = configure(task, seed, overrides).run_root
    return configure(task, seed, [*COMMON, *overrides, *settings, f"run_root={root}/{arm}"])


def report_arms(overrides: list[str], arms: Arms, folder: Path, picture: str) -> None:
    """Write result.json and ``picture`` into ``folder`` from the loops that have been measured."""
    tasks: dict[str, Any] = {}
    for task in TASKS:
        for arm, settings in arms.items():
            loops, judged = {}, {}
            for seed in SEEDS:
                config = configure_arm(task, seed, overrides, arm, settings)
                if not has_checks(config):
                    continue
                loops[seed] = describe_loop(config)
                out = locate_run(config).path / "closed_loop.json"
                if out.exists():
                    judged[seed] = withdraw(json.loads(out.read_text()))
            if loops:
                tasks.setdefault(task, {})[arm] = {"over_seeds": summarise(judged), "seeds": judged, "loops": loops}
    write_file(folder / "result.json", to_json({"tasks": tasks}), "result.json")
    for task, entries in tasks.items():
        for arm, entry in entries.items():
            for policy in POLICIES:
                print(task, arm, policy, {k: v["by_seed"] for k, v in entry["over_seeds"][policy].items()})
            print(task, arm, "loops", entry["loops"])
    plot(tasks, folder / picture)


def judge(config: LoopConfig, label: str) -> None:
    """Write closed_loop.json into the loop of ``config``, which has ended.

    The policy with which its improvement began and its last candidate act in its last world model, from `NUM_STATES`
    fresh validation states, `GROUP_SIZE` times each, and the simulator replays their actions.
    """
    path = locate_run(config).path
    context = open_context(config, path, label)
    world_model = context.models.load_world_model(locate_run(config).read_state().world_model).for_imagination()
    checked = [entry["checkpoint"] for entry in list_checked(config)]
    calibrations = locate_run(config).read_state().calibrations
    assert calibrations is not None
    threshold = calibrations.of(context.spec.task_ids[0]).threshold
    measured: dict[str, Any] = {}
    for name, checkpoint in zip(POLICIES, (checked[0], checked[-1]), strict=True):
        rollouts = replay_policy(
            context,
            world_model,
            checkpoint,
            f"026/{name}",
            num_states=NUM_STATES,
            group_size=GROUP_SIZE,
            calibrations=calibrations,
        )
        judged = judge_closed_loop(rollouts, threshold)
        figures = {key: getattr(judged, key) for key in FIGURES}
        measured[name] = {key: value and value.to_dict(with_n=True) for key, value in figures.items()}
        print(label, name, {key: value and value["value"] for key, value in measured[name].items()}, flush=True)
        measured[name] |= {"calibrated": True, "readers": compare_readers(world_model, rollouts)}
        print(label, name, measured[name]["readers"], flush=True)
        keep_scores(path / f"scores_{name.replace(' ', '_')}.npz", rollouts, threshold)
    write_file(path / "closed_loop.json", to_json(measured), "closed_loop.json")


def compare_readers(world_model: VideoWorldModel, rollouts: ReplayedRollouts) -> dict[str, Any]:
    """What either part of the success head alone tells of the same rollouts, imagined again; {} if it has no gaps."""
    head = world_model.success_head
    by_gaps, figures = head.read_gaps, {}
    replays = Replays(rollouts.episodes, rollouts.score.shape[1], world_model.spec)
    truth = rollouts.replayed[:, -1]
    for name, reader in (("gaps", by_gaps), ("pictures", None)) if by_gaps is not None else ():
        head.read_gaps = reader
        probability = replays.imagine(world_model, 0)[0].double().numpy()
        score = np.minimum(probability[:, :-1], probability[:, 1:]).max(1)  # confirmed by one more frame
        within = estimate_within_group_auc(score, truth, rollouts.start)
        pooled = estimate_by_label(auc, score, truth)
        figures[name] = {"within_group_auc": within and within.to_dict(), "auc": pooled and pooled.to_dict()}
    head.read_gaps = by_gaps
    return figures


def keep_scores(path: Path, rollouts: ReplayedRollouts, threshold: float) -> None:
    """Of each rollout its score, its outcome and the number of its start, to try other thresholds on."""
    np.savez(path, score=rollouts.score, replayed=rollouts.replayed, start=rollouts.start, threshold=threshold)


def withdraw(measured: dict[str, Any]) -> dict[str, Any]:
    """``measured`` without what the first judgements got wrong: calibrated thresholds stood against raw scores.

    They do not say ``calibrated``. What does not depend on a threshold stays.
    """
    wrong = dict.fromkeys(("true_negative_rate", "declared", "imagined_minus_simulated"))
    return {name: figures if figures.get("calibrated") else figures | wrong for name, figures in measured.items()}


def has_checks(config: LoopConfig) -> bool:
    """Whether the loop has been checked in the closed loop once, so that there is something to report."""
    results = locate_run(config).path / "results.json"
    return results.exists() and "closed_loop" in json.loads(results.read_text())["iterations"][-1]


def describe_loop(config: Any) -> dict[str, Any]:
    """Success on the evaluation states before and after, what promoted, the checks on the way, and the cost in steps.

    ``None`` is what a loop that has not ended does not know yet.
    """
    results = locate_run(config).read_results()
    begin, improved = results["iterations"]
    return {
        "success": [(entry.get("simulated_success") or {}).get("rate") for entry in (begin, improved)],
        "promoted": improved.get("promoted"),
        "env_steps": improved["env_steps"],
        "simulator_steps": improved["simulator_steps"],
        "promotion_gain": improved.get("promotion_gain"),
        "validation_success": improved.get("validation_success"),
        "tested_candidate": improved.get("tested_candidate"),
        "checks": [
            {"checkpoint": Path(entry["checkpoint"]).name}
            | {key: entry[key] and entry[key]["value"] for key in CHECKED}
            for entry in list_checked(config)
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
    """Both policies of every arm that was judged; hollow: the readers of pictures on the same rollouts."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(tasks), len(BARS), figsize=(10, 3.0 * len(tasks)), squeeze=False)
    for row, (task, arms) in zip(axes, tasks.items(), strict=True):
        judged = {arm: entry["seeds"] for arm, entry in arms.items() if entry["seeds"]}
        for axis, key in zip(row, BARS, strict=True):
            for x, seeds in enumerate(judged.values()):
                for policy, colour, shift in zip(POLICIES, ("grey", "tab:blue"), (-0.2, 0.1), strict=True):
                    for number, seed in enumerate(seeds.values()):
                        at = x + shift + 0.04 * number
                        draw(axis, at, seed[policy][key], colour, colour)
                        pictures = seed[policy].get("readers", {}).get("pictures", {})
                        draw(axis, at + 0.1, pictures.get(key), colour, "white")
            axis.axhline(BARS_OF.get(task, BARS)[key], color="black", lw=0.8, ls=":")
            axis.set_xticks(range(len(judged)), list(judged))
            axis.set(title=f"{task}: {key.replace('_', ' ')}", xlim=(-0.5, len(judged) - 0.5), ylim=(0.0, 1.0))
    figure.suptitle(
        "grey: start of the improvement, blue: last candidate, hollow: pictures read, dotted: bar", fontsize=9
    )
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def draw(axis: Any, x: float, found: Any, colour: str, face: str) -> None:
    if found:
        axis.plot([x, x], [found["low"], found["high"]], color=colour, lw=0.8)
        axis.plot(x, found["value"], "o", color=colour, markerfacecolor=face, ms=5)
