"""What a model looks back on: K frames, the episode's first and the K - 1 latest, (first, ..., previous, now).

Frames of a past that nobody knows repeat the oldest that is known; at an episode's start all are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

NUM_CONTEXT_FRAMES = 3  # of every observation, and the fewest of a world model: first, previous, now


def shift_frames(frames: Tensor, following: Tensor) -> Tensor:
    """One frame later: [B, K, ...] of (first, ..., previous, now) and [B, ...] -> (first, ..., now, following)."""
    return torch.cat([frames[:, :1], frames[:, 2:], following[:, None]], dim=1)


def fill_context(frames: Tensor, num_frames: int) -> Tensor:
    """[B, k, ...] -> [B, ``num_frames``, ...], of any k >= 1: cut down, or filled up with the oldest frame known.

    One or two frames are taken for the latest, and the earlier one for the episode's first.
    """
    recent = frames[:, 1:] if frames.shape[1] >= NUM_CONTEXT_FRAMES else frames
    recent = recent[:, -(num_frames - 1) :]
    missing = num_frames - 1 - recent.shape[1]
    return torch.cat([frames[:, :1], recent[:, :1].expand(-1, missing, *recent.shape[2:]), recent], dim=1)
