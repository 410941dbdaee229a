"""The seam between what every world model shares and the network inside.

Flow path, losses, heads, sampler, self-rollout and calibration use this interface alone.
Latents are a dict by camera; their sizes h x w may differ by camera.

Shapes: B rows, L latent frames denoised at once, C latent channels, K context frames, s actions per frame, N tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from worldloop.core.tensors import Rows


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
    """``data`` camera -> f32 [B, L, C, h, w]: the prediction of the clean latents.

    ``features`` [B, L, N, F] are the tokens of all cameras together, the reward token first.
    """

    data: dict[str, Tensor]
    features: Tensor


@dataclass(frozen=True)
class FrameMemory(Rows):
    """What a denoiser keeps of the past.

    ``frames`` camera -> f32 [B, K, C, h, w]: latents of the episode's first frame and of the K - 1 latest, now last.
    """

    frames: dict[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.frames.values())))


class Denoiser(Protocol):
    """A `torch.nn.Module` that predicts clean latents: a line in `worldloop.world_model.DENOISERS`.

    - ``Config``: a frozen dataclass, built from the section ``world_model.<name>`` of a config
    - ``frames_per_call`` is L, ``num_context_frames`` K, ``feature_dim`` F of the tokens
    - ``ignores_noise``: at t = 0 nothing depends on ``noisy``, so that nobody needs to draw it for a single step

    ``channels`` and ``sizes``, camera -> (h, w), are the latents'; ``instruction`` is [B, E] with
    E = ``instruction_dim``. Whoever denoises one camera sees all of them.
    """

    Config: type[Any]
    frames_per_call: int
    num_context_frames: int
    feature_dim: int
    ignores_noise: bool

    def __init__(
        self,
        config: Any,
        channels: int,
        sizes: Mapping[str, tuple[int, int]],
        proprio_dim: int,
        action_dim: int,
        actions_per_frame: int,
        instruction_dim: int,
    ) -> None: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def remember(self, context: Mapping[str, Tensor], instruction: Tensor) -> FrameMemory:
        """What it needs of the frames ``context``, camera -> [B, K, C, h, w], whatever comes next."""
        ...

    def shift(self, memory: FrameMemory, latent: Mapping[str, Tensor], instruction: Tensor) -> FrameMemory:
        """The same as `remember` of `shift_frames`, ``latent`` camera -> [B, C, h, w] being next, and often cheaper."""
        ...

    def __call__(
        self, noisy: Mapping[str, Tensor], t: Tensor, memory: FrameMemory, conditioning: Conditioning
    ) -> DenoiserOutput:
        """``noisy`` camera -> [B, L, C, h, w] at time ``t`` [B] of the flow path, after what ``memory`` holds."""
        ...
