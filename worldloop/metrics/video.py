"""How near imagined frames are to simulated ones: PSNR, SSIM, and PSNR of what moved.

Most pixels of a robot video never change, and repeating the first frame scores well; hence every figure belongs
beside that baseline (`repeat_first_frame`), and `compute_moving_psnr` looks only at pixels that changed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldloop import images
from worldloop.types import check_dtype, check_shape

MAX_PSNR_DB = 100.0  # given for identical frames, whose PSNR is infinite, so that means stay finite
MOVING_THRESHOLD = 10  # grey levels (of 255) by which a pixel must differ from the first frame to have moved


def _check_pair(predicted: Tensor, target: Tensor) -> None:
    check_shape("predicted", predicted, (None, None, None, None, 3))
    check_shape("target", target, tuple(predicted.shape))
    check_dtype("predicted", predicted, torch.uint8)
    check_dtype("target", target, torch.uint8)


def _to_psnr(mse: Tensor) -> Tensor:
    """10 log10(255^2 / MSE), at most `MAX_PSNR_DB`."""
    return (10 * torch.log10(255.0**2 / mse.clamp_min(1e-12))).clamp_max(MAX_PSNR_DB).float()


def compute_psnr(predicted: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """PSNR in dB f32 [B]: the mean over a row's frames of each frame's PSNR.

    Args:
        predicted, target: u8 [B, M, h, w, 3].
        valid: bool [B, M]; frames that count (all when absent). A row without any gives NaN.

    Identical frames count `MAX_PSNR_DB`.
    """
    _check_pair(predicted, target)
    mse = (predicted.double() - target.double()).square().mean(dim=(2, 3, 4))
    return _mean_over_frames(_to_psnr(mse), valid)


def compute_ssim(predicted: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Structural similarity f32 [B] in [-1, 1], mean over frames (Wang et al. 2004, 11 px Gaussian window).

    Arguments as for `compute_psnr`.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    _check_pair(predicted, target)
    B, M = predicted.shape[:2]
    first, second = (images.to_network(x.flatten(0, 1)) for x in (predicted, target))
    per_frame = structural_similarity_index_measure(first, second, reduction="none", data_range=2.0)
    return _mean_over_frames(per_frame.reshape(B, M), valid)  # type: ignore[union-attr]


def compute_moving_psnr(predicted: Tensor, target: Tensor, first_frame: Tensor) -> Tensor:
    """PSNR in dB f32 [B] over the pixels that move; NaN for a row in which nothing moves.

    A pixel moves when any channel of any target frame differs from ``first_frame`` u8 [B, h, w, 3] by more than
    `MOVING_THRESHOLD`; the squared error is averaged over those pixels and all M frames.
    """
    _check_pair(predicted, target)
    check_shape("first_frame", first_frame, (target.shape[0], *target.shape[2:]))
    change = (target.int() - first_frame[:, None].int()).abs()
    moving = (change > MOVING_THRESHOLD).any(dim=-1).any(dim=1)  # [B, h, w]
    error = (predicted.double() - target.double()).square().mean(dim=(1, 4))
    count = moving.sum(dim=(1, 2))
    mse = (error * moving).sum(dim=(1, 2)) / count.clamp_min(1)
    return torch.where(count > 0, _to_psnr(mse), torch.full_like(mse, float("nan")).float())


def repeat_first_frame(first_frame: Tensor, num_frames: int) -> Tensor:
    """The baseline prediction "nothing moves": u8 [B, h, w, 3] -> u8 [B, num_frames, h, w, 3]."""
    check_shape("first_frame", first_frame, (None, None, None, 3))
    return first_frame[:, None].expand(-1, num_frames, -1, -1, -1)


def _mean_over_frames(per_frame: Tensor, valid: Tensor | None) -> Tensor:
    if valid is None:
        return per_frame.mean(dim=1)
    check_shape("valid", valid, tuple(per_frame.shape))
    # 0 / 0 is the documented NaN of a row without valid frames.
    return torch.where(valid, per_frame, torch.zeros_like(per_frame)).sum(dim=1) / valid.sum(dim=1)
