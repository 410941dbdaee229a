"""The state of an imagined rollout: plain tensors, so that it can be indexed, forked, saved and restored."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from worldloop.core.interfaces import WorldState
from worldloop.core.tensors import check_shape, prefix
from worldloop.world_model.denoiser import FrameMemory


@dataclass(frozen=True)
class ImaginationState(WorldState):
    """The state of a `VideoWorldModel`, B rows.

    - ``memory``: the denoiser's memory of the K context frames; ``context`` are their latents
    - ``low_dim`` f32 [B, D]: proprio now, normalised, then scaled landmarks, see `VideoWorldModel.normalise`
    - ``instruction`` f32 [B, E]: embedded
    """

    memory: FrameMemory
    low_dim: Tensor
    instruction: Tensor

    def __post_init__(self) -> None:
        B = len(self.noise_key)
        for camera, latents in self.context.items():
            check_shape(f"ImaginationState.context[{camera!r}]", latents, (B, None, None, None, None))
        check_shape("ImaginationState.low_dim", self.low_dim, (B, None))
        check_shape("ImaginationState.instruction", self.instruction, (B, None))
        check_shape("ImaginationState.step", self.step, (B,))

    def fork(self, noise_key: Tensor) -> ImaginationState:
        """The same rows, with other noise for the frames to come."""
        return replace(self, noise_key=noise_key)

    @property
    def context(self) -> dict[str, Tensor]:
        """Latents of the context frames, camera -> f32 [B, K, C, h, w]."""
        return self.memory.frames

    def to_tensors(self) -> dict[str, Tensor]:
        """Name -> tensor, everything to save; `VideoWorldModel.restore` computes the rest of the memory again.

        The names of latents are ``context.<camera>``.
        """
        names = ("low_dim", "instruction", "noise_key", "step")
        tensors = prefix("context", self.context) | {name: getattr(self, name) for name in names}
        return {name: tensor.contiguous() for name, tensor in tensors.items()}
