"""How close imagined frames are to simulated ones: PSNR, SSIM, and PSNR of moving pixels.

Most pixels of a robot video never change, so repeating the first frame scores well. Compare every figure with that
baseline (`repeat_first_frame`). `compute_moving_psnr` measures only pixels that changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from worldloop.core import images
from worldloop.core.statistics import Estimate, estimate_mean
from worldloop.core.tensors import check_dtype, check_shape
from worldloop.evaluation.frames import split_rows
from worldloop.evaluation.open_loop import Branches

MAX_PSNR_DB = 100.0  # for identical frames, whose PSNR is infinite, so that means stay finite
MOVING_THRESHOLD = 10  # grey levels (of 255) by which a pixel must differ from the first frame to have moved
CURVE_RESAMPLES = 400  # bootstrap resamples of each point of a curve
ROWS_AT_ONCE = 32  # most branches compared at once, because doubles of all frames would fill the memory
PSNR_ROWS_AT_ONCE = 16  # smaller, because its doubles take 24 times the bytes of a pair of frames


@dataclass(frozen=True)
class FrameMetric:
    """A metric of the frames of N branches.

    - ``mean``: over branches, of the mean over their valid frames; ``end``: over branches, of the last valid frame.
      Both are ``None`` if no branch has a value.
    - ``by_frame``: frame number, from 1 -> mean over branches at that frame
    - ``values`` f32 [N, M]: of each frame; NaN where the metric is not defined or the frame is not valid
    """

    mean: Estimate | None
    end: Estimate | None
    by_frame: dict[int, Estimate]
    values: Tensor = field(compare=False, repr=False)

    @classmethod
    def summarise(cls, values: Tensor, valid: Tensor) -> FrameMetric:
        """Summarise ``values`` f32 [N, M] where ``valid`` bool [N, M]; the bootstrap resamples branches."""
        values = values.float().masked_fill(~valid, torch.nan)
        at_end = values.gather(1, (valid.sum(1, keepdim=True) - 1).clamp_min(0))[:, 0]
        points = [estimate_mean(column.numpy(), num_resamples=CURVE_RESAMPLES) for column in values.unbind(1)]
        return cls(
            mean=estimate_mean(values.nanmean(1).numpy()),
            end=estimate_mean(at_end.numpy()),
            by_frame={number: point for number, point in enumerate(points, 1) if point is not None},
            values=values,
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "mean": self.mean and self.mean.to_dict(with_n=True),
            "end": self.end and self.end.to_dict(with_n=True),
            "by_frame": [{"frame": frame} | point.to_dict(with_n=True) for frame, point in self.by_frame.items()],
        }


@dataclass(frozen=True)
class Fidelity:
    """How close the imagined frames are, the mean over cameras; ``*_first_frame`` is the baseline "nothing moves".

    ``by_camera``: the same figures for each camera; empty with one camera.
    """

    psnr_db: FrameMetric
    ssim: FrameMetric
    moving_psnr_db: FrameMetric
    psnr_db_first_frame: FrameMetric
    ssim_first_frame: FrameMetric
    moving_psnr_db_first_frame: FrameMetric
    by_camera: Mapping[str, Fidelity] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, FrameMetric]:
        """All metrics by name, e.g. ``psnr_db``; the metrics of one camera are called ``psnr_db/<camera>``."""
        metrics = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "by_camera"}
        for camera, alone in self.by_camera.items():
            metrics |= {f"{name}/{camera}": metric for name, metric in alone.metrics.items()}
        return metrics


def measure_fidelity(branches: Branches) -> Fidelity:
    """PSNR, SSIM and moving PSNR of the valid frames of ``branches``, and of their start frame repeated."""
    valid = branches.truth.valid
    values = {camera: _measure_camera(branches, camera) for camera in branches.frames}
    names = list(next(iter(values.values())))
    # A camera in which nothing has moved has no moving PSNR; the mean is over the other cameras.
    means = {name: torch.stack([own[name] for own in values.values()]).nanmean(0) for name in names}
    by_camera = {camera: _summarise(own, valid, {}) for camera, own in values.items()} if len(values) > 1 else {}
    return _summarise(means, valid, by_camera)


def _summarise(values: dict[str, Tensor], valid: Tensor, by_camera: dict[str, Fidelity]) -> Fidelity:
    metrics = {name: FrameMetric.summarise(metric, valid) for name, metric in values.items()}
    return Fidelity(
        psnr_db=metrics["psnr_db"],
        ssim=metrics["ssim"],
        moving_psnr_db=metrics["moving_psnr_db"],
        psnr_db_first_frame=metrics["psnr_db_first_frame"],
        ssim_first_frame=metrics["ssim_first_frame"],
        moving_psnr_db_first_frame=metrics["moving_psnr_db_first_frame"],
        by_camera=by_camera,
    )


def _measure_camera(branches: Branches, camera: str) -> dict[str, Tensor]:
    """Metric name -> values f32 [N, M]."""
    blocks: dict[str, list[Tensor]] = {}
    for rows in split_rows(branches.frames[camera], ROWS_AT_ONCE):
        target, start = branches.truth.frames[camera][rows], branches.start_frames[camera][rows]
        still = repeat_first_frame(start, target.shape[1])
        for suffix, predicted in (("", branches.frames[camera][rows]), ("_first_frame", still)):
            for name, values in (
                ("psnr_db", compute_psnr(predicted, target)),
                ("ssim", compute_ssim(predicted, target)),
                ("moving_psnr_db", compute_moving_psnr(predicted, target, start)),
            ):
                blocks.setdefault(name + suffix, []).append(values)
    return {name: torch.cat(parts) for name, parts in blocks.items()}


def compute_mean_psnr(branches: Branches) -> Tensor:
    """PSNR of each imagined frame in dB, f32 [N, M], the mean over cameras."""
    truth = branches.truth.frames
    by_camera = [
        torch.cat([compute_psnr(frames[r], truth[camera][r]) for r in split_rows(frames, PSNR_ROWS_AT_ONCE)])
        for camera, frames in branches.frames.items()
    ]
    return torch.stack(by_camera).mean(0)


def check_frame_pair(predicted: Tensor, target: Tensor) -> None:
    """Raise ``ValueError`` unless both are u8 [B, M, h, w, 3] of one shape."""
    check_shape("predicted", predicted, (None, None, None, None, 3))
    check_shape("target", target, tuple(predicted.shape))
    check_dtype("predicted", predicted, torch.uint8)
    check_dtype("target", target, torch.uint8)


def _to_psnr(mse: Tensor) -> Tensor:
    """10 log10(255^2 / MSE), at most `MAX_PSNR_DB`."""
    return (10 * torch.log10(255.0**2 / mse.clamp_min(1e-12))).clamp_max(MAX_PSNR_DB).float()


def compute_psnr(predicted: Tensor, target: Tensor) -> Tensor:
    """PSNR of each frame in dB, f32 [B, M], from u8 [B, M, h, w, 3]; `MAX_PSNR_DB` for identical frames."""
    check_frame_pair(predicted, target)
    pairs = zip(predicted.split(PSNR_ROWS_AT_ONCE), target.split(PSNR_ROWS_AT_ONCE), strict=True)
    return torch.cat([_to_psnr((p.double() - t.double()).square().mean(dim=(2, 3, 4))) for p, t in pairs])


def compute_ssim(predicted: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of each frame, f32 [B, M] in [-1, 1] (Wang et al. 2004, Gaussian window of 11 px)."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    check_frame_pair(predicted, target)
    first, second = (images.to_network(x.flatten(0, 1)) for x in (predicted, target))
    per_frame = structural_similarity_index_measure(first, second, reduction="none", data_range=2.0)
    return per_frame.reshape(predicted.shape[:2])  # type: ignore[union-attr]


def compute_moving_psnr(predicted: Tensor, target: Tensor, first_frame: Tensor) -> Tensor:
    """PSNR of each frame in dB, f32 [B, M], over its moved pixels; NaN if no pixel has moved.

    A pixel has moved if any channel of the target differs from ``first_frame`` u8 [B, h, w, 3] by more than
    `MOVING_THRESHOLD`.
    """
    check_frame_pair(predicted, target)
    check_shape("first_frame", first_frame, (target.shape[0], *target.shape[2:]))
    moved = ((target.int() - first_frame[:, None].int()).abs() > MOVING_THRESHOLD).any(dim=-1)  # [B, M, h, w]
    error = (predicted.double() - target.double()).square().mean(dim=4)
    count = moved.sum(dim=(2, 3))
    mse = (error * moved).sum(dim=(2, 3)) / count.clamp_min(1)
    return torch.where(count > 0, _to_psnr(mse), torch.nan)


def repeat_first_frame(first_frame: Tensor, num_frames: int) -> Tensor:
    """The baseline prediction "nothing moves": u8 [B, h, w, 3] -> u8 [B, num_frames, h, w, 3]."""
    check_shape("first_frame", first_frame, (None, None, None, 3))
    return first_frame[:, None].expand(-1, num_frames, -1, -1, -1)
