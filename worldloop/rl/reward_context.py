"""The type of a reward term and its context. Not in `rewards`, which imports terms from other files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from worldloop.core.specs import SimulatorSpec
from worldloop.core.success import Calibrations
from worldloop.core.types import Rollout


@dataclass(frozen=True)
class RewardContext:
    """What a reward term may read beside the rollout; ``spec`` and ``calibrations`` cover the tasks of all rows.

    ``last_value`` f32 [B] in [0, 1]: what critics expect from each row's last state, on the scale of a return, where a
    success is 1; or ``None``.
    """

    spec: SimulatorSpec
    calibrations: Calibrations
    last_value: Tensor | None = None


RewardTerm = Callable[[Rollout, RewardContext], Tensor]  # -> f32 [B], before the weight is applied
