"""The figures of imagined branches: how far they are from what the simulator did, frame by frame.

Everything here is a function of `Branches`, held-out truth and the frame probe, and returns plain numbers for JSON.
Shapes: N branches, M frames, P landmark coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldloop.core.statistics import auc, bootstrap_interval, bootstrap_mean, rank_correlation
from worldloop.core.success import find_highest_confirmed
from worldloop.core.types import Landmark, Outcome
from worldloop.evaluation.alignment import compute_alignment
from worldloop.evaluation.fidelity import compute_moving_psnr, compute_psnr, compute_ssim, repeat_first_frame
from worldloop.evaluation.open_loop import Branches
from worldloop.evaluation.probes import FrameProbe
from worldloop.sans.clips import ClipDataset

CURVE_RESAMPLES = 400  # bootstrap resamples of each point of a curve
ROWS_AT_ONCE = 32  # branches whose frames are compared at once: doubles of all of them would fill the memory
CM = 100.0


def measure_frames(branches: Branches) -> dict[str, Tensor]:
    """Metric name -> f32 [N, M]; ``*_first_frame`` is the same metric of the baseline "nothing moves"."""
    blocks: dict[str, list[Tensor]] = {}
    for rows in torch.arange(len(branches)).split(ROWS_AT_ONCE):
        truth, start = branches.truth.frames[rows], branches.start_frames[rows]
        still = repeat_first_frame(start, truth.shape[1])
        for suffix, predicted in (("", branches.frames[rows]), ("_first_frame", still)):
            for name, values in (
                ("psnr_db", compute_psnr(predicted, truth)),
                ("ssim", compute_ssim(predicted, truth)),
                ("moving_psnr_db", compute_moving_psnr(predicted, truth, start)),
            ):
                blocks.setdefault(name + suffix, []).append(values)
    return {name: torch.cat(values) for name, values in blocks.items()}


@dataclass(frozen=True)
class Seen:
    """What the frame probe reads off all frames of N branches: ``position_m`` [N, M, P], ``solved_logit`` [N, M]."""

    position_m: Tensor
    solved_logit: Tensor


def see(probe: FrameProbe, branches: Branches, frames: Tensor) -> Seen:
    """``frames`` u8 [N, M, h, w, 3], imagined or simulated, of the episodes of ``branches``."""
    first = branches.first_frames[:, None].expand_as(frames)
    reading = probe.read(first.flatten(0, 1), frames.flatten(0, 1))
    shape = frames.shape[:2]
    return Seen(reading.position_m.unflatten(0, shape), reading.solved_logit.unflatten(0, shape))


def measure_state_error(
    branches: Branches, imagined: Seen, simulated: Seen, true_m: Tensor, landmarks: tuple[Landmark, ...]
) -> dict[str, Tensor]:
    """Metric name -> f32 [N, M] in cm, for each landmark, against ``true_m`` (see `positions`).

    ``<name>_error_cm``: where the probe sees it in the imagined frame; ``<name>_error_cm_floor``: the same of the
    simulated frame, the probe's own error; ``<name>_error_cm_proprio``: by the imagined proprio, where that holds it.
    """
    figures, column = {}, 0
    for mark in landmarks:
        here = slice(column, column + len(mark.columns))
        column = here.stop
        for suffix, seen in (("", imagined), ("_floor", simulated)):
            figures[f"{mark.name}_error_cm{suffix}"] = CM * (seen.position_m - true_m)[..., here].norm(dim=-1)
        if mark.source == "proprio":
            own = branches.proprio[..., list(mark.columns)] * mark.metres_per_unit
            figures[f"{mark.name}_error_cm_proprio"] = CM * (own - true_m[..., here]).norm(dim=-1)
    return figures


def positions(branches: Branches, dataset: ClipDataset, landmarks: tuple[Landmark, ...]) -> Tensor:
    """f32 [N, M, P] metres: where the landmarks were simulated at each target frame (the last one, past the end)."""
    episode, now = branches.truth.index.T
    last = torch.from_numpy(dataset.cache.num_steps)[episode]
    frame = torch.minimum(now[:, None] + 1 + torch.arange(branches.truth.valid.shape[1]), last[:, None])
    index = torch.stack([episode[:, None].expand_as(frame), frame], dim=-1).flatten(0, 1)
    return dataset.landmark_positions(landmarks, index).unflatten(0, frame.shape)


def see_outcomes(branches: Branches, seen: Seen) -> np.ndarray:
    """f [N]: the highest success logit that was seen in valid frames."""
    return find_highest_confirmed(seen.solved_logit, branches.truth.valid, branches.confirm_frames).numpy()


def compute_visual_alignment(
    branches: Branches, imagined: Seen, simulated: Seen, outcomes: tuple[Outcome, ...], threshold: float
) -> dict[str, Any]:
    """Does the outcome seen in the imagined video equal the simulated one? ``simulated`` is the probe's own accuracy.

    ``threshold`` is in logits of the probe.
    """
    success = branches.succeeds.numpy()
    figures = {}
    for name, seen in (("imagined", imagined), ("simulated", simulated)):
        alignment = compute_alignment(see_outcomes(branches, seen), success, outcomes, threshold)
        figures[name] = {k: alignment[k] for k in ("n", "num_success", "balanced_accuracy", "auc", "accuracy")}
    return figures


def align_branches(branches: Branches) -> dict[str, Any]:
    """AUC of the success head over branches, whatever became of their episodes, bootstrapped by episode."""
    score, success = branches.best_logit.numpy(), branches.succeeds.numpy()
    keep = np.isfinite(score)
    score, success, episode = score[keep], success[keep], branches.truth.index[:, 0].numpy()[keep]
    figures: dict[str, Any] = {"n": len(score), "num_success": int(success.sum()), "auc": None}
    if success.any() and not success.all():
        low, high = bootstrap_interval(auc, score, success, clusters=episode, num_resamples=CURVE_RESAMPLES)
        figures["auc"] = _rounded(auc(score, success), low, high)
    return figures


def best_by_episode(branches: Branches, episodes: Tensor) -> np.ndarray:
    """f [E]: the highest logit over all branches of each of ``episodes``, whose context was reset between them."""
    best = torch.full((int(branches.truth.index[:, 0].max()) + 1,), -torch.inf)
    best = best.scatter_reduce(0, branches.truth.index[:, 0], branches.best_logit, "amax")
    return best[episodes].numpy()


def follow_actions(
    branches: Branches, dataset: ClipDataset, imagined: Seen, true_m: Tensor, landmarks: tuple[Landmark, ...]
) -> dict[str, Any] | None:
    """Do different actions from the same start lead as far apart as in the simulator? ``None`` without such pairs.

    For each pair of whole episodes from one state, at the last frame of both: the distance between the two imagined
    frames (root mean square, grey levels) and between their landmarks (cm, by the probe), beside the simulated one.
    ``ratio`` is mean imagined over mean simulated distance, ``correlation`` Pearson's over pairs; intervals resample
    states.
    """
    by_state: dict[str, list[int]] = {}
    for row, episode in enumerate(branches.truth.index[:, 0].tolist()):
        by_state.setdefault(dataset.cache.metas[episode].initial_state_id, []).append(row)
    pairs = [(a, b, number) for number, rows in enumerate(by_state.values()) for a, b in combinations(rows, 2)]
    if not pairs:
        return None
    left, right, state = torch.tensor(pairs).T
    length = branches.truth.valid.sum(1)
    frame = torch.minimum(length[left], length[right]) - 1
    figures: dict[str, Any] = {"num_pairs": len(pairs), "num_states": len(np.unique(state.numpy()))}

    def apart(values: Tensor) -> Tensor:
        return (values[left, frame].double() - values[right, frame].double()).flatten(1)

    def root_mean_square(frames: Tensor) -> Tensor:
        return apart(frames).square().mean(1).sqrt()

    figures["image"] = _compare(root_mean_square(branches.frames), root_mean_square(branches.truth.frames), state)
    column = 0
    for mark in landmarks:
        here = slice(column, column + len(mark.columns))
        column = here.stop
        seen_cm, true_cm = (CM * apart(x[..., here]).norm(dim=1) for x in (imagined.position_m, true_m))
        figures[mark.name] = _compare(seen_cm, true_cm, state)
    return figures


def judge_uncertainty(branches: Branches, by_frame: dict[str, Tensor]) -> dict[str, Any] | None:
    """Does the model know where it is wrong? ``None`` where it does not say.

    Over valid frames, resampling episodes: ``bias_db`` is expected minus actual PSNR; ``rank_correlation`` Spearman's
    of expected and actual PSNR, ``rank_correlation_<landmark>_error_cm`` of expected PSNR and the landmark's error
    (negative where the estimate helps). ``auc_by_certainty``: of the success head over the half of the branches whose
    lowest expected PSNR is higher, and over the other half. ``by_frame``: see `measure_frames`, `measure_state_error`.
    """
    if branches.expected_psnr_db is None:
        return None
    valid = branches.truth.valid
    episode = branches.truth.index[:, :1].expand_as(valid)[valid].numpy()
    expected, actual = branches.expected_psnr_db[valid].numpy(), by_frame["psnr_db"][valid].numpy()
    figures: dict[str, Any] = {"n": len(expected)}

    def compare(name: str, statistic: Any, other: np.ndarray) -> None:
        interval = bootstrap_interval(statistic, expected, other, clusters=episode, num_resamples=CURVE_RESAMPLES)
        figures[name] = _rounded(statistic(expected, other), *interval)

    compare("bias_db", lambda x, y: float((x - y).mean()), actual)
    compare("rank_correlation", rank_correlation, actual)
    for name, values in by_frame.items():
        if name.endswith("_error_cm"):
            compare(f"rank_correlation_{name}", rank_correlation, values[valid].numpy())
    lowest = branches.expected_psnr_db.masked_fill(~valid, torch.inf).amin(1).numpy()
    score, success = branches.best_logit.numpy(), branches.succeeds.numpy()
    figures["auc_by_certainty"] = {}
    for name, half in (("certain", lowest > np.median(lowest)), ("uncertain", lowest <= np.median(lowest))):
        if success[half].any() and not success[half].all():
            interval = bootstrap_interval(auc, score[half], success[half], num_resamples=CURVE_RESAMPLES)
            figures["auc_by_certainty"][name] = _rounded(auc(score[half], success[half]), *interval)
        else:
            figures["auc_by_certainty"][name] = None
    return figures


def _compare(imagined: Tensor, simulated: Tensor, state: Tensor) -> dict[str, Any]:
    a, b, clusters = imagined.numpy(), simulated.numpy(), state.numpy()

    def ratio(x: np.ndarray, y: np.ndarray) -> float:
        return float(x.mean() / y.mean()) if y.mean() > 0 else float("nan")

    def correlation(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.corrcoef(x, y)[0, 1]) if x.std() > 0 and y.std() > 0 else float("nan")

    figures: dict[str, Any] = {"imagined": round(float(a.mean()), 4), "simulated": round(float(b.mean()), 4)}
    for name, statistic in (("ratio", ratio), ("correlation", correlation)):
        interval = bootstrap_interval(statistic, a, b, clusters=clusters, num_resamples=CURVE_RESAMPLES)
        figures[name] = _rounded(statistic(a, b), *interval)
    return figures


def summarise(values: Tensor, valid: Tensor) -> dict[str, Any]:
    """``values`` f32 [N, M] -> ``mean`` over branches of their mean frame, at their ``end``, and ``by_frame``.

    NaN, where a metric is not defined, is left out; bootstrap over branches.
    """
    values = values.float().masked_fill(~valid, torch.nan)
    at_end = values.gather(1, (valid.sum(1, keepdim=True) - 1).clamp_min(0))[:, 0]
    return {
        "mean": average(values.nanmean(1)),
        "end": average(at_end),
        "by_frame": [
            {"frame": m + 1, **figures}
            for m in range(values.shape[1])
            if (figures := average(values[:, m], CURVE_RESAMPLES)) is not None
        ],
    }


def average(values: Tensor, num_resamples: int = 2000) -> dict[str, float] | None:
    """Mean of what is not NaN in ``values`` [N] with its bootstrap interval and n; ``None`` where all is NaN."""
    array = values[~values.isnan()].double().numpy()
    if not len(array):
        return None
    low, high = bootstrap_mean(array, num_resamples=num_resamples)
    return {**_rounded(float(array.mean()), low, high), "n": len(array)}


def _rounded(value: float, low: float, high: float) -> dict[str, Any]:
    names = ("value", "low", "high")
    return {k: None if np.isnan(x) else round(x, 4) for k, x in zip(names, (value, low, high), strict=True)}
