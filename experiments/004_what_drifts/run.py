"""Experiment 004: what drifts in whole-episode imagination, the image or the proprio?

    python experiments/004_what_drifts/run.py runs/001_closed_loop/loop-seed0 runs/001_closed_loop/loop-seed1 ...

The last world model of each finished run of experiment 001 imagines the run's held-out on-policy episodes from their
first frame, with their recorded actions. After every imagined frame nothing, the proprio, the frame, or both are put
back to what was simulated; what improves most is what drifts. The runs are only read.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldloop.core.errors import WorldloopError
from worldloop.core.randomness import make_row_keys
from worldloop.core.statistics import auc, estimate, estimate_mean
from worldloop.evaluation.fidelity import compute_mean_psnr
from worldloop.evaluation.open_loop import Branches
from worldloop.factory.checkpoints import load_world_model
from worldloop.networks.views import map_views
from worldloop.sans.clips import ClipDataset
from worldloop.sans.store import SansStore
from worldloop.storage.run_directory import RunDirectory
from worldloop.world_model.model import VideoWorldModel
from worldloop.world_model.state import ImaginationState

HERE = Path(__file__).resolve().parent
RESETS = {"nothing": (), "proprio": ("proprio",), "frame": ("frame",), "both": ("frame", "proprio")}


def imagine(world_model: VideoWorldModel, dataset: ClipDataset, episodes: Tensor, reset: tuple[str, ...]) -> Branches:
    """Whole episodes, with what ``reset`` names put back to reality after every frame."""
    index = torch.stack([episodes, torch.zeros_like(episodes)], dim=1)
    truth = dataset.load(index, int(dataset.cache.num_steps[episodes.numpy()].max()))
    state = world_model.start(dataset.observation(index), make_row_keys(len(episodes), "experiments/004"))
    true_low_dim = world_model.normalise(truth.proprio, truth.landmarks)
    frames: list[dict[str, Tensor]] = []
    proprio, logit = [], []
    for m in range(truth.valid.shape[1]):
        state, chunk = world_model.imagine(state, truth.actions[:, m])
        frames.append(chunk.frames)
        proprio.append(chunk.proprio)
        logit.append(chunk.success_logit.float())
        if "frame" in reset:
            state = put_frame(world_model, state, {camera: seen[:, m : m + 1] for camera, seen in truth.frames.items()})
        if "proprio" in reset:
            state = replace(state, low_dim=true_low_dim[:, m])
    seen = map_views(lambda *images: torch.cat(images, 1), *frames)
    return Branches(seen, torch.cat(proprio, 1), torch.cat(logit, 1), truth)


@torch.no_grad()
def put_frame(world_model: VideoWorldModel, state: ImaginationState, frame: dict[str, Tensor]) -> ImaginationState:
    """``state`` with ``frame``, camera -> u8 [B, 1, h, w, 3], in place of the one that was imagined last."""
    real = world_model.encode(frame)
    context = map_views(lambda known, new: torch.cat([known[:, :-1], new], dim=1), state.context, real)
    with world_model.autocast():
        return replace(state, memory=world_model.denoiser.remember(context, state.instruction))


def measure_run(run: Path) -> dict[str, Any]:
    state = RunDirectory(run).read_state()
    if state.next_stage:
        raise WorldloopError(f"{run} is not finished: run experiment 001 first")
    store = SansStore(run / "sans")
    world_model = load_world_model(run / state.world_model).for_imagination()
    spec = world_model.spec
    cache = store.open_cache(store.version(state.dataset))
    dataset = ClipDataset(cache, "validation", spec.robot.camera_names, spec.tasks)
    episodes = dataset.episode_index(source="policy")
    figures: dict[str, Any] = {"run": run.name, "n": len(episodes), "reset": {}}
    for name, reset in RESETS.items():
        branches = imagine(world_model, dataset, episodes, reset)
        score, success = branches.best_logit.numpy(), branches.succeeds.numpy()
        valid = branches.truth.valid
        psnr_db = compute_mean_psnr(branches).masked_fill(~valid, torch.nan)
        psnr_mean = estimate_mean(psnr_db.nanmean(1).numpy())
        assert psnr_mean is not None
        figures["num_success"] = int(success.sum())
        figures["reset"][name] = {
            "auc": estimate(auc, score, success).to_dict(),
            "psnr_db": psnr_mean.to_dict(with_n=True),
        }
        print(f"{run.name} {name:8} {figures['reset'][name]}", flush=True)
    return figures


def plot(runs: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(8, 3.4))
    for axes, metric in zip(panels, ("auc", "psnr_db"), strict=True):
        for number, run in enumerate(runs):
            values = [run["reset"][name][metric] for name in RESETS]
            centre = [v["value"] for v in values]
            error = np.abs([[v["value"] - v["low"], v["high"] - v["value"]] for v in values]).T
            x = np.arange(len(RESETS)) + 0.15 * (number - (len(runs) - 1) / 2)
            axes.errorbar(x, centre, yerr=error, fmt="o", capsize=3, label=run["run"])
        axes.set_xticks(range(len(RESETS)), list(RESETS))
        axes.set(title=metric, xlabel="put back to reality after every frame")
    panels[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="finished run directories of experiment 001, arm loop")
    torch.set_num_threads(2)
    runs = [measure_run(run) for run in parser.parse_args().runs]
    (HERE / "result.json").write_text(json.dumps({"schema_version": 1, "runs": runs}, indent=1) + "\n")
    plot(runs, HERE / "drift.png")


if __name__ == "__main__":
    main()
