"""What a reward term is, and what it may look at. Apart from `rewards`, which imports the terms that live elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from worldloop.core.specs import SimulatorSpec
from worldloop.core.success import Calibrations
from worldloop.core.types import Rollout


@dataclass(frozen=True)
class RewardContext:
    """What terms may look at beside the rollout; ``spec`` and ``calibrations`` know every row's task.

    ``last_value`` f32 [B]: a critic's probability of success from each row's last state, or ``None``.
    """

    spec: SimulatorSpec
    calibrations: Calibrations
    last_value: Tensor | None = None


RewardTerm = Callable[[Rollout, RewardContext], Tensor]  # -> f32 [B], before its weight
