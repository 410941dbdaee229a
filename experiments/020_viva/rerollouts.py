"""Experiment 020, second part: do the advantages of a critic agree with what the simulator says?

    python experiments/020_viva/rerollouts.py measure TASK [key=value ...] [--seeds 0 1 2]
    python experiments/020_viva/rerollouts.py report [key=value ...]      # result_rerollouts.json, rerollouts.png

``measure`` needs what `run.py measure` left. The clone goes on from every second stored frame of held-out episodes of
its own, 16 times from each, as it acted when it was recorded (sampled at the collection's temperature). The mean return
of those 16 is the true value V(f) of the frame f, and

    A(f) = (returns[f] - returns[g]) + V(g) - V(f), g = f + N

the true advantage of the recorded actions of the next N steps, where an episode that has ended by g has its own return
in place of V(g). ``report`` compares it with the advantages that `label_advantages` would store, with the same formula
and the critic's value in place of V: Spearman's rank correlation over frames; its interval resamples episodes.

- `ceiling`: about what a perfect critic could reach: the square root of 2r / (1 + r) (Spearman-Brown), where r is the
  agreement of V from eight of the sixteen with V from the other eight
- `clock`: V is the mean return of all training frames at the same time of their episodes: a critic that knows only the
  time

The critic of the outcome is compared with V of the outcome. `measure` stores returns of RECAP; a success has -.5 or
more.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent))
from run import SETTINGS, locate_critic, open_frames  # noqa: E402
from trust_loops import configure, measure_or_report, open_beside, read_measured  # noqa: E402

from worldloop.core.files import to_json, write_file  # noqa: E402
from worldloop.core.randomness import make_row_keys  # noqa: E402
from worldloop.core.statistics import estimate, estimate_over_seeds, rank_correlation  # noqa: E402
from worldloop.evaluation.episode_values import EpisodeFrames  # noqa: E402
from worldloop.factory.build import build_simulator  # noqa: E402
from worldloop.rollout.rollout import run_rollout  # noqa: E402
from worldloop.stages import collect_episodes, label_advantages  # noqa: E402
from worldloop.stages.context import StageContext  # noqa: E402
from worldloop.storage.run_state import LoopState  # noqa: E402
from worldloop.value.config import ValueConfig  # noqa: E402
from worldloop.value.critic import average_value  # noqa: E402
from worldloop.value.returns import compute_returns  # noqa: E402

NUM_EPISODES, EVERY, NUM_REPEATS = 48, 2, 16
CRITICS = ("viva", "categorical", "success")
FILE = "rerollouts.json"


def open_beside_viva(task: str, seed: int, overrides: list[str], critic: str = "") -> tuple[StageContext, LoopState]:
    return open_beside(configure(task, seed, [*SETTINGS.get(critic, []), *overrides]), "viva", f"{task} {seed}")


def choose_rows(frames: EpisodeFrames) -> np.ndarray:
    """The rows of every second frame of the first `NUM_EPISODES` episodes of the policy."""
    own = [i for i, meta in enumerate(frames.metas) if meta.source == "policy"][:NUM_EPISODES]
    return np.concatenate([np.arange(frames.first[i], frames.first[i + 1], EVERY) for i in own])


def measure(task: str, seed: int, overrides: list[str]) -> None:
    """Write rerollouts.json into TASK-seedN-viva: row -> the `NUM_REPEATS` returns of the clone from there.

    What is there already is not simulated again.
    """
    context, state = open_beside_viva(task, seed, overrides)
    out = context.models.run_dir / FILE
    done: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    frames = open_frames("validation", state, context)
    policy = context.models.load_policy(state.clone).eval()
    policy.temperature = context.config_of(collect_episodes.Config).temperature
    simulator = build_simulator(context.simulation.config)
    dataset = context.open_clips(state.dataset, "validation")
    rows = choose_rows(frames)
    for count, row in enumerate(rows.tolist(), 1):
        if str(row) in done:
            continue
        start = dataset.observation(torch.from_numpy(frames.index[[row]]))
        limit = context.spec.task(start.task[0]).max_episode_steps
        elapsed = int(frames.index[row, 1]) * frames.cache.actions_per_frame
        done[str(row)] = []
        for key in make_row_keys(NUM_REPEATS, seed, "rerollouts", row).split(1):
            real = run_rollout(policy, simulator, start, key, initial_state_id=("",))
            num_steps = sum(int(step.valid.sum()) for step in real.steps)
            num_frames = -(-num_steps // frames.cache.actions_per_frame)
            is_success = any(bool((step.success & step.valid).any()) for step in real.steps)
            returns = compute_returns(num_steps, num_frames, frames.cache.actions_per_frame, is_success, limit)
            assert elapsed + num_steps <= limit, f"{elapsed} + {num_steps} steps exceed the limit of {limit}"
            done[str(row)].append(float(returns[0]))
        if count % 10 == 0 or count == len(rows):
            write_file(out, to_json(done), out.name)
            print(task, seed, f"{count} of {len(rows)} frames", flush=True)


def judge(task: str, seed: int, overrides: list[str], done: dict[str, Any]) -> dict[str, Any]:
    """Of each critic, and of the two bounds, the rank correlation of values and of advantages with the truth."""
    context, state = open_beside_viva(task, seed, overrides)
    frames, train = (open_frames(split, state, context) for split in ("validation", "train"))
    repeats = np.full((len(frames), NUM_REPEATS), np.nan)
    for row, returns in done.items():
        repeats[int(row)] = returns
    times, train_times = frames.index[:, 1], train.index[:, 1]
    by_time = [train.returns[train_times == t].mean() for t in range(int(train_times.max()) + 1)]
    clock = np.array(by_time)[np.minimum(times, len(by_time) - 1)]
    figures: dict[str, Any] = {
        "num_frames": len(done),
        "clock": correlate(frames, clock, repeats.mean(1), context),
        "ceiling": {},
    }
    for what, found in correlate(frames, repeats[:, 1::2].mean(1), repeats[:, ::2].mean(1), context).items():
        halves = max(found["value"], 0.0)
        figures["ceiling"][what] = {"value": (2 * halves / (1 + halves)) ** 0.5, "low": None, "high": None}
    for name in CRITICS:
        context, _ = open_beside_viva(task, seed, overrides, name)
        if not context.models.has(locate_critic(name)):
            print(task, seed, f"{name} is missing: measure it with run.py")
            continue
        own = open_frames("validation", state, context)
        is_outcome = context.config_of(ValueConfig).target == "outcome"
        known = np.where(repeats >= -0.5, 0.0, -1.0) if is_outcome else repeats
        truth = np.where(np.isnan(repeats), np.nan, known).mean(1)
        critic = context.models.load_critic(locate_critic(name))
        values = average_value([critic], own.observe(torch.arange(len(own)))).numpy()
        figures[name] = correlate(own, values, truth, context)
    return figures


def correlate(frames: EpisodeFrames, values: np.ndarray, truth: np.ndarray, context: StageContext) -> dict[str, Any]:
    """The rank correlation of ``values`` with ``truth`` f [N], which is NaN at most frames, and of their advantages."""
    horizon = -(-context.config_of(label_advantages.Config).num_env_steps // frames.cache.actions_per_frame)
    if horizon % EVERY:
        raise SystemExit(f"an advantage spans {horizon} frames, but only every {EVERY}nd is known")
    number = np.repeat(np.arange(len(frames.metas)), frames.num_frames)
    figures = {}
    for what, x, y in (
        ("value", values, truth),
        ("advantage", frames.compute_advantages(values, horizon), frames.compute_advantages(truth, horizon)),
    ):
        known = ~np.isnan(x) & ~np.isnan(y)
        figure = estimate(rank_correlation, x[known], y[known], clusters=number[known])
        figures[what] = figure.to_dict(with_n=True)
    return figures


def report(overrides: list[str]) -> None:
    """Write result_rerollouts.json and rerollouts.png from the frames that have been simulated."""
    tasks: dict[str, Any] = {}
    for task, seeds in read_measured(overrides, "viva", FILE).items():
        judged = {seed: judge(task, seed, overrides, done) for seed, done in seeds.items()}
        tasks[task] = {"seeds": judged, "over_seeds": {}}
        for name in ("clock", *CRITICS, "ceiling"):
            for what in ("value", "advantage"):
                values = [figures[name][what]["value"] for figures in judged.values() if name in figures]
                if values:
                    of_seeds = estimate_over_seeds(values).to_dict()
                    tasks[task]["over_seeds"].setdefault(name, {})[what] = of_seeds | {"by_seed": values}
        for name, figures in tasks[task]["over_seeds"].items():
            print(task, f"{name:<12}", {what: figure["by_seed"] for what, figure in figures.items()})
    write_file(HERE / "result_rerollouts.json", to_json({"tasks": tasks}), "result_rerollouts.json")
    plot(tasks)


def plot(tasks: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(tasks), figsize=(6 * len(tasks), 3.5), squeeze=False)
    for axis, (task, found) in zip(axes[0], tasks.items(), strict=True):
        for offset, what in enumerate(("value", "advantage")):
            for seed, figures in found["seeds"].items():
                names = [name for name in ("clock", *CRITICS, "ceiling") if name in figures]
                at = np.arange(len(names)) + 0.2 * offset - 0.1 + 0.04 * seed
                value, low, high = (
                    np.array([figures[name][what][key] for name in names], dtype=float)
                    for key in ("value", "low", "high")
                )
                spread = np.abs(np.nan_to_num(np.stack([low, high]) - value))
                label = what if seed == min(found["seeds"]) else None
                axis.errorbar(at, value, spread, fmt=".", color=f"C{offset}", label=label)
                axis.set_xticks(range(len(names)), names)
        axis.axhline(0, color="k", linewidth=0.8)
        axis.set(title=task, ylabel="rank correlation with re-rollouts")
        axis.legend()
    figure.tight_layout()
    figure.savefig(HERE / "rerollouts.png", dpi=120)


if __name__ == "__main__":
    measure_or_report(str(__doc__), measure, report)
