"""Experiment 005: does a world model drift less when its arm is drawn from proprio?

    python experiments/005_sharp_arm/run.py render RUN OUT          # RUN: a finished loop run of experiment 001
    python experiments/005_sharp_arm/run.py fit ARM DATA OUT [key=value ...]   # ARM: now | no_poses | no_supersampling
    python experiments/005_sharp_arm/run.py report OUT ...          # every OUT of fit: result.json and arms.png here

RUN is one with ``simulator.maniskill.supersampling=1``, and its name ends in the training seed. ``render`` copies its
episodes and renders their frames again from the stored simulator states, at twice the resolution, averaged; rendered at
the stored resolution they are the stored frames up to single pixels, which it verifies. ``fit`` trains one world model
from nothing on all of the run's episodes and checks it on the held-out ones. Every arm gets about the same time on one
thread. A fourth arm, `before`, was fitted by the code of commit 81d31d1, which this script can no longer run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldloop.config.loading import load_config
from worldloop.core.interfaces import Simulator
from worldloop.core.statistics import auc, bootstrap_interval
from worldloop.core.types import Episode, InitialStates
from worldloop.factory.build import build_simulator
from worldloop.sans.shard import read_shard
from worldloop.sans.store import SansStore
from worldloop.storage.run_state import LoopState

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from common import CONFIGS, imagine_all, link_dataset, open_context, run_stage  # noqa: E402

VERSION = "v002"  # the last SANS version of a run with two iterations
CAMERA, FACTOR = "base_camera", 2
VERIFY_EVERY = 97  # frames
COMMON = [
    "runtime=inline",
    "resources.num_threads=1",
    "check_world_model.probe_steps=300",
    "check_world_model.num_videos=0",
]
NOW = ["fit_world_model.num_steps=800", "fit_world_model.num_proprio_steps=1000"]
ARMS = {
    "now": NOW,
    "no_poses": [*NOW, "world_model.hybrid.num_poses=0"],
    "no_supersampling": NOW,  # on the run itself instead of the data that `render` made
}


def render(run: Path, out: Path) -> None:
    """The dataset of ``run`` in ``out``, with anti-aliased frames."""
    source, target = SansStore(run / "sans"), SansStore(out / "sans")
    stored, smooth = (
        build_simulator(
            load_config(
                run / "config.yaml", [f"simulator.maniskill.supersampling={n}", "simulator.maniskill.num_envs=1"]
            ).simulator
        )
        for n in (1, FACTOR)
    )
    version = source.version(VERSION)
    num_frames = 0
    shards = []
    for shard in version.shards:
        episodes = []
        for episode in read_shard(source.shard_path(shard.name)):
            for frame in range(len(episode.sim_state)):
                if (num_frames + frame) % VERIFY_EVERY == 0:
                    verify(stored, episode, frame)
            frames = np.stack([draw(smooth, episode, frame) for frame in range(len(episode.sim_state))])
            num_frames += len(frames)
            episodes.append(replace(episode, frames={**episode.frames, CAMERA: frames}))
        shards.append(target.append(episodes, shard.name, stored.spec))
        print(f"{shard.name}: {num_frames} frames so far", flush=True)
    target.snapshot(VERSION, shards, normalisation=version.normalisation)


def draw(simulator: Simulator, episode: Episode, frame: int) -> np.ndarray:
    """u8 [h, w, 3]: what ``simulator`` shows in the stored state of ``frame``."""
    meta, state = episode.meta, torch.from_numpy(episode.sim_state[frame][None])
    start = InitialStates(meta.split, (meta.initial_state_id,), (meta.task,), state)
    return simulator.reset(start).frames[CAMERA][0, -1].numpy()


def verify(simulator: Simulator, episode: Episode, frame: int) -> None:
    """``simulator`` renders the stored frame again; ends the script where it does not."""
    difference = np.abs(draw(simulator, episode, frame).astype(int) - episode.frames[CAMERA][frame]).mean()
    if difference > 0.1:  # grey levels; an edge pixel may flip, since poses are computed from stored joints
        raise SystemExit(
            f"{episode.meta.initial_state_id}: frame {frame} is {difference:.2f} off what its state renders to"
        )


def fit(arm: str, data: Path, out: Path, overrides: list[str]) -> None:
    """Fit one world model, check it, and leave ``result.json`` in ``out``."""
    link_dataset(data, out)
    seed = int(data.name[-1])
    changes = [*COMMON, *ARMS[arm], *overrides]
    config = load_config(CONFIGS / "pushcube_cpu.yaml", [*changes, f"seed={seed}"])
    context = open_context(config, out, f"{arm}, seed {seed}")
    begin = time.time()
    state = run_stage("fit_world_model", LoopState(iteration=1, dataset=VERSION), context)
    fit_s = time.time() - begin
    state = run_stage("check_world_model", state, context)
    world_model = context.models.load_world_model(state.world_model).for_imagination()
    own = imagine_all(world_model, VERSION, context)["on_policy"]
    record = state.records[1]
    result = {
        "arm": arm,
        "seed": seed,
        "overrides": changes,
        "fit_s": round(fit_s),
        "reward_alignment": record["reward_alignment"],
        "world_model_check": record["world_model_check"],
        "on_policy": {"logit": [round(v, 4) for v in own.logit.tolist()], "is_success": own.is_success.tolist()},
    }
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n")


def report(outs: list[Path]) -> None:
    """Per arm: the figures of every seed, and their mean."""
    results = [json.loads((out / "result.json").read_text()) for out in outs]
    arms: dict[str, Any] = {}
    for arm in ARMS:
        seeds = sorted((r for r in results if r["arm"] == arm), key=lambda r: r["seed"])
        if seeds:
            arms[arm] = {"seeds": [summarise(r) for r in seeds]}
            arms[arm]["mean"] = average([s["figures"] for s in arms[arm]["seeds"]])
    (HERE / "result.json").write_text(json.dumps({"schema_version": 1, "arms": arms}, indent=1) + "\n")
    for arm, entry in arms.items():
        print(arm, entry["mean"], [s["seed"] for s in entry["seeds"]])
    plot(arms)


def summarise(result: dict[str, Any]) -> dict[str, Any]:
    own, check = result["on_policy"], result["world_model_check"]["on_policy"]
    logit, success = np.array(own["logit"]), np.array(own["is_success"])
    low, high = bootstrap_interval(auc, logit, success)
    figures = {
        "auc": round(auc(logit, success), 4),
        "auc_scripted": result["reward_alignment"]["scripted"]["auc"]["value"],
        "auc_branches_4_chunks": check["horizon"][-1]["branches"]["auc"]["value"],
        "psnr_db": check["psnr_db"]["mean"]["value"],
        "moving_psnr_db": check["moving_psnr_db"]["mean"]["value"],
        "moving_psnr_db_first_frame": check["moving_psnr_db_first_frame"]["mean"]["value"],
        "object_error_cm_end": check["object_error_cm"]["end"]["value"],
        "object_error_cm_floor_end": check["object_error_cm_floor"]["end"]["value"],
        "effector_error_cm_end": check["effector_error_cm"]["end"]["value"],
        "effector_error_cm_floor_end": check["effector_error_cm_floor"]["end"]["value"],
    }
    interval = {name: check[name]["mean"] for name in ("psnr_db", "moving_psnr_db")}
    interval["auc"] = {"low": round(low, 4), "high": round(high, 4), "n": len(logit)}
    return {"seed": result["seed"], "fit_s": result["fit_s"], "figures": figures, "interval": interval}


def average(figures: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(float(np.mean([f[name] for f in figures])), 4) for name in figures[0]}


def plot(arms: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = ("psnr_db", "moving_psnr_db", "object_error_cm_end", "auc")
    figure, panels = plt.subplots(1, len(names), figsize=(12, 3.2))
    for axes, name in zip(panels, names, strict=True):
        for x, entry in enumerate(arms.values()):
            values = [s["figures"][name] for s in entry["seeds"]]
            axes.plot([x] * len(values), values, "o", alpha=0.7)
            axes.plot([x - 0.25, x + 0.25], [entry["mean"][name]] * 2, "k-")
        axes.set_xticks(range(len(arms)), [a.replace("_", "\n") for a in arms], fontsize=7)
        axes.set(title=f"{name}, on-policy")
    figure.tight_layout()
    figure.savefig(HERE / "arms.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("render")
    command.add_argument("run", type=Path)
    command.add_argument("out", type=Path)
    command = commands.add_parser("fit")
    command.add_argument("arm", choices=ARMS)
    command.add_argument("data", type=Path)
    command.add_argument("out", type=Path)
    command.add_argument("overrides", nargs="*", metavar="key=value")
    commands.add_parser("report").add_argument("outs", type=Path, nargs="+")
    given = parser.parse_args()
    if given.command == "render":
        render(given.run, given.out)
    elif given.command == "fit":
        fit(given.arm, given.data, given.out, given.overrides)
    else:
        report(given.outs)


if __name__ == "__main__":
    main()
