"""The interface between the denoising network and the rest of the world model.

Flow path, losses, heads, sampler, self-rollout and calibration use only this interface.
Latents are a dict by camera; their size h x w may differ by camera.

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
    """The denoiser's inputs beside the images.

    - ``actions`` f32 [B, L, s, A] in [-1, 1]
    - ``proprio`` [B, D] now, and ``next_proprio`` [B, L, D] predicted by the proprio head: proprio and landmarks, see
      `VideoWorldModel.normalise`
    - ``instruction`` [B, E], embedded
    - ``is_plan``: actions and proprio are not known, only stand-ins for them; no pose is drawn from these
    """

    actions: Tensor
    proprio: Tensor
    next_proprio: Tensor
    instruction: Tensor
    is_plan: bool = False


@dataclass(frozen=True)
class DenoiserOutput:
    """``data``, camera -> f32 [B, L, C, h, w]: the predicted clean latents.

    ``features`` [B, L, N, F]: the reward token, then the image tokens of all cameras. No action token.
    """

    data: dict[str, Tensor]
    features: Tensor


@dataclass(frozen=True)
class FrameMemory(Rows):
    """The past as a denoiser stores it.

    ``frames``, camera -> f32 [B, K, C, h, w]: latents of the episode's first frame and of the K - 1 latest; now is
    last.
    """

    frames: dict[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.frames.values())))


class Denoiser(Protocol):
    """A `torch.nn.Module` that predicts clean latents, registered in `worldloop.world_model.DENOISERS`.

    - ``Config``: a frozen dataclass, built from the section ``world_model.<name>`` of a config
    - ``frames_per_call`` is L, ``num_context_frames`` is K, ``feature_dim`` is F
    - ``ignores_noise``: at t = 0 the output does not depend on ``noisy``, so sampling in one step needs no noise

    ``channels`` and ``sizes``, camera -> (h, w), are those of the latents; ``instruction`` is [B, E] with
    E = ``instruction_dim``. The prediction of one camera depends on all cameras.
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
        """Compute the memory of the frames in ``context``, camera -> [B, K, C, h, w]."""
        ...

    def shift(self, memory: FrameMemory, latent: Mapping[str, Tensor], instruction: Tensor) -> FrameMemory:
        """Append ``latent``, camera -> [B, C, h, w]: equals `remember` of `shift_frames`, often cheaper."""
        ...

    def __call__(
        self, noisy: Mapping[str, Tensor], t: Tensor, memory: FrameMemory, conditioning: Conditioning
    ) -> DenoiserOutput:
        """Predict clean latents after ``memory`` from ``noisy``, camera -> [B, L, C, h, w], at time ``t`` [B]."""
        ...

    def read_slots(self, slots: Tensor, t: Tensor, memory: FrameMemory, conditioning: Conditioning) -> Tensor:
        """``slots`` [B, n, F] after they have attended to ``memory`` and to one another; ``t`` [B, n] is their time."""
        ...
