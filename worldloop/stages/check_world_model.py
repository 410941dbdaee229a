"""How far can the world model be trusted? Held-out episodes, imagined and compared; calibrates the success head.

Every validation episode is imagined open loop from its first frame with its recorded actions. Its score is the highest
success probability on the way; its label is the simulator's. The same again with the context reset to reality every few
chunks tells how trust falls with the horizon. Scripted and on-policy episodes are reported apart.

The figure that says whether the model is good enough is the AUC of its success head over whole on-policy episodes:
reinforcement learning lives on telling the policy's successes from its failures, over the whole horizon. Below
``required_auc`` the loop fits on, up to ``max_fits`` times, and then collects instead of improving the policy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldloop.core.images import draw_level
from worldloop.core.randomness import make_generator
from worldloop.core.statistics import auc, best_threshold
from worldloop.core.success import Calibration
from worldloop.core.types import Landmark, Observation
from worldloop.evaluation.alignment import compute_alignment, with_interval
from worldloop.evaluation.branch_figures import (
    align_branches,
    best_by_episode,
    compute_visual_alignment,
    follow_actions,
    judge_uncertainty,
    measure_frames,
    measure_state_error,
    positions,
    see,
    see_outcomes,
    summarise,
)
from worldloop.evaluation.calibration import calibrate, find_distrust, fit_calibration, is_calibrated_on
from worldloop.evaluation.held_out import SOURCES, OpenLoop, imagine, imagine_episodes
from worldloop.evaluation.lpips import compute_lpips
from worldloop.evaluation.open_loop import Branches, cut_branches
from worldloop.evaluation.probes import FrameProbe, ProbeBatch, fit_frame_probe
from worldloop.sans.clips import ClipDataset
from worldloop.stages.context import Schedule, StageContext
from worldloop.storage.run_state import LoopState

GREEN, RED = (60, 200, 90), (210, 70, 60)
NUM_STARTS = 64  # observations that the checkpoint carries, for an environment to start from
HEADLINES = ("psnr_db", "moving_psnr_db", "moving_psnr_db_first_frame")  # of world_model_check, besides state errors


@dataclass(frozen=True)
class Config:
    batch_size: int = 64  # episodes imagined at once
    num_videos: int = 4  # imagined | simulated pairs in TensorBoard, per source: half of them the worst judged
    max_episodes: int = 400  # validation episodes per source, at most (the latest)
    reset_every: tuple[int, ...] = (1, 2, 4)  # chunks after which the context is reset to reality, besides never
    probe_steps: int = 600  # optimizer steps of the frame probe; 0: no state error, visual alignment, action following
    probe_batch_size: int = 64  # simulated frames per step
    floor_quantile: float = (
        0.05  # share of held-out frames whose expected PSNR is lower than what imagination can trust
    )
    required_auc: float = 0.7  # of the success head on held-out on-policy episodes, to improve a policy; 0: no rule
    max_fits: int = 2  # fits per iteration to reach it

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.max_episodes < 1 or self.num_videos < 0:
            raise ValueError("check_world_model: batch_size and max_episodes must be >= 1, num_videos >= 0")
        if any(k < 1 for k in self.reset_every):
            raise ValueError(f"check_world_model.reset_every must be chunks >= 1, got {tuple(self.reset_every)}")
        if self.probe_steps < 0 or self.probe_batch_size < 1:
            raise ValueError("check_world_model: probe_steps must be >= 0 and probe_batch_size >= 1")
        if not 0 <= self.floor_quantile < 1:
            raise ValueError(f"check_world_model.floor_quantile must be in [0, 1), got {self.floor_quantile}")
        if not 0 <= self.required_auc <= 1:
            raise ValueError(f"check_world_model.required_auc must be in [0, 1], got {self.required_auc}")
        if self.max_fits < 1:
            raise ValueError(f"check_world_model.max_fits must be at least 1, got {self.max_fits}")


def takes_part(config: Config, schedule: Schedule) -> bool:
    return not schedule.is_first and schedule.uses_world_model


def run(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """Calibrate on all validation episodes; record alignment, fidelity and state error by source."""
    world_model = context.models.load_world_model(state.world_model).to(context.device).for_imagination()
    dataset = context.open_clips(state.dataset, "validation")
    index = {name: dataset.episode_index(source=s)[-config.max_episodes :] for name, s in SOURCES.items()}
    probe, threshold = None, 0.0
    if config.probe_steps and context.spec.landmarks:
        probe, threshold = fit_probe(state, config, context)
    by_source: dict[str, OpenLoop] = {}
    horizons: dict[str, Any] = {}
    for name, episodes in index.items():
        if len(episodes):
            by_source[name] = imagine_episodes(world_model, dataset, episodes, config.batch_size, context)
            horizons[name] = measure_horizons(world_model, dataset, episodes, config, context)
    calibration = calibrate(by_source, config.floor_quantile)
    alignment: dict[str, Any] = {}
    check: dict[str, Any] = {}
    for name in (n for n in SOURCES if n in by_source or n != "recorded"):
        if name not in by_source:
            alignment[name] = check[name] = None
            alignment[f"{name}_reason"] = check[f"{name}_reason"] = "no validation episodes of this source"
            continue
        result = by_source[name]
        alignment[name] = align(result, calibration, cross_fit=is_calibrated_on(result, by_source))
        context.reporter.log(f"{name}: " + describe(alignment[name]))
        check[name] = measure(result, dataset, probe, threshold, context.spec.landmarks) | {"horizon": horizons[name]}
        context.reporter.log(f"{name}: " + describe_check(check[name]))
    for name, result in by_source.items():
        check[name]["videos"] = choose_videos(result, calibration, config.num_videos)
    _write(by_source, check, calibration, state.iteration, context)
    summary = {name: summarise_for_card(alignment[name], check[name]) for name in by_source}
    context.models.save_card(state.world_model, calibration, summary, choose_starts(state, context))
    figures = fidelity(by_source, check)
    distrust = find_distrust(by_source, config.required_auc)
    if distrust:
        context.reporter.log(f"not good enough: {distrust}")
    state = state.record(reward_alignment=alignment, world_model_check=check, num_fits=state.num_fits, **figures)
    return replace(state, calibration=vars(calibration).copy(), distrust=distrust)


def fit_probe(state: LoopState, config: Config, context: StageContext) -> tuple[FrameProbe, float]:
    """A frame probe fitted on the training episodes, and the success logit that parts their outcomes best."""
    dataset = context.open_clips(state.dataset, "train")
    cache, landmarks = dataset.cache, context.spec.landmarks
    episodes = dataset.episode_index().numpy()
    length = cache.num_steps[episodes] + 1
    episode = torch.from_numpy(np.repeat(episodes, length))
    frame = torch.from_numpy(np.concatenate([np.arange(n) for n in length]))
    camera = f"frames.{context.spec.camera}"

    def load(rows: Tensor) -> ProbeBatch:
        index = torch.stack([episode[rows], frame[rows]], dim=1)
        e, f = index.numpy().T
        return ProbeBatch(
            first=torch.from_numpy(cache.frames(camera, e, np.zeros_like(f))),
            frame=torch.from_numpy(cache.frames(camera, e, f)),
            position_m=dataset.landmark_positions(landmarks, index),
            solved=dataset.success_before(index).float(),
        )

    if True:
        probe = fit_frame_probe(
            load,
            len(episode),
            num_steps=config.probe_steps,
            batch_size=config.probe_batch_size,
            generator=make_generator(context.seed, state.iteration, "check_world_model/probe"),
            device=context.device,
            reporter=context.reporter,
        )
    some = torch.from_numpy(episodes[:: max(1, len(episodes) // 200)])
    clip = dataset.load(torch.stack([some, torch.zeros_like(some)], dim=1), int(cache.num_steps[some.numpy()].max()))
    after = context.spec.success_confirm_frames
    truth = Branches(clip.frames, clip.proprio, torch.zeros(clip.valid.shape), clip, confirm_frames=after)
    success = truth.succeeds.numpy()
    if success.all() or not success.any():
        return probe, 0.0
    return probe, best_threshold(see_outcomes(truth, see(probe, truth, clip.frames)), success)


def measure_horizons(
    world_model: Any, dataset: ClipDataset, episodes: Tensor, config: Config, context: StageContext
) -> list[dict[str, Any]]:
    """For each of ``reset_every``: AUC over branches of so many chunks, and over episodes put together from them."""
    frames_per_chunk = context.chunk_length // context.spec.actions_per_frame
    success = np.array([dataset.cache.metas[e].outcome == "success" for e in episodes.tolist()])
    outcomes = tuple(dataset.cache.metas[e].outcome for e in episodes.tolist())
    figures = []
    for chunks in config.reset_every:
        num_frames = chunks * frames_per_chunk
        index = cut_branches(dataset, episodes, num_frames)
        branches = imagine(world_model, dataset, index, num_frames, config.batch_size, context)
        scores = best_by_episode(branches, episodes)
        whole = compute_alignment(scores, success, outcomes, 0.0)["auc"]
        figures.append({"chunks": chunks, "episodes": {"auc": whole}, "branches": align_branches(branches)})
    return figures


def measure(
    result: OpenLoop, dataset: ClipDataset, probe: FrameProbe | None, threshold: float, landmarks: tuple[Landmark, ...]
) -> dict[str, Any]:
    """Fidelity of whole episodes; with a probe also state error, visual alignment and action following."""
    branches = result.branches
    by_frame = measure_frames(branches)
    if probe is None:
        reason = "check_world_model.probe_steps is 0, or the simulator names no landmarks"
        figures: dict[str, Any] = dict.fromkeys(("visual_alignment", "action_following")) | {"probe_reason": reason}
    else:
        imagined, simulated = (see(probe, branches, frames) for frames in (branches.frames, branches.truth.frames))
        true_m = positions(branches, dataset, landmarks)
        by_frame |= measure_state_error(branches, imagined, simulated, true_m, landmarks)
        figures = {
            "visual_alignment": compute_visual_alignment(branches, imagined, simulated, result.outcomes, threshold),
            "action_following": follow_actions(branches, dataset, imagined, true_m, landmarks),
        }
        if figures["action_following"] is None:
            figures["action_following_reason"] = "no two episodes from one state (seed_dataset.forked_states)"
    figures["uncertainty"] = judge_uncertainty(branches, by_frame)
    return figures | {name: summarise(values, branches.truth.valid) for name, values in by_frame.items()}


def describe_check(check: dict[str, Any]) -> str:
    """One line for the log, e.g. ``psnr_db 25.1, moving_psnr_db 18.2, ..., object_error_cm at the end 2.1``."""
    parts = [f"{name} {check[name]['mean']['value']:.1f}" for name in HEADLINES if check[name]["mean"]]
    errors = [name for name in check if name.endswith("error_cm") and check[name]["end"]]
    parts += [
        f"{name} at the end {check[name]['end']['value']:.1f} (floor {check[name + '_floor']['end']['value']:.1f})"
        for name in errors
    ]
    return ", ".join(parts)


def align(result: OpenLoop, calibration: Calibration, cross_fit: bool = False) -> dict[str, Any]:
    """Reward alignment of ``result``.

    The AUC is that of the logits themselves: no calibration changes their order, and two of them mixed, see
    `compute_probability`, would only blur it.
    """
    probability, threshold = compute_probability(result, calibration, cross_fit)
    alignment = compute_alignment(probability, result.is_success, result.outcomes, threshold)
    alignment["auc"] = with_interval(auc, result.logit, result.is_success)
    return alignment


def compute_probability(result: OpenLoop, calibration: Calibration, cross_fit: bool) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated success probability of every episode, and the threshold for it: f [n] each.

    With ``cross_fit``, for episodes that ``calibration`` was itself fitted on, both come from a calibration on the
    other half of ``result``, so that no figure judges what it was tuned on.
    """
    halves = [(np.arange(len(result.logit)) % 2 == i, calibration) for i in range(2)]
    if cross_fit:
        halves = [(half, fit_calibration(result.logit[~half], result.is_success[~half])) for half, _ in halves]
    probability, threshold = np.zeros(len(result.logit)), np.zeros(len(result.logit))
    for half, used in halves:
        probability[half] = used.probability(torch.from_numpy(result.logit[half])).numpy()
        threshold[half] = used.threshold
    return probability, threshold


def choose_starts(state: LoopState, context: StageContext) -> Observation:
    """First observations of the latest training episodes, the policy's own where there are any."""
    dataset = context.open_clips(state.dataset, "train")
    episodes = dataset.episode_index(source=SOURCES["on_policy"])
    episodes = (episodes if len(episodes) else dataset.episode_index())[-NUM_STARTS:]
    return dataset.observation(torch.stack([episodes, torch.zeros_like(episodes)], dim=1))


def summarise_for_card(alignment: dict[str, Any], check: dict[str, Any]) -> dict[str, Any]:
    """What a reader of the checkpoint alone wants to know of one source's episodes."""
    chosen = ("n", "auc", "balanced_accuracy", "expected_calibration_error")
    return {name: alignment[name] for name in chosen} | flatten(check)


def describe(alignment: dict[str, Any]) -> str:
    """One line for the log, e.g. ``AUC .943 (.91-.97), balanced accuracy .85 (.80-.90), n 50``."""
    parts = []
    for name in ("auc", "balanced_accuracy"):
        score = alignment[name]
        text = "-" if score is None or score["value"] is None else f"{score['value']:.3f}"
        if text != "-" and score["low"] is not None:  # of a few episodes hardly any resample may have both outcomes
            text += f" ({score['low']:.3f}-{score['high']:.3f})"
        parts.append(f"{name.replace('_', ' ')} {text}")
    return ", ".join([*parts, f"n {alignment['n']}"])


def fidelity(by_source: dict[str, OpenLoop], check: dict[str, Any]) -> dict[str, Any]:
    """Mean PSNR, SSIM and LPIPS over all validation episodes; null with a reason where there is none."""
    if not by_source:
        reason = "no validation episodes"
        return dict.fromkeys(("psnr_db", "ssim", "lpips")) | {"psnr_db_reason": reason, "lpips_reason": reason}
    figures: dict[str, Any] = {}
    for name in ("psnr_db", "ssim"):
        means = [check[source][name]["mean"] for source in by_source]
        figures[name] = round(sum(m["value"] * m["n"] for m in means) / sum(m["n"] for m in means), 4)
    branches = [r.branches for r in by_source.values()]
    distances = [compute_lpips(b.frames, b.truth.frames, b.truth.valid) for b in branches]
    values = [value for value, _ in distances if value is not None]
    if not values:
        return figures | {"lpips": None, "lpips_reason": distances[0][1]}
    return figures | {"lpips": round(float(torch.cat(values).mean()), 4)}


def choose_videos(result: OpenLoop, calibration: Calibration, count: int) -> list[dict[str, Any]]:
    """Whom to show: the half where imagined and simulated outcome disagree most, and the half where they agree best.

    Of the latter as many successes as failures, where there are. ``{"name", "row", "episode", "outcome",
    "imagined_success"}``, the last being the calibrated probability.
    """
    probability = calibration.probability(torch.from_numpy(result.logit)).numpy()
    wrong = np.abs(probability - result.is_success)
    order = np.argsort(-wrong, kind="stable")
    worst = order[: (count + 1) // 2]
    right = [row for row in order[::-1] if row not in worst]
    by_outcome = [[row for row in right if result.is_success[row] == outcome] for outcome in (True, False)]
    best = [row for pair in zip_longest(*by_outcome) for row in pair if row is not None]
    chosen = [(f"worst_{n}", row) for n, row in enumerate(worst, 1)]
    chosen += [(f"best_{n}", row) for n, row in enumerate(best[: count - len(worst)], 1)]
    return [
        {
            "name": name,
            "row": int(row),
            "episode": int(result.branches.truth.index[row, 0]),
            "outcome": result.outcomes[row],
            "imagined_success": round(float(probability[row]), 4),
        }
        for name, row in chosen
    ]


def _write(
    by_source: dict[str, OpenLoop],
    check: dict[str, Any],
    calibration: Calibration,
    iteration: int,
    context: StageContext,
) -> None:
    """Scalars of every metric, curves of imagined success, and videos: imagined on the left, simulated on the right.

    The bar above the imagined frames is their calibrated success probability, green from the threshold on; that above
    the simulated ones is full once the episode has succeeded.
    """
    fps = context.spec.hz / context.spec.actions_per_frame
    with context.reporter.writer("check_world_model", purge_step=iteration) as writer:
        for name, result in by_source.items():
            writer.scalars(iteration, {f"check_world_model/{name}_{k}": v for k, v in flatten(check[name]).items()})
            probability, _ = compute_probability(result, calibration, is_calibrated_on(result, by_source))
            writer.judgement(f"check_world_model/{name}", iteration, probability, result.is_success)
            b = result.branches
            for video in check[name]["videos"]:
                row = video["row"]
                length = int(b.truth.valid[row].sum())
                level = calibration.probability(b.logit[row, :length])
                shows = (level >= calibration.threshold)[:, None, None, None]
                imagined = torch.where(
                    shows,
                    draw_level(b.frames[row, :length], level, GREEN),
                    draw_level(b.frames[row, :length], level, RED),
                )
                simulated = draw_level(b.truth.frames[row, :length], b.truth.success[row, :length], GREEN)
                pair = torch.cat([imagined, simulated], dim=2)
                writer.video(f"check_world_model/{name}_{video['name']}", iteration, pair, fps)


def flatten(check: dict[str, Any]) -> dict[str, float]:
    """The scalars of one source's check: each metric's mean, state errors at the end, and AUC by horizon."""
    values: dict[str, float] = {}
    for name, figures in check.items():
        if isinstance(figures, dict) and "by_frame" in figures:
            chosen = figures["end" if "error_cm" in name else "mean"]
            if chosen:
                values[name] = chosen["value"]
    for entry in check["horizon"]:
        for kind in ("episodes", "branches"):
            score = entry[kind]["auc"]
            if score and score["value"] is not None:
                values[f"auc_{kind}_{entry['chunks']}_chunks"] = score["value"]
    for name in ("bias_db", "rank_correlation"):
        if check["uncertainty"] and check["uncertainty"][name]["value"] is not None:
            values[f"uncertainty_{name}"] = check["uncertainty"][name]["value"]
    for kind, figures in (check["visual_alignment"] or {}).items():
        if figures["balanced_accuracy"]:
            values[f"visual_alignment_{kind}"] = figures["balanced_accuracy"]["value"]
    return values
