"""Losses of one frame per row, and their sum over the valid rows and frames of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from worldloop.core import images
from worldloop.core.interfaces import Metrics
from worldloop.core.types import Clip

ERROR_WEIGHT = 0.03  # of the error head's loss; affects only gradient clipping, as no other module gets its gradient
MOVED_THRESHOLD = 0.06  # difference in [-1, 1] images: 8 grey levels, above rendering noise
COLOUR_LEVELS = 8  # levels per channel of the colour histogram
RARE_WEIGHT_MAX = 20.0


@dataclass(frozen=True)
class FrameLosses:
    """The losses of one frame, [B] each. ``actions``, already weighted, is ``None`` without inverse dynamics."""

    video: Tensor
    success: Tensor
    error: Tensor
    actions: Tensor | None = None


def add_up(frames: Sequence[FrameLosses], valid: Tensor, success_weight: float) -> tuple[Tensor, Metrics]:
    """The scalar to minimise and its parts: means of the losses of M frames over ``valid`` bool [B, M]."""
    valid = valid.float()
    count = valid.sum().clamp_min(1)
    names = ("video", "success", "error", *(["actions"] if frames[0].actions is not None else []))
    means = {name: (torch.stack([getattr(frame, name) for frame in frames], 1) * valid).sum() / count for name in names}
    loss = means["video"] + success_weight * means["success"] + ERROR_WEIGHT * means["error"] + means.get("actions", 0)
    parts = {"loss": loss} | {f"loss_{name}": mean for name, mean in means.items()}
    return loss, {name: part.item() for name, part in parts.items()}


def weigh_target(
    clip: Clip, m: int, camera: str, size: tuple[int, int], moved_weight: float, rare_weight: float
) -> Tensor:
    """Weights [B, 1, *size] of the latents of target frame ``m`` of ``camera``, computed from the real pixels."""
    context, frames = clip.context[camera], clip.frames[camera]
    now = context[:, -1] if m == 0 else frames[:, m - 1]
    target, now, first = (images.to_network(f) for f in (frames[:, m], now, context[:, 0]))
    weights = weigh_pixels(target, now, first, moved_weight, rare_weight)
    return weights if weights.shape[-2:] == size else functional.adaptive_avg_pool2d(weights, size)


@torch.no_grad()
def weigh_pixels(target: Tensor, now: Tensor, first: Tensor, moved_weight: float, rare_weight: float) -> Tensor:
    """Weights [B, 1, h, w] of the pixels of ``target``; all frames are [B, C, h, w]. The mean of each row is 1.

    Before this normalisation a pixel weighs 1. Pixels that changed since ``now`` or ``first``, and their neighbours,
    weigh ``moved_weight`` more. Colours that are rare in the batch weigh up to ``rare_weight`` * ``RARE_WEIGHT_MAX``
    more, as frequency^-0.5: a small object has one percent of the pixels, but the task depends on it.
    """
    difference = torch.maximum((target - now).abs(), (target - first).abs()).amax(1, keepdim=True)
    moved = functional.max_pool2d((difference > MOVED_THRESHOLD).float(), 3, stride=1, padding=1)
    weights = 1 + moved_weight * moved
    if rare_weight:
        weights = weights + rare_weight * _rarity(target)
    return weights / weights.mean(dim=(1, 2, 3), keepdim=True)


def _rarity(frames: Tensor) -> Tensor:
    """[B, 1, h, w]: (frequency of the commonest colour / frequency of this colour)^.5 - 1, at most RARE_WEIGHT_MAX."""
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
    """PSNR [B] in dB of latents [B, C, h, w] in [-limit, limit]; the peak is 2 limit, the result is at most 60."""
    error = ((predicted - target) / (2 * limit)).square().mean(dim=(1, 2, 3))
    return -10 * torch.log10(error.clamp_min(1e-6))


def compute_success_loss(kind: str, logit: Tensor, success: Tensor, positive_rate: Tensor) -> Tensor:
    """Class-balanced loss [B] from logits and labels [B]: at ``positive_rate`` both classes have the same total weight.

    ``kind`` is ``bce``, the cross-entropy, or ``mse``, (r_hat - r)^2 on the probability as in World-VLA-Loop.
    """
    if kind == "bce":
        loss = functional.binary_cross_entropy_with_logits(logit, success, reduction="none")
    else:
        loss = (torch.sigmoid(logit) - success).square()
    rate = positive_rate.clamp(0.02, 0.98)
    return loss * torch.where(success > 0.5, 0.5 / rate, 0.5 / (1 - rate))


def weigh_times(t: Tensor, maximum: float) -> Tensor:
    """Weight [B] of the success loss at time ``t``: 1 / (1 - t)^2, at most ``maximum``; it is 1 at pure noise.

    This is Cosmos' weight in its rectified-flow form, (1 + sigma)^2 / sigma^2 with sigma = (1 - t) / t.
    """
    return (1 - t).clamp_min(1e-3).pow(-2).clamp(max=maximum)
