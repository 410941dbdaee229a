"""Losses per row of one frame, and what they add up to over the valid rows and frames of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from worldloop.core import images
from worldloop.core.interfaces import Metrics
from worldloop.core.types import Clip

ERROR_WEIGHT = 0.03  # of the error head's loss, whose gradient reaches nothing else: only its share of the clipped norm
MOVED_THRESHOLD = 0.06  # in units of [-1, 1] images: 8 grey levels, above rendering noise
COLOUR_LEVELS = 8  # per channel, of the histogram that tells rare colours
RARE_WEIGHT_MAX = 20.0


@dataclass(frozen=True)
class FrameLosses:
    """Of one frame, each [B]."""

    video: Tensor
    success: Tensor
    error: Tensor


def add_up(frames: Sequence[FrameLosses], valid: Tensor, success_weight: float) -> tuple[Tensor, Metrics]:
    """The scalar to minimise and its parts: means over what is ``valid``, bool [B, M], of the losses of M frames."""
    valid = valid.float()
    count = valid.sum().clamp_min(1)
    video, success, error = (
        (torch.stack([getattr(frame, name) for frame in frames], 1) * valid).sum() / count
        for name in ("video", "success", "error")
    )
    loss = video + success_weight * success + ERROR_WEIGHT * error
    parts = {"loss": loss, "loss_video": video, "loss_success": success, "loss_error": error}
    return loss, {name: part.item() for name, part in parts.items()}


def weigh_target(
    clip: Clip, m: int, camera: str, size: tuple[int, int], moved_weight: float, rare_weight: float
) -> Tensor:
    """Weights [B, 1, *size] of the latents of target ``m`` of ``camera``, from the pixels of the real frames."""
    context, frames = clip.context[camera], clip.frames[camera]
    now = context[:, -1] if m == 0 else frames[:, m - 1]
    target, now, first = (images.to_network(f) for f in (frames[:, m], now, context[:, 0]))
    weights = weigh_pixels(target, now, first, moved_weight, rare_weight)
    return weights if weights.shape[-2:] == size else functional.adaptive_avg_pool2d(weights, size)


@torch.no_grad()
def weigh_pixels(target: Tensor, now: Tensor, first: Tensor, moved_weight: float, rare_weight: float) -> Tensor:
    """Weights [B, 1, h, w] of ``target``'s pixels, mean 1 over each row, from the frames [B, C, h, w] alone.

    Pixels that changed (since now or since the first frame, a pixel's border included) weigh ``1 + moved_weight``.
    Colours that are rare within the batch weigh up to ``RARE_WEIGHT_MAX`` more, as frequency^-0.5: a small object is
    a percent of the pixels and all of the task.
    """
    difference = torch.maximum((target - now).abs(), (target - first).abs()).amax(1, keepdim=True)
    moved = functional.max_pool2d((difference > MOVED_THRESHOLD).float(), 3, stride=1, padding=1)
    weights = 1 + moved_weight * moved
    if rare_weight:
        weights = weights + rare_weight * _rarity(target)
    return weights / weights.mean(dim=(1, 2, 3), keepdim=True)


def _rarity(frames: Tensor) -> Tensor:
    """[B, 1, h, w]: (frequency of the commonest colour / frequency of this colour)^.5 - 1, capped."""
    levels = ((frames.clamp(-1, 1) + 1) * (COLOUR_LEVELS / 2)).long().clamp(max=COLOUR_LEVELS - 1)
    code = torch.zeros_like(levels[:, :1])
    for channel in range(frames.shape[1]):
        code = code * COLOUR_LEVELS + levels[:, channel : channel + 1]
    counts = torch.bincount(code.flatten(), minlength=COLOUR_LEVELS ** frames.shape[1]).clamp_min(1)
    rarity = (counts.max() / counts).sqrt().clamp(max=RARE_WEIGHT_MAX + 1) - 1
    return rarity[code]


def compute_video_loss(kind: str, predicted: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """[B]: weighted mean over pixels of the absolute (l1) or squared (mse) error."""
    error = predicted - target
    per_pixel = error.abs() if kind == "l1" else error.square()
    return (per_pixel * weights).mean(dim=(1, 2, 3))


def compute_latent_psnr_db(predicted: Tensor, target: Tensor, limit: float = 1.0) -> Tensor:
    """[B] dB of latents [B, C, h, w] in [-limit, limit], the peak-to-peak range as peak; at most 60."""
    error = ((predicted - target) / (2 * limit)).square().mean(dim=(1, 2, 3))
    return -10 * torch.log10(error.clamp_min(1e-6))


def compute_success_loss(kind: str, logit: Tensor, success: Tensor, positive_rate: Tensor) -> Tensor:
    """[B] from logits and labels [B], class-balanced: both classes weigh 1 in the mean at ``positive_rate``.

    ``bce`` is the cross-entropy, ``mse`` the paper's (r_hat - r)^2 on the probability.
    """
    if kind == "bce":
        loss = functional.binary_cross_entropy_with_logits(logit, success, reduction="none")
    else:
        loss = (torch.sigmoid(logit) - success).square()
    rate = positive_rate.clamp(0.02, 0.98)
    return loss * torch.where(success > 0.5, 0.5 / rate, 0.5 / (1 - rate))


def weigh_times(t: Tensor, maximum: float) -> Tensor:
    """[B]: how much a noise level tells about the outcome: 1 / (1 - t)^2, capped.

    The rectified-flow form (1 + sigma)^2 / sigma^2 of Cosmos' weight with sigma = (1 - t) / t; it is 1 at pure noise.
    """
    return (1 - t).clamp_min(1e-3).pow(-2).clamp(max=maximum)
