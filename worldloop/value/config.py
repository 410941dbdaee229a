"""Which critic a run fits, what it predicts, and the settings of ViVa."""

from __future__ import annotations

from dataclasses import dataclass

from worldloop.core.errors import require_choice, require_range
from worldloop.value import CRITICS
from worldloop.value.returns import TARGETS

KINDS = (*CRITICS, "viva")  # `viva` is built on a world model, the others from the data alone
COPIES = ("1", "64", "all")


@dataclass(frozen=True)
class ValueConfig:
    kind: str = "categorical"  # categorical (201 bins) | success (one probability) | viva (the world model with slots)
    target: str = "recap"  # recap: minus time to success, failures below | progress: share done | outcome: 0 or -1
    copies: str = "1"  # viva: noisy copies of the value in its slot: 1 | 64 | all (as many as latents of a frame)
    future_steps: int = 20  # viva: environment steps to the proprio that it predicts beside the value
    future_weight: float = 0.5  # viva: weight of the loss of that proprio; the value's is 1; 0: value alone
    pure_noise_share: float = 0.5  # viva: share of training slots that are pure noise, as in one-step inference
    from_world_model: bool = True  # viva: start from the fitted world model; false: as before its first fit
    learning_rate: float = 5.0e-4  # viva: peak

    def __post_init__(self) -> None:
        require_choice("value.kind", self.kind, KINDS)
        require_choice("value.target", self.target, TARGETS)
        require_choice("value.copies", self.copies, COPIES)
        require_range("value.future_steps", self.future_steps, 1)
        require_range("value.future_weight", self.future_weight, 0)
        require_range("value.pure_noise_share", self.pure_noise_share, 0, 1)
        require_range("value.learning_rate", self.learning_rate, 1e-7, 1)

    @property
    def uses_world_model(self) -> bool:
        """Whether the critic starts from the fitted world model, which must then be there."""
        return self.kind == "viva" and self.from_world_model
