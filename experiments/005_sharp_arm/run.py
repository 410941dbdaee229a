"""Experiment 005: does a world model drift less when its arm is drawn from proprio?

    python experiments/005_sharp_arm/run.py render RUN OUT          # RUN: a finished loop run of experiment 001
    python experiments/005_sharp_arm/run.py fit ARM DATA OUT        # ARM: before | now | no_poses | no_supersampling
    python experiments/005_sharp_arm/run.py report OUT ...          # every OUT of fit: result.json and arms.png here

``render`` copies the episodes of a run and renders their frames again from the stored simulator states, at twice the
resolution, averaged; rendered at the stored resolution they are the stored frames up to single pixels, which it
verifies. ``fit`` trains one world model from nothing on all of the run's episodes and checks it on the held-out ones.
`before` is run with a checkout of commit 81d31d1 on PYTHONPATH. Every arm gets about the same time on one thread.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from worldloop.loop.session import Session
from worldloop.stages.data import open_clips

import worldloop
from worldloop.config.loading import load_config
from worldloop.core.statistics import auc, bootstrap_interval
from worldloop.evaluation.open_loop import imagine_episodes
from worldloop.reporting.progress import TerminalDisplay
from worldloop.sans.store import SansStore
from worldloop.stages import check_world_model, fit_world_model
from worldloop.storage.run_state import LoopState

HERE = Path(__file__).resolve().parent
CONFIGS = Path(worldloop.__file__).parents[1] / "configs"  # those of the code on PYTHONPATH
VERSION = "v002"  # the last SANS version of a run with two iterations
SIZE, FACTOR = 64, 2
COMMON = [
    "runtime=inline",
    "resources.num_threads=1",
    "check_world_model.probe_steps=300",
    "check_world_model.num_videos=0",
]
NOW = ["fit_world_model.num_steps=800", "fit_world_model.num_proprio_steps=1000"]
ARMS = {
    "before": ["fit_world_model.num_steps=1100"],  # no poses, no phase of its own for the proprio head: more steps
    "now": NOW,
    "no_poses": [*NOW, "world_model.hybrid.num_poses=0"],
    "no_supersampling": NOW,  # on the run itself instead of the data that `render` made
}


def render(run: Path, out: Path) -> None:
    """Copy ``run``'s episodes to ``out`` with anti-aliased frames, in the decoded cache that training reads."""
    from worldloop.simulators.maniskill.simulator import ManiSkillConfig, ManiSkillSimulator
    from worldloop.simulators.maniskill.tasks import MANISKILL_STATE_DIM

    SansStore(run / "sans").open_cache(SansStore(run / "sans").version(VERSION))
    shutil.copytree(run / "sans", out / "sans")
    simulators = [
        ManiSkillSimulator(ManiSkillConfig(image_size=SIZE, supersampling=n, backend="cpu")) for n in (1, FACTOR)
    ]

    def draw(simulator: Any, state: np.ndarray) -> np.ndarray:
        simulator._env.set_state(torch.from_numpy(state[None, :MANISKILL_STATE_DIM]).float())
        simulator._num_rows = 1
        return simulator._render()[0].numpy()

    for part in sorted(p for p in (out / "sans" / "cache").iterdir() if p.is_dir()):
        states, stored = np.load(part / "sim_state.npy"), np.load(part / "frames.base_camera.npy")
        for row in range(0, len(states), 97):
            difference = np.abs(draw(simulators[0], states[row]).astype(int) - stored[row]).mean()
            if difference > 0.1:  # grey levels; an edge pixel may flip, since poses are computed from stored joints
                raise SystemExit(f"{part.name}: frame {row} is {difference:.2f} off what its state renders to")
        frames = np.stack([draw(simulators[1], state) for state in states])
        motion, first = [], 0
        for record in json.loads((part / "cache.json").read_text())["episodes"]:
            episode = frames[first : first + record["num_steps"] + 1].astype(np.int16)
            motion.append(np.abs(episode[1:] - episode[:-1]).reshape(len(episode) - 1, -1).mean(1))
            first += len(episode)
        np.save(part / "frames.base_camera.npy", frames)
        np.save(part / "motion.base_camera.npy", np.concatenate(motion).astype(np.float32))
        print(f"{part.name}: {len(frames)} frames", flush=True)


def fit(arm: str, data: Path, out: Path) -> None:
    """Fit one world model, check it, and leave ``result.json`` in ``out``."""
    if (out / "result.json").exists():
        raise SystemExit(f"{out} has a result already")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / "sans").symlink_to((data / "sans").resolve())
    seed = int(data.name[-1])
    config = load_config(CONFIGS / "pushcube_cpu.yaml", [*COMMON, f"seed={seed}", *ARMS[arm]])
    context: Any = Session(config, out, f"{arm}, seed {seed}", None, TerminalDisplay())  # type: ignore[arg-type]
    state, begin = LoopState(iteration=1, dataset=VERSION), time.time()
    state = fit_world_model.run(state, config.fit_world_model, config.clips, context)
    fit_s = time.time() - begin
    state = check_world_model.run(state, config.check_world_model, context)
    world_model = context.load_world_model(state.world_model).eval()
    dataset = open_clips(context, VERSION, "validation")
    episodes = dataset.episode_index(source="policy")
    own = imagine_episodes(world_model, dataset, episodes, batch_size=64, seed=context.seed)
    record = state.records[1]
    result = {
        "arm": arm,
        "seed": seed,
        "overrides": [*COMMON, *ARMS[arm]],
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
    commands.add_parser("report").add_argument("outs", type=Path, nargs="+")
    given = parser.parse_args()
    if given.command == "render":
        render(given.run, given.out)
    elif given.command == "fit":
        fit(given.arm, given.data, given.out)
    else:
        report(given.outs)


if __name__ == "__main__":
    main()
