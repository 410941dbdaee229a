"""Held-out fidelity and reward alignment of the world model, whole episodes open loop; calibrates the success head.

Every validation episode is imagined from its first frame with its recorded actions. Its score is the highest
success probability on the way; its label is the simulator's. Scripted and on-policy episodes are reported apart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldloop.imagination import SuccessCalibration
from worldloop.metrics.alignment import compute_alignment
from worldloop.metrics.lpips import compute_lpips
from worldloop.metrics.video import compute_psnr, compute_ssim
from worldloop.randomness import make_row_keys
from worldloop.sans.clips import ClipDataset
from worldloop.stages.context import Context
from worldloop.stages.data import open_clips
from worldloop.stages.state import LoopState
from worldloop.statistics import best_threshold, fit_temperature
from worldloop.types import Outcome


@dataclass(frozen=True)
class CheckWorldModelConfig:
    batch_size: int = 64  # episodes imagined at once
    num_videos: int = 4  # imagined | simulated pairs written to TensorBoard, per source
    max_episodes: int = 400  # validation episodes per source, at most (the latest)

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.max_episodes < 1 or self.num_videos < 0:
            raise ValueError("check_world_model: batch_size and max_episodes must be >= 1, num_videos >= 0")


@dataclass(frozen=True)
class OpenLoop:
    """What the model imagined for n episodes: ``logit`` [n] is the highest over valid frames.

    ``frames`` u8 [n, F, h, w, 3] imagined, ``clip`` the truth; ``outcomes``, ``is_success`` [n], ``episode`` [n].
    """

    logit: np.ndarray
    is_success: np.ndarray
    outcomes: tuple[Outcome, ...]
    episode: np.ndarray
    psnr_db: np.ndarray
    ssim: np.ndarray
    frames: Tensor
    truth: Tensor
    valid: Tensor


def run(state: LoopState, config: CheckWorldModelConfig, context: Context) -> LoopState:
    """Calibrate on all validation episodes, record alignment and fidelity by source."""
    world_model = context.load_world_model(state.world_model).to(context.device).eval()
    dataset = open_clips(context, state.dataset, "validation")
    by_source: dict[str, OpenLoop] = {}
    for name, sources in (("scripted", ("expert", "perturbed")), ("on_policy", ("policy",))):
        episodes = dataset.episode_index(source=sources)[-config.max_episodes :]
        if len(episodes):
            by_source[name] = imagine_episodes(world_model, dataset, episodes, config.batch_size, context)
    calibration = calibrate(by_source)
    alignment: dict[str, Any] = {}
    for name in ("scripted", "on_policy"):
        alignment[name] = align(by_source[name], calibration) if name in by_source else None
        if alignment[name] is None:
            alignment[f"{name}_reason"] = "no validation episodes of this source"
        else:
            context.log(f"{name}: " + describe(alignment[name]))
    _write_videos(by_source, config.num_videos, state.iteration, context)
    figures = fidelity(list(by_source.values()))
    return replace(state, calibration=vars(calibration).copy()).record(reward_alignment=alignment, **figures)


def imagine_episodes(
    world_model: Any, dataset: ClipDataset, episodes: Tensor, batch_size: int, context: Context
) -> OpenLoop:
    """Open loop over the whole of each episode, from its first frame."""
    parts: list[tuple[Any, ...]] = []
    num_frames = int(dataset.cache.num_steps[episodes.numpy()].max())
    with context.progress(len(episodes), "episode") as progress:
        for block in episodes.split(batch_size):
            index = torch.stack([block, torch.zeros_like(block)], dim=1)
            clip = dataset.load(index, num_frames)
            keys = make_row_keys(len(block), context.seed, "check_world_model", int(block[0]))
            imagined = world_model.imagine(
                world_model.start(dataset.observation(index), keys), clip.actions.flatten(1, 2)
            )[1]
            frames, logit = imagined.frames.cpu(), imagined.success_logit.float().cpu()
            logit = logit.masked_fill(~clip.valid, -torch.inf).amax(1)
            psnr_db, ssim = (f(frames, clip.frames, clip.valid).numpy() for f in (compute_psnr, compute_ssim))
            parts.append((logit, frames, clip, psnr_db, ssim))
            progress.advance(len(block))
    logit = torch.cat([p[0] for p in parts]).numpy()
    clips = [p[2] for p in parts]
    is_success = torch.cat([(c.success * c.valid).amax(1) > 0 for c in clips]).numpy()
    return OpenLoop(
        logit=logit,
        is_success=is_success,
        outcomes=tuple(dataset.cache.metas[e].outcome for e in episodes.tolist()),
        episode=episodes.numpy(),
        psnr_db=np.concatenate([p[3] for p in parts]),
        ssim=np.concatenate([p[4] for p in parts]),
        frames=torch.cat([p[1] for p in parts]),
        truth=torch.cat([c.frames for c in clips]),
        valid=torch.cat([c.valid for c in clips]),
    )


MIN_CALIBRATION_EPISODES = 8  # of each outcome


def calibrate(by_source: dict[str, OpenLoop]) -> SuccessCalibration:
    """Platt scaling and the threshold of best balanced accuracy; the identity without both outcomes.

    On the policy's own episodes where there are enough of both outcomes, since that is what the reward will judge;
    else on all.
    """
    results = list(by_source.values())
    own = by_source.get("on_policy")
    if own is not None and min(own.is_success.sum(), (~own.is_success).sum()) >= MIN_CALIBRATION_EPISODES:
        results = [own]
    logit = np.concatenate([r.logit for r in results]) if results else np.zeros(0)
    label = np.concatenate([r.is_success for r in results]) if results else np.zeros(0, bool)
    if len(label) == 0 or label.all() or not label.any():
        return SuccessCalibration()
    scale, bias = fit_temperature(logit, label)
    probability = 1 / (1 + np.exp(-(scale * logit + bias)))
    threshold = float(np.clip(best_threshold(probability, label), 0.2, 0.8))
    return SuccessCalibration(round(scale, 6), round(bias, 6), round(threshold, 6))


def align(result: OpenLoop, calibration: SuccessCalibration) -> dict[str, Any]:
    probability = calibration.probability(torch.from_numpy(result.logit)).numpy()
    return compute_alignment(probability, result.is_success, result.outcomes, calibration.threshold)


def describe(alignment: dict[str, Any]) -> str:
    """One line for the log, e.g. ``AUC .943 (.91-.97), balanced accuracy .85 (.80-.90), n 50``."""
    parts = []
    for name in ("auc", "balanced_accuracy"):
        score = alignment[name]
        text = "-" if score is None else f"{score['value']:.3f} ({score['low']:.3f}-{score['high']:.3f})"
        parts.append(f"{name.replace('_', ' ')} {text}")
    return ", ".join([*parts, f"n {alignment['n']}"])


def fidelity(results: list[OpenLoop]) -> dict[str, Any]:
    """Mean PSNR, SSIM and LPIPS over all validation episodes; null with a reason where there is none."""
    if not results:
        reason = "no validation episodes"
        return dict.fromkeys(("psnr_db", "ssim", "lpips")) | {"psnr_db_reason": reason, "lpips_reason": reason}
    psnr_db = float(np.concatenate([r.psnr_db for r in results]).mean())
    ssim = float(np.concatenate([r.ssim for r in results]).mean())
    figures: dict[str, Any] = {"psnr_db": round(psnr_db, 4), "ssim": round(ssim, 4)}
    distances = [compute_lpips(r.frames, r.truth, r.valid) for r in results]
    values = [value for value, _ in distances if value is not None]
    if not values:
        return figures | {"lpips": None, "lpips_reason": distances[0][1]}
    return figures | {"lpips": round(float(torch.cat(values).mean()), 4)}


def _write_videos(by_source: dict[str, OpenLoop], count: int, iteration: int, context: Context) -> None:
    """Imagined on the left, simulated on the right, half successes and half failures, the first of each."""
    fps = context.spec.hz / context.spec.actions_per_frame
    with context.writer("check_world_model", purge_step=iteration) as writer:
        for name, result in by_source.items():
            wanted = [*np.flatnonzero(result.is_success)[: -(-count // 2)], *np.flatnonzero(~result.is_success)]
            for row in wanted[:count]:
                length = int(result.valid[row].sum())
                pair = torch.cat([result.frames[row, :length], result.truth[row, :length]], dim=2)
                tag = f"check_world_model/{name}_{result.outcomes[row]}_{int(result.episode[row]):05d}"
                writer.video(tag, iteration, pair, fps)
