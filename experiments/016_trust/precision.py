"""Experiment 016: how exactly must a world model know where the cube is?

    python experiments/016_trust/precision.py measure TASK [key=value ...] [--seeds 0 1 2]   # push, pull
    python experiments/016_trust/precision.py report [key=value ...]      # result_precision.json, precision.png

``measure`` needs loops of `run.py run` that have ended. The last candidate's imagined rollouts are replayed in the
simulator: the truth. Two models that know more than any world model then say which rollouts succeed:

- the simulator itself, with the cube displaced at the start by a normal error along each axis of the table
- a network that is told the cube's true pose and learns the next proprio and pose from stored episodes alone

A rollout's score is minus the cube's least distance to the goal's centre, which tells failures apart too. Shapes:
N rollouts, C chunks of one frame, S proprio.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from common import locate_run  # noqa: E402
from state_network import ask_state_network, judge_gap  # noqa: E402
from trust_loops import SEEDS, TASKS, configure, list_checked, measure_or_report, open_loop_run  # noqa: E402

from worldloop.core.files import to_json, write_file  # noqa: E402
from worldloop.core.randomness import make_row_keys  # noqa: E402
from worldloop.core.statistics import estimate_over_seeds  # noqa: E402
from worldloop.core.success import Calibrations  # noqa: E402
from worldloop.core.types import Episode, InitialStates  # noqa: E402
from worldloop.evaluation.outcomes import observe_start  # noqa: E402
from worldloop.rollout.imagination import imagine_rollout  # noqa: E402
from worldloop.rollout.replay import Replay  # noqa: E402
from worldloop.simulators.maniskill import TASKS as MANISKILL_TASKS  # noqa: E402
from worldloop.simulators.maniskill.family import ManiSkillTask  # noqa: E402
from worldloop.stages import improve_policy  # noqa: E402
from worldloop.stages.context import StageContext  # noqa: E402

NUM_STATES, GROUP_SIZE = 50, 4
DISPLACED_MM = (0.0, 2.0, 4.0, 8.0)
NUM_EPISODES = (250, 0)  # 0: all


def measure(task_name: str, seed: int, overrides: list[str]) -> None:
    """Write precision.json into the run: what a simulator with a displaced cube, and a state network, say."""
    context, path = open_loop_run(task_name, seed, overrides, "precision")
    checkpoint = list_checked(configure(task_name, seed, overrides))[-1]["checkpoint"]
    task = MANISKILL_TASKS[context.spec.task_ids[0]]
    num_chunks = context.config_of(improve_policy.Config).imagination_horizon
    states, replay, start = imagine(context, path, checkpoint, num_chunks)

    def simulate(error_m: float) -> list[Episode]:
        generator = np.random.default_rng(seed)
        moved = states.states.clone()
        error = generator.normal(0.0, 1.0, (len(states), 2)) * error_m
        moved[:, task.object_xyz.start : task.object_xyz.start + 2] += torch.from_numpy(error).float()
        return context.simulation.run(
            replace(states, states=moved),
            block_size=10,
            purpose="precision",
            iteration=1,
            replay=replay,
            row_chunks=torch.full((len(states),), num_chunks),
        )

    episodes = simulate(0.0)
    truth = np.array([episode.is_success for episode in episodes])
    measured: dict[str, Any] = {"n": len(truth), "negatives": int((~truth).sum()), "displaced_mm": {}, "told_state": {}}
    for error_mm in DISPLACED_MM[1:]:
        states_of = [torch.from_numpy(episode.sim_state) for episode in simulate(error_mm / 1000)]
        score = np.array([-find_least_gap(s, task) for s in states_of])
        measured["displaced_mm"][str(error_mm)] = judge_gap(score, truth, start, task)
        print(task_name, seed, f"cube {error_mm} mm", measured["displaced_mm"][str(error_mm)], flush=True)
    for number in NUM_EPISODES:
        score, errors = ask_state_network(context, episodes, replay, num_chunks, task, number)
        entry = judge_gap(score, truth, start, task) | errors
        measured["told_state"][str(number or "all")] = entry
        print(task_name, seed, f"told the state, {number or 'all'} episodes", entry, flush=True)
    write_file(context.models.run_dir / "precision.json", to_json(measured), "precision.json")


def imagine(
    context: StageContext, path: str, checkpoint: str, num_chunks: int
) -> tuple[InitialStates, Replay, np.ndarray]:
    """N imagined rollouts of the policy in ``checkpoint``: their start states, their actions, and their group."""
    world_model = context.models.load_world_model(path).for_imagination()
    policy = context.models.load_policy(checkpoint).eval()
    policy.temperature = context.config_of(improve_policy.Config).temperature
    states = context.simulation.draw_fresh_states("validation", NUM_STATES, "precision")
    one_chunk = torch.ones(len(states), dtype=torch.long)
    seen = context.simulation.run(
        states,
        block_size=10,
        purpose="precision/start",
        iteration=1,
        policy=checkpoint,
        temperature=policy.temperature,
        row_chunks=one_chunk,
    )
    group = torch.arange(len(states)).repeat_interleave(GROUP_SIZE)
    rollout = imagine_rollout(
        policy,
        world_model,
        Calibrations(),
        observe_start(seen, world_model.spec.robot.camera_names),
        noise_key=make_row_keys(len(group), context.seed, "precision", "policy"),
        world_key=make_row_keys(len(states), context.seed, "precision", "world_model"),
        initial_state_id=tuple(states.ids[i] for i in group.tolist()),
        group_id=group,
        max_chunks=num_chunks,
        ends_at_success=False,
    )
    return states.select(group), Replay.of(rollout), group.numpy()


def find_least_gap(sim_state: Tensor, task: ManiSkillTask) -> float:
    """The cube's least distance in metres to the goal's centre along ``sim_state`` f32 [F + 1, D]."""
    return float(task.measure_gap(sim_state).norm(dim=1).min())


def report(overrides: list[str]) -> None:
    """Write result_precision.json and precision.png from the loops that have been measured."""
    tasks: dict[str, Any] = {}
    for task_name in TASKS:
        runs = {seed: locate_run(configure(task_name, seed, overrides)).path / "precision.json" for seed in SEEDS}
        measured = {seed: json.loads(path.read_text()) for seed, path in runs.items() if path.exists()}
        if measured:
            tasks[task_name] = {"seeds": measured} | {
                kind: {
                    level: {
                        figure: estimate_over_seeds([pick(m[kind][level][figure]) for m in measured.values()]).to_dict()
                        for figure in ("within_group_auc", "auc", "true_negative_rate")
                    }
                    for level in next(iter(measured.values()))[kind]
                }
                for kind in ("displaced_mm", "told_state")
            }
    write_file(HERE / "result_precision.json", to_json({"tasks": tasks}), "result_precision.json")
    plot(tasks, HERE / "precision.png")
    for task_name, figures in tasks.items():
        for kind in ("displaced_mm", "told_state"):
            for level, entry in figures[kind].items():
                print(
                    task_name,
                    kind,
                    level,
                    {n: [round(v, 3) if isinstance(v, float) else v for v in e.values()] for n, e in entry.items()},
                )


def pick(figure: dict[str, Any] | float | None) -> float:
    """NaN where a loop had no failure, or no two rollouts from one state that ended differently."""
    return float("nan" if figure is None else figure["value"] if isinstance(figure, dict) else figure)


def plot(tasks: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
    for task_name, figures in tasks.items():
        for axis, kind, label in zip(
            axes, ("displaced_mm", "told_state"), ("error of the cube's start, mm", "training episodes"), strict=True
        ):
            levels = list(figures[kind])
            for name, bar, colour in (
                ("within_group_auc", 0.85, "tab:blue"),
                ("true_negative_rate", 0.8, "tab:orange"),
            ):
                values = [figures[kind][level][name]["value"] for level in levels]
                axis.plot(levels, values, marker="o", color=colour, label=f"{task_name}: {name.replace('_', ' ')}")
                for m in figures["seeds"].values():
                    axis.plot(levels, [pick(m[kind][level][name]) for level in levels], ".", color=colour, alpha=0.4)
                axis.axhline(bar, color=colour, lw=0.8, ls=":")
            axis.set(xlabel=label, ylim=(0, 1.02))
    axes[0].set_title("the simulator, cube displaced")
    axes[1].set_title("a network that is told the cube's pose")
    axes[0].legend(loc="lower left", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    measure_or_report(str(__doc__), measure, report)
