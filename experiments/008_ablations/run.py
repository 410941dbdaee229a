"""Experiment 008: what makes a world model's reward trustworthy?

    python experiments/008_ablations/run.py fit ARM RUN OUT      # RUN: a run directory with SANS version v001
    python experiments/008_ablations/run.py report [OUT ...]     # the OUTs of fit into result.json; arms.png

``fit`` trains one world model from nothing on a run's scripted episodes and those of its clone, with the settings of
``configs/pushcube_cpu.yaml`` but for the arm's one change, and imagines the held-out episodes. Equal steps, one
thread each. RUN is that of experiment 006 on PushCube, as a link whose name ends in the training seed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from worldloop.loop.session import Session
from worldloop.stages.data import open_clips

from worldloop.config.loading import load_config
from worldloop.core.interfaces import WorldModelOutput
from worldloop.core.statistics import auc, bootstrap_interval
from worldloop.core.success import find_highest_confirmed
from worldloop.core.types import Clip
from worldloop.evaluation.open_loop import SOURCES, imagine_episodes
from worldloop.reporting.progress import TerminalDisplay
from worldloop.sans.clips import ClipDataset
from worldloop.stages import check_world_model, fit_world_model
from worldloop.storage.run_state import LoopState
from worldloop.world_model.denoiser import FrameMemory
from worldloop.world_model.heads import SuccessHead
from worldloop.world_model.hybrid import HybridDenoiser
from worldloop.world_model.self_rollout import SelfRolloutPool

HERE = Path(__file__).resolve().parent
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

    def update(self, clip: Clip, output: WorldModelOutput) -> None:
        difference = (output.next_frames.float() - clip.frames[:, 0].float()).abs().mean(-1) / 255
        worst = torch.nn.functional.avg_pool2d(difference[:, None], 8, 4).flatten(1).amax(1)
        drifted = worst > worst.quantile(0.8)
        index = clip.index.clone()
        index[drifted, 1] = 10**6  # as if the episode had ended
        super().update(replace(clip, index=index), replace(output, is_prediction=output.is_prediction | drifted))


def patch(arm: str) -> None:
    """Changes that no setting makes."""
    if arm == "real_proprio_in_pool":
        fit_world_model.SelfRolloutPool = RealProprioPool  # type: ignore[misc]
    if arm == "head_without_proprio":
        read = SuccessHead.read_frame

        def read_frame_alone(self: SuccessHead, first: Tensor, frame: Tensor, proprio: Tensor) -> Tensor:
            return read(self, first, frame, torch.zeros_like(proprio))

        SuccessHead.read_frame = read_frame_alone  # type: ignore[method-assign]
    if arm == "drop":
        fit_world_model.SelfRolloutPool = DropPool  # type: ignore[misc]
    if arm == "stops_at_success":
        begin = ClipDataset.__init__

        def without_what_follows(self: ClipDataset, *given: Any) -> None:
            begin(self, *given)
            if self.split == "train":
                keep = self.candidates[:, 1] < self.num_open_steps[self.candidates[:, 0]]
                self.candidates, self.candidate_motion = self.candidates[keep], self.candidate_motion[keep]

        ClipDataset.__init__ = without_what_follows  # type: ignore[method-assign, assignment]
    if arm == "no_anchor":
        forward = HybridDenoiser.forward

        def without_first(
            self: HybridDenoiser, noisy: Tensor, t: Tensor, memory: FrameMemory, conditioning: Any
        ) -> Any:
            frames = torch.cat([memory.frames[:, -1:], memory.frames[:, 1:]], dim=1)
            return forward(self, noisy, t, FrameMemory(frames), conditioning)

        HybridDenoiser.forward = without_first  # type: ignore[method-assign]


def fit(arm: str, run: Path, out: Path) -> None:
    """Fit one world model, check it, and leave ``result.json`` in ``out``."""
    if (out / "result.json").exists():
        raise SystemExit(f"{out} has a result already")
    patch(arm)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / "sans").symlink_to((run / "sans").resolve())
    seed = int(run.name[-1])
    path = HERE.parents[1] / "configs/pushcube_cpu.yaml"
    config = load_config(path, [*COMMON, f"seed={seed}", *ARMS[arm]])
    context: Any = Session(config, out, f"{arm}, seed {seed}", None, TerminalDisplay())  # type: ignore[arg-type]
    state, begin = LoopState(iteration=1, dataset=VERSION), time.time()
    state = fit_world_model.run(state, config.fit_world_model, config.clips, context)
    fit_s = time.time() - begin
    state = check_world_model.run(state, config.check_world_model, context)
    world_model = context.load_world_model(state.world_model).eval()
    dataset = open_clips(context, VERSION, "validation")
    own: dict[str, Any] = {}
    for source, names in SOURCES.items():
        episodes = dataset.episode_index(source=names)
        if not len(episodes):
            continue
        branches = imagine_episodes(world_model, dataset, episodes, batch_size=64, seed=context.seed).branches
        k, valid = branches.confirm_frames, branches.truth.valid
        own[source] = {
            "logit": find_highest_confirmed(branches.logit, valid, k).tolist(),
            "logit_of_single_frames": find_highest_confirmed(branches.logit, valid, 0).tolist(),
            "is_success": branches.succeeds.tolist(),
        }
    record = state.records[1]
    result = {
        "arm": arm,
        "seed": seed,
        "overrides": [*COMMON, *ARMS[arm]],
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
    commands.add_parser("report").add_argument("outs", type=Path, nargs="*")
    given = parser.parse_args()
    fit(given.arm, given.run, given.out) if given.command == "fit" else report(given.outs)


if __name__ == "__main__":
    main()
