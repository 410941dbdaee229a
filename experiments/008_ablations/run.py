"""Experiment 008: what makes a world model's reward trustworthy?

    python experiments/008_ablations/run.py fit ARM RUN OUT [key=value ...]   # RUN: a run with SANS version v001
    python experiments/008_ablations/run.py report [OUT ...]                  # OUT of fit: result.json, arms.png

``fit`` trains one world model from nothing on a run's scripted episodes and those of its clone, with the settings of
``configs/pushcube_cpu.yaml`` but for the arm's one change, and imagines the held-out episodes. Equal steps, one
thread each. RUN is that of experiment 006 on PushCube, as a link whose name ends in the training seed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from worldloop.config.loading import load_config
from worldloop.core.statistics import auc, bootstrap_interval
from worldloop.core.success import find_highest_confirmed
from worldloop.core.types import Clip
from worldloop.networks.views import map_views
from worldloop.sans.clips import BalancedClipSampler, ClipSamplingConfig
from worldloop.stages import fit_world_model
from worldloop.stages.context import StageContext
from worldloop.storage.run_state import LoopState
from worldloop.world_model import training
from worldloop.world_model.denoiser import Conditioning, DenoiserOutput, FrameMemory
from worldloop.world_model.heads import SuccessHead
from worldloop.world_model.hybrid import HybridDenoiser
from worldloop.world_model.self_rollout import OwnPrediction, SelfRolloutPool

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from common import CONFIGS, imagine_all, link_dataset, open_context, run_stage  # noqa: E402

VERSION = "v001"
COMMON = [
    "runtime=inline",
    "resources.num_threads=1",
    "check_world_model.probe_steps=300",
    "check_world_model.num_videos=0",
]
ARMS: dict[str, list[str]] = {
    "now": [],
    "no_self_rollout": ["world_model.self_rollout.share=0"],
    "head_without_proprio": [],
    "real_proprio_in_pool": [],
    "stops_at_success": [],
    "no_near_success": ["clips.near_success=false"],
    "no_anchor": [],
    "no_poses": ["world_model.hybrid.num_poses=0"],
    "linear_patches": ["world_model.hybrid.patch_hidden=1"],
    "two_steps": ["world_model.num_sampler_steps=2", "world_model.zero_time_share=0.5"],
    "l1": ["world_model.video_loss=l1"],
    "drop": [],
    "four_steps": ["world_model.num_sampler_steps=4", "world_model.zero_time_share=0.5"],
}


class RealProprioPool(SelfRolloutPool):
    """Carries the model's frames only; beside them stands the proprio that was recorded."""

    def compose(self, choose: Callable[[int], Tensor], load: Callable[[Tensor, int], Clip]) -> Clip:
        clip = super().compose(choose, load)
        return replace(clip, context_proprio=load(clip.index, 1).context_proprio)


class DropPool(SelfRolloutPool):
    """Drops the fifth of each batch whose prediction is worst somewhere (8 px blocks, half overlapping).

    What has drifted far has a target that no longer follows from its context, and teaches the model to hedge.
    """

    def update(self, clip: Clip, prediction: OwnPrediction) -> None:
        worst = torch.stack(
            [find_worst_block(frames, clip.frames[camera][:, 0]) for camera, frames in prediction.frames.items()]
        ).amax(0)
        drifted = worst > worst.quantile(0.8)
        index = clip.index.clone()
        index[drifted, 1] = 10**6  # as if the episode had ended
        is_prediction = prediction.is_prediction | drifted
        super().update(replace(clip, index=index), replace(prediction, is_prediction=is_prediction))


def find_worst_block(predicted: Tensor, target: Tensor) -> Tensor:
    """f32 [B]: the largest mean difference of a block of u8 [B, h, w, 3], in shares of the grey levels."""
    difference = (predicted.float() - target.to(predicted.device).float()).abs().mean(-1) / 255
    return functional.avg_pool2d(difference[:, None], 8, 4).flatten(1).amax(1)


def patch(arm: str) -> AbstractContextManager[Any]:
    """What no setting changes; in force while it is entered."""
    if arm == "real_proprio_in_pool":
        return mock.patch.object(training, "SelfRolloutPool", RealProprioPool)
    if arm == "drop":
        return mock.patch.object(training, "SelfRolloutPool", DropPool)
    if arm == "head_without_proprio":
        return mock.patch.object(SuccessHead, "read_frame", read_frame_alone)
    if arm == "stops_at_success":
        return mock.patch.object(fit_world_model, "open_training_clips", open_clips_up_to_success)
    if arm == "no_anchor":
        return mock.patch.object(HybridDenoiser, "forward", denoise_without_first)
    return nullcontext()


_read_frame, _denoise = SuccessHead.read_frame, HybridDenoiser.forward


def read_frame_alone(
    self: SuccessHead, first: Mapping[str, Tensor], frame: Mapping[str, Tensor], proprio: Tensor, instruction: Tensor
) -> Tensor:
    return _read_frame(self, first, frame, torch.zeros_like(proprio), instruction)


def denoise_without_first(
    self: HybridDenoiser, noisy: Mapping[str, Tensor], t: Tensor, memory: FrameMemory, conditioning: Conditioning
) -> DenoiserOutput:
    """The frame now stands where the episode's first would."""
    frames = map_views(lambda known: torch.cat([known[:, -1:], known[:, 1:]], dim=1), memory.frames)
    return _denoise(self, noisy, t, FrameMemory(frames), conditioning)


def open_clips_up_to_success(state: LoopState, context: StageContext) -> BalancedClipSampler:
    """As `fit_world_model.open_training_clips`, without the frames that follow a success."""
    dataset = context.open_clips(state.dataset, "train")
    is_open = dataset.candidates[:, 1] < dataset.num_open_steps[dataset.candidates[:, 0]]
    dataset.candidates, dataset.candidate_motion = dataset.candidates[is_open], dataset.candidate_motion[is_open]
    return BalancedClipSampler(dataset, context.config_of(ClipSamplingConfig))


def fit(arm: str, run: Path, out: Path, overrides: list[str]) -> None:
    """Fit one world model, check it, and leave ``result.json`` in ``out``."""
    link_dataset(run, out)
    seed = int(run.name[-1])
    changes = [*COMMON, *ARMS[arm], *overrides]
    config = load_config(CONFIGS / "pushcube_cpu.yaml", [*changes, f"seed={seed}"])
    context = open_context(config, out, f"{arm}, seed {seed}")
    with patch(arm):
        begin = time.time()
        state = run_stage("fit_world_model", LoopState(iteration=1, dataset=VERSION), context)
        fit_s = time.time() - begin
        state = run_stage("check_world_model", state, context)
        world_model = context.models.load_world_model(state.world_model).for_imagination()
        imagined = imagine_all(world_model, VERSION, context)
    own: dict[str, Any] = {}
    for source, episodes in imagined.items():
        branches = episodes.branches
        own[source] = {
            "logit": episodes.logit.tolist(),
            "logit_of_single_frames": find_highest_confirmed(branches.logit, branches.truth.valid, 0).tolist(),
            "is_success": episodes.is_success.tolist(),
        }
    record = state.records[1]
    result = {
        "arm": arm,
        "seed": seed,
        "overrides": changes,
        "fit_s": round(fit_s),
        "world_model_check": record["world_model_check"],
        "episodes": own,
    }
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n")


FIGURES = ("auc", "auc_of_single_frames", "auc_of_outcome_classifier", "auc_scripted", "psnr_db", "object_error_cm_end")


def summarise(result: dict[str, Any]) -> dict[str, Any]:
    """What is kept of one fit: its figures, and what every held-out episode of the policy got."""
    own, check = result["episodes"]["on_policy"], result["world_model_check"]["on_policy"]
    scripted = result["episodes"]["scripted"]
    figures = {
        "auc": auc(np.array(own["logit"]), np.array(own["is_success"])),
        "auc_of_single_frames": auc(np.array(own["logit_of_single_frames"]), np.array(own["is_success"])),
        "auc_of_outcome_classifier": check["visual_alignment"]["imagined"]["auc"]["value"],
        "auc_scripted": auc(np.array(scripted["logit"]), np.array(scripted["is_success"])),
        "psnr_db": check["psnr_db"]["mean"]["value"],
        "object_error_cm_end": check["object_error_cm"]["end"]["value"],
    }
    return {
        **{name: result[name] for name in ("arm", "seed", "fit_s")},
        **{name: round(value, 4) for name, value in figures.items()},
        "auc_interval": interval(own),
        "n_scripted": len(scripted["logit"]),
        "logit": [round(logit, 3) for logit in own["logit"]],
        "is_success": [int(succeeds) for succeeds in own["is_success"]],
    }


def compare_auc(runs: list[dict[str, Any]], base: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean over seeds of the arm's on-policy AUC minus that of `now`, resampling held-out episodes within each seed."""
    by_seed = {r["seed"]: r for r in base}
    pairs = [(r, by_seed[r["seed"]]) for r in runs]

    def difference(index: list[np.ndarray]) -> float:
        values = []
        for (a, b), rows in zip(pairs, index, strict=True):
            label = np.array(a["is_success"], dtype=bool)[rows]
            values.append(auc(np.array(a["logit"])[rows], label) - auc(np.array(b["logit"])[rows], label))
        return float(np.mean(values))

    sizes = [len(a["is_success"]) for a, _ in pairs]
    rng = np.random.default_rng(0)
    draws = [difference([rng.integers(0, n, n) for n in sizes]) for _ in range(1000)]
    low, high = np.quantile(draws, [0.025, 0.975])
    value = difference([np.arange(n) for n in sizes])
    return {"value": round(value, 4), "low": round(float(low), 4), "high": round(float(high), 4), "n": sizes}


def report(outs: list[Path]) -> None:
    """Add the fits to those in result.json; a fit of the same arm and seed takes the place of the old one."""
    path = HERE / "result.json"
    kept = json.loads(path.read_text())["runs"] if path.exists() else []
    added = [summarise(json.loads((out / "result.json").read_text())) for out in outs]
    runs = sorted({(r["arm"], r["seed"]): r for r in [*kept, *added]}.values(), key=lambda r: r["seed"])
    arms: dict[str, Any] = {}
    by_arm = {arm: [r for r in runs if r["arm"] == arm] for arm in ARMS}
    for arm, own in by_arm.items():
        if own:
            arms[arm] = {
                "seeds": [r["seed"] for r in own],
                "mean": {name: round(float(np.mean([r[name] for r in own])), 4) for name in FIGURES},
                "auc_minus_now": compare_auc(own, by_arm["now"]) if arm != "now" else None,
            }
    result = {"schema_version": 2, "common": COMMON, "arm_overrides": ARMS, "arms": arms, "runs": runs}
    path.write_text(json.dumps(result) + "\n")
    for arm, entry in arms.items():
        print(f"{arm:22s}", entry["mean"], entry["auc_minus_now"], entry["seeds"])
    plot(arms, by_arm)


def interval(own: dict[str, Any]) -> dict[str, float]:
    low, high = bootstrap_interval(auc, np.array(own["logit"]), np.array(own["is_success"]))
    return {"low": round(low, 4), "high": round(high, 4), "n": len(own["logit"])}


def plot(arms: dict[str, Any], by_arm: dict[str, list[dict[str, Any]]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(12, 4), sharey=True)
    for axes, name in zip(panels, ("auc", "psnr_db", "object_error_cm_end"), strict=True):
        for y, (arm, entry) in enumerate(arms.items()):
            axes.plot([r[name] for r in by_arm[arm]], [y] * len(by_arm[arm]), "o", alpha=0.6)
            axes.plot([entry["mean"][name]] * 2, [y - 0.3, y + 0.3], "k-")
        axes.set_yticks(range(len(arms)), [a.replace("_", " ") for a in arms], fontsize=8)
        axes.set_title(f"{name}, on-policy", fontsize=9)
        axes.invert_yaxis()
    figure.tight_layout()
    figure.savefig(HERE / "arms.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("fit")
    command.add_argument("arm", choices=ARMS)
    command.add_argument("run", type=Path)
    command.add_argument("out", type=Path)
    command.add_argument("overrides", nargs="*", metavar="key=value")
    commands.add_parser("report").add_argument("outs", type=Path, nargs="*")
    given = parser.parse_args()
    if given.command == "fit":
        fit(given.arm, given.run, given.out, given.overrides)
    else:
        report(given.outs)


if __name__ == "__main__":
    main()
