"""What training varies in its real frames, so that imagination meets nothing it has not seen.

Shapes: B rows, K context frames, S proprio. Generators are CPU generators.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldloop.core.context_frames import NUM_CONTEXT_FRAMES
from worldloop.networks.augment import shift_images

JUDGEMENT_NOISE = 0.1  # largest noise on what the success head learns from: [-1, 1] images, normalised proprio
JUDGEMENT_SHIFT = 32  # the largest shift of those frames is their side's length over this


def vary_context(context: Tensor, context_noise: float, generator: torch.Generator) -> Tensor:
    """What imagination may find instead of ``context`` [B, K, C, size, size], drawn per row: less of a past, and noise.

    A rollout starts with the latest two frames and fills up, see `fill_context`. Noise is of a level up to
    ``context_noise``; the episode's first frame stays clean.
    """
    K = context.shape[1]
    if K > NUM_CONTEXT_FRAMES:
        oldest = torch.randint(1, K - 1, (len(context), 1), generator=generator)
        order = torch.arange(K).expand(len(context), -1)
        order = torch.where(order == 0, order, torch.maximum(order, oldest)).to(context.device)
        context = context[torch.arange(len(context), device=context.device)[:, None], order]
    if not context_noise:
        return context
    noise = torch.randn(context[:, 1:].shape, generator=generator)
    level = torch.rand(len(context), 1, 1, 1, 1, generator=generator) * context_noise
    return torch.cat([context[:, :1], context[:, 1:] + (noise * level).to(context)], dim=1)


def vary_judged(
    first: Tensor, target: Tensor, proprio: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """What the success head's frame reader learns from: frames [B, C, size, size], shifted together, and proprio
    [B, S], both with noise whose level is drawn per row.

    Without shifts it learns a few hundred episodes by heart.
    """
    pair = torch.stack([first, target], dim=1)
    first, target = shift_images(pair, target.shape[-1] // JUDGEMENT_SHIFT, generator).unbind(1)
    level = torch.rand(len(target), generator=generator) * JUDGEMENT_NOISE
    target = target + (torch.randn(target.shape, generator=generator) * level[:, None, None, None]).to(target)
    proprio = proprio + (torch.randn(proprio.shape, generator=generator) * level[:, None]).to(proprio)
    return first, target, proprio
