"""The context frames of a model: K frames (first, ..., previous, now), the episode's first and its K - 1 latest.

A frame that is not known repeats the oldest known one. At an episode's start all K frames are equal.
"""

from __future__ import annotations

import torch
from torch import Tensor

NUM_CONTEXT_FRAMES = 3  # K of every observation, and the least K of a world model: first, previous, now


def shift_frames(frames: Tensor, following: Tensor) -> Tensor:
    """Move the context one frame on: (first, ..., previous, now) [B, K, ...] -> (first, ..., now, ``following``).

    ``following`` is [B, ...].
    """
    return torch.cat([frames[:, :1], frames[:, 2:], following[:, None]], dim=1)


def fill_context(frames: Tensor, num_frames: int) -> Tensor:
    """Cut or fill ``frames`` [B, k, ...], k >= 1, to [B, ``num_frames``, ...], ``num_frames`` >= 2.

    Missing frames repeat the oldest known one. With k = 1 or 2 the frames are the latest ones, and the earlier one
    also stands for the episode's first.
    """
    recent = frames[:, 1:] if frames.shape[1] >= NUM_CONTEXT_FRAMES else frames
    recent = recent[:, -(num_frames - 1) :]
    missing = num_frames - 1 - recent.shape[1]
    return torch.cat([frames[:, :1], recent[:, :1].expand(-1, missing, *recent.shape[2:]), recent], dim=1)
