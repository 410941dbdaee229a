"""Where an imagined rollout stands: plain tensors, so that it can be indexed, forked, saved and restored."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from torch import Tensor

from worldloop.tensors import Rows, check_shape


@dataclass(frozen=True)
class ImaginationState(Rows):
    """The `WorldState` of `VideoWorldModel`, B rows.

    - ``context`` f32 [B, K, C, size, size]: latents of (first, previous, now)
    - ``proprio`` f32 [B, S]: now, normalised
    - ``instruction`` f32 [B, E]: embedded
    - ``noise_key`` int64 [B], ``step`` int64 [B]: frames imagined so far; noise is a function of (key, step)

    `rows` selects or forks rows (repeats allowed): a fork shares its past and continues bit-equal in a batch of the
    same size.
    """

    context: Tensor
    proprio: Tensor
    instruction: Tensor
    noise_key: Tensor
    step: Tensor

    def __post_init__(self) -> None:
        B = len(self.noise_key)
        check_shape("ImaginationState.context", self.context, (B, None, None, None, None))
        check_shape("ImaginationState.proprio", self.proprio, (B, None))
        check_shape("ImaginationState.instruction", self.instruction, (B, None))
        check_shape("ImaginationState.step", self.step, (B,))

    def __len__(self) -> int:
        return len(self.noise_key)

    def fork(self, noise_key: Tensor) -> ImaginationState:
        """The same rows with other noise from here on."""
        return replace(self, noise_key=noise_key)

    def to_tensors(self) -> dict[str, Tensor]:
        """Everything there is to save, by name."""
        return {f.name: getattr(self, f.name).contiguous() for f in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> ImaginationState:
        """Inverse of `to_tensors`."""
        return cls(**{f.name: tensors[f.name] for f in fields(cls)})
