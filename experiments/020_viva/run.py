"""Experiment 020: does a value model that grew out of the world model know earlier what comes?

    python experiments/020_viva/run.py measure TASK [key=value ...] [--seeds 0 1 2] [--arms viva ...]
    python experiments/020_viva/run.py report [key=value ...]      # result.json, viva.png

``measure`` needs loops of experiment 016 under the same run_root, up to their first improve_policy or further. Per seed
it fits critics on the training episodes of dataset v001, and judges them on the held-out episodes, which neither they
nor the world model have seen: AUC of the value between successes and failures of one source, at the same time.

- `viva`: the fitted world model with slots, half of whose training is pure noise; one copy of the value
- `viva_random`: from random weights; `viva_no_future`: predicts the value alone
- `viva_64`, `viva_all`: noisy copies of the value in its slot; `viva_64_uniform`, `viva_all_uniform`: and noise levels
  drawn uniformly, so that a noisy value is nearly always in the input
- `categorical`: 201 bins, one small network from scratch; `success`: one probability of the outcome
- `ARM_25`, `ARM_50`: from the episodes of that share of the initial states; the world model has seen all frames
- `shuffled`: `viva` with returns of other frames: the floor. The clock alone has .5, as values are compared at one time

Beside the real frames every critic reads imagined ones: the world model imagines three frames up to the same time under
the recorded actions. TASK: push, pull, pick. What was measured is not measured again.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from trust_loops import configure, measure_or_report, open_beside, read_measured  # noqa: E402

from worldloop.core.files import to_json, write_file  # noqa: E402
from worldloop.core.randomness import derive_seed, make_generator  # noqa: E402
from worldloop.core.statistics import auc, estimate_by_label, estimate_over_seeds  # noqa: E402
from worldloop.core.types import Observation  # noqa: E402
from worldloop.evaluation.episode_values import SHARES, EpisodeFrames, choose_fold, judge_critic  # noqa: E402
from worldloop.evaluation.value_at_events import find_all_events, judge_at_events  # noqa: E402
from worldloop.stages.context import StageContext  # noqa: E402
from worldloop.storage.run_state import LoopState  # noqa: E402
from worldloop.value.config import ValueConfig  # noqa: E402
from worldloop.value.critic import Critic, ValueRows, average_value, fit_critic  # noqa: E402
from worldloop.world_model.model import VideoWorldModel  # noqa: E402

VIVA, NUM_STEPS = ["value.kind=viva"], {"viva": 400, "categorical": 800, "success": 800}
SETTINGS = {
    "viva": VIVA,
    "viva_random": [*VIVA, "value.from_world_model=false"],
    "viva_no_future": [*VIVA, "value.future_weight=0"],
    "viva_64": [*VIVA, "value.copies=64"],
    "viva_all": [*VIVA, "value.copies=all"],
    "viva_64_uniform": [*VIVA, "value.copies=64", "value.pure_noise_share=0"],
    "viva_all_uniform": [*VIVA, "value.copies=all", "value.pure_noise_share=0"],
    "categorical": [],
    "success": ["value.kind=success", "value.target=outcome"],
    "shuffled": VIVA,
}
SHARES_OF_LABELS = {"25": 0.25, "50": 0.5}
ARMS = (*SETTINGS, *(f"{arm}_{share}" for arm in ("viva", "categorical") for share in SHARES_OF_LABELS))
IMAGINED_FRAMES = 3
BATCH_SIZE = 64


def measure(task: str, seed: int, overrides: list[str], arms: Sequence[str]) -> None:
    """Write measured.json into TASK-seedN-viva beside the loop."""
    for name in arms:
        base, _, share = name.rpartition("_")
        settings = SETTINGS[name] if name in SETTINGS else SETTINGS[base]
        context, state = open_beside(configure(task, seed, [*settings, *overrides]), "viva", f"{task} {seed}")
        out = context.models.run_dir / "measured.json"
        measured: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
        if name in measured:
            continue
        measured[name] = judge(name, SHARES_OF_LABELS.get(share, 1.0), state, context)
        write_file(out, to_json(measured), out.name)
        print(task, seed, name, json.dumps(measured[name]), flush=True)


def judge(name: str, share: float, state: LoopState, context: StageContext) -> dict[str, Any]:
    """Fit the critic of the arm ``name`` on ``share`` of the initial states, and judge it on held-out episodes."""
    value = context.config_of(ValueConfig)
    train, held_out = (open_frames(split, state, context) for split in ("train", "validation"))
    chosen = np.array([choose_fold(meta.initial_state_id, 100) < 100 * share for meta in train.metas])
    rows = torch.from_numpy(np.flatnonzero(np.repeat(chosen, train.num_frames)))
    generator = make_generator(context.seed, "viva", name)
    returns = torch.from_numpy(train.returns)
    if name == "shuffled":
        returns = returns[torch.randperm(len(returns), generator=generator)]

    def load(numbers: Tensor) -> ValueRows:
        return replace(train.load(rows[numbers]), returns=returns[rows[numbers]])

    normalisation = context.store.version(state.dataset).normalisation
    critic = context.models.new_critic(normalisation, state.world_model, derive_seed(context.seed, "viva", name))
    began = time.process_time()
    critic = fit_critic(
        critic.train(),
        load,
        len(rows),
        num_steps=NUM_STEPS[value.kind],
        batch_size=BATCH_SIZE,
        generator=generator,
        reporter=context.reporter,
    )
    fitted = time.process_time()
    values = average_value([critic], held_out.observe(torch.arange(len(held_out)))).numpy()
    ended = time.process_time()
    context.models.save_critic(critic, locate_critic(name))
    judged = judge_critic(held_out, values)
    at_events = judge_at_events(held_out, values, find_all_events(held_out))
    return {
        "num_training_frames": len(rows),
        "real": {source: judgement.to_dict() for source, judgement in judged.items()},
        "imagined": judge_on_imagined(critic, held_out, values, state, context),
        "events": {
            source: {event: change.to_dict() for event, change in changes.items()}
            for source, changes in at_events.items()
        },
        "mean_squared_error": float(np.mean((values - held_out.returns) ** 2)) if value.target == "recap" else None,
        "fit_cpu_seconds": round(fitted - began, 1),
        "ms_per_frame": round(1000 * (ended - fitted) / len(held_out), 2),
    }


def locate_critic(name: str) -> str:
    """The checkpoint of the critic of the arm ``name``."""
    return f"checkpoints/iteration_001/{name}"


def open_frames(split: Any, state: LoopState, context: StageContext) -> EpisodeFrames:
    value, cache = context.config_of(ValueConfig), context.open_cache(state.dataset)
    return EpisodeFrames(
        cache,
        context.spec,
        cache.select(split=split),
        target=value.target,
        num_folds=2,
        future_steps=value.future_steps,
    )


def judge_on_imagined(
    critic: Critic, frames: EpisodeFrames, values: np.ndarray, state: LoopState, context: StageContext
) -> dict[str, Any]:
    """Share of the time limit -> AUC on the policy's episodes, of values of imagined and of the same real frames."""
    world_model = context.models.load_world_model(state.world_model).for_imagination()
    own = np.array([meta.source == "policy" for meta in frames.metas])
    success = np.array([meta.outcome == "success" for meta in frames.metas])
    figures: dict[str, Any] = {}
    for share in SHARES:
        (limit,) = {task.max_episode_steps for task in context.spec.tasks}
        frame = int(share * limit) // frames.cache.actions_per_frame
        chosen = np.flatnonzero(own & (frames.num_frames > frame))
        if frame < IMAGINED_FRAMES or len(chosen) == 0:
            continue
        now = frames.first[chosen] + frame
        imagined = critic.value(imagine_up_to(world_model, frames, now)).double().numpy()
        by_picture = {"imagined": imagined, "real": values[now].astype(np.float64)}
        figures[f"{share:.2f}"] = {
            name: figure and figure.to_dict(with_n=True)
            for name, score in by_picture.items()
            for figure in [estimate_by_label(auc, score, success[chosen])]
        }
    return figures


def imagine_up_to(world_model: VideoWorldModel, frames: EpisodeFrames, now: np.ndarray) -> Observation:
    """The observations at rows ``now``, with pictures and proprio imagined from `IMAGINED_FRAMES` earlier."""
    real = frames.observe(torch.from_numpy(now))
    context = frames.observe(torch.from_numpy(now - IMAGINED_FRAMES))
    episode, frame = frames.index[now].T
    steps = frame[:, None] - np.arange(IMAGINED_FRAMES, 0, -1)
    actions = torch.from_numpy(frames.cache.steps("actions", episode[:, None], steps)).flatten(1, 2)
    start = world_model.start(context, torch.arange(len(now)))
    _, chunk = world_model.imagine(start, actions)
    pictures = {
        camera: torch.cat([real.frames[camera][:, :1], images[:, -2:]], dim=1)
        for camera, images in chunk.frames.items()
    }
    return replace(real, frames=pictures, proprio=chunk.proprio[:, -1])


def report(overrides: list[str]) -> None:
    """Write result.json and viva.png from the loops that have been measured."""
    measured = read_measured(overrides, "viva")
    tasks: dict[str, Any] = {task: {"arms": summarise(seeds), "seeds": seeds} for task, seeds in measured.items()}
    write_file(HERE / "result.json", to_json({"num_steps": NUM_STEPS, "tasks": tasks}), "result.json")
    for task, figures in tasks.items():
        for name, arm in figures["arms"].items():
            shown = " ".join("-" if f is None else f"{f['value']:.3f}" for f in arm["on_policy"].values())
            imagined = " ".join("-" if f is None else f"{f['value']:.3f}" for f in arm["imagined"].values())
            print(f"{task} {name:<18} {arm['num_seeds']} seeds, real {shown}; imagined {imagined}")
            early = arm["viva_minus"][f"{SHARES[0]:.2f}"]
            if name != "viva" and early and early["low"] is not None:
                print(f"    viva minus it: {early['value']:+.3f} ({early['low']:+.3f} to {early['high']:+.3f})")
    plot(tasks, HERE / "viva.png")


def summarise(seeds: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Of each arm the AUC on the policy's episodes by share of the time, with a t-interval over seeds."""
    arms = {}
    for name in ARMS:
        done = [measured[name] for measured in seeds.values() if name in measured]
        if done:
            real = [m["real"].get("on_policy", {"auc": {}})["auc"] for m in done]
            arms[name] = {
                "num_seeds": len(done),
                "on_policy": {f"{share:.2f}": over_seeds([r.get(f"{share:.2f}") for r in real]) for share in SHARES},
                "imagined": {
                    f"{share:.2f}": over_seeds([m["imagined"].get(f"{share:.2f}", {}).get("imagined") for m in done])
                    for share in SHARES
                },
                "viva_minus": {f"{share:.2f}": subtract_from_viva(name, f"{share:.2f}", seeds) for share in SHARES},
            }
    return arms


def subtract_from_viva(name: str, share: str, seeds: dict[int, dict[str, Any]]) -> dict[str, Any] | None:
    """AUC of `viva` minus that of the arm ``name`` on the policy's episodes, with a t-interval over seeds."""
    gaps = []
    for measured in seeds.values():
        pair = [measured[arm]["real"]["on_policy"]["auc"][share] for arm in ("viva", name) if arm in measured]
        if len(pair) == 2 and None not in pair:
            gaps.append(pair[0]["value"] - pair[1]["value"])
    return estimate_over_seeds(gaps).to_dict() | {"by_seed": gaps} if gaps else None


def over_seeds(figures: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    values = [figure["value"] for figure in figures if figure is not None]
    return estimate_over_seeds(values).to_dict() | {"by_seed": values} if values else None


def plot(tasks: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(tasks), figsize=(6.5 * len(tasks), 4), squeeze=False)
    for axis, (task, figures) in zip(axes[0], tasks.items(), strict=True):
        names = [name for name in figures["arms"] if not name.endswith(tuple(SHARES_OF_LABELS))]
        for offset, share in enumerate(SHARES):
            for x, name in enumerate(names):
                arm = figures["arms"][name]["on_policy"][f"{share:.2f}"]
                by_seed = arm["by_seed"] if arm else []
                at = [x + 0.2 * (offset - 1)] * len(by_seed)
                label = f"{100 * share:.0f} % of the time" if x == 0 else None
                axis.plot(at, by_seed, ".", color=f"C{offset}", label=label)
        axis.axhline(0.5, color="k", linewidth=0.8)
        axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axis.set(title=task, ylim=(0.3, 1.02), ylabel="AUC on held-out episodes of the policy")
        axis.legend(loc="lower left", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    measure_or_report(str(__doc__), measure, report, arms=ARMS)
