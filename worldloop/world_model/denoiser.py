"""The seam between what every world model shares and the network inside.

Flow path, losses, heads, sampler, self-rollout and calibration use this interface alone.
Shapes: B rows, L latent frames denoised at once, C latent channels, K context frames, s actions per frame, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """What the next latent frames depend on beside the images.

    - ``actions`` f32 [B, L, s, A] in [-1, 1]
    - ``proprio`` [B, S] now and ``next_proprio`` [B, L, S] as predicted by the proprio head, both normalised
    - ``instruction`` [B, E], embedded
    """

    actions: Tensor
    proprio: Tensor
    next_proprio: Tensor
    instruction: Tensor


@dataclass(frozen=True)
class DenoiserOutput:
    """``data`` f32 [B, L, C, size, size]: the prediction of the clean latents; ``features`` [B, L, N, F] tokens."""

    data: Tensor
    features: Tensor


class Denoiser(Protocol):
    """``frames_per_call`` is L; ``feature_dim`` is F of the tokens."""

    frames_per_call: int
    feature_dim: int

    def __call__(self, noisy: Tensor, t: Tensor, context: Tensor, conditioning: Conditioning) -> DenoiserOutput:
        """``noisy`` [B, L, C, size, size] at time ``t`` [B] of the flow path, after
        ``context`` [B, K, C, size, size]."""
        ...
