"""How near imagined frames are to simulated ones: PSNR, SSIM, and PSNR of what moved.

Most pixels of a robot video never change, and repeating the first frame scores well; hence every figure belongs
beside that baseline (`repeat_first_frame`), and `compute_moving_psnr` looks only at pixels that changed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldloop.core import images
from worldloop.core.tensors import check_dtype, check_shape

MAX_PSNR_DB = 100.0  # given for identical frames, whose PSNR is infinite, so that means stay finite
_AT_ONCE = 16  # rows
MOVING_THRESHOLD = 10  # grey levels (of 255) by which a pixel must differ from the first frame to have moved


def _check_pair(predicted: Tensor, target: Tensor) -> None:
    check_shape("predicted", predicted, (None, None, None, None, 3))
    check_shape("target", target, tuple(predicted.shape))
    check_dtype("predicted", predicted, torch.uint8)
    check_dtype("target", target, torch.uint8)


def _to_psnr(mse: Tensor) -> Tensor:
    """10 log10(255^2 / MSE), at most `MAX_PSNR_DB`."""
    return (10 * torch.log10(255.0**2 / mse.clamp_min(1e-12))).clamp_max(MAX_PSNR_DB).float()


def compute_psnr(predicted: Tensor, target: Tensor) -> Tensor:
    """PSNR of each frame in dB f32 [B, M], of u8 [B, M, h, w, 3]; identical frames count `MAX_PSNR_DB`."""
    _check_pair(predicted, target)
    pairs = zip(predicted.split(_AT_ONCE), target.split(_AT_ONCE), strict=True)  # doubles take 24 times a pair's bytes
    return torch.cat([_to_psnr((p.double() - t.double()).square().mean(dim=(2, 3, 4))) for p, t in pairs])


def compute_ssim(predicted: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of each frame f32 [B, M] in [-1, 1] (Wang et al. 2004, 11 px Gaussian window)."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    _check_pair(predicted, target)
    first, second = (images.to_network(x.flatten(0, 1)) for x in (predicted, target))
    per_frame = structural_similarity_index_measure(first, second, reduction="none", data_range=2.0)
    return per_frame.reshape(predicted.shape[:2])  # type: ignore[union-attr]


def compute_moving_psnr(predicted: Tensor, target: Tensor, first_frame: Tensor) -> Tensor:
    """PSNR of each frame in dB f32 [B, M] over its moved pixels; NaN for a frame in which nothing has moved.

    A pixel has moved when any channel of the target differs from ``first_frame`` u8 [B, h, w, 3] by more than
    `MOVING_THRESHOLD`.
    """
    _check_pair(predicted, target)
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
