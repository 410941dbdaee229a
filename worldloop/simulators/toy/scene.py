"""The toy's plane, its flat state, and the interface of its tasks.

The plane is [-1, 1]^2. Where metres are reported, one unit counts as 0.1 m, so that margins compare with ManiSkill's.
All maths is elementwise per row, so a row's result is bit-identical in any batch.

State f32 [B, 11]: agent xy, agent velocity xy, block xy, goal xy, start-of-episode block xy, env_step.
Action f32 [B, 2]: (dx, dy) in [-1, 1]; 1 moves the agent 0.2 units. Proprio: agent xy, agent velocity xy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from worldloop.simulators.perturbations import VariantParameters

METRES_PER_UNIT = 0.1
STATE_DIM = 11
AGENT, BLOCK, GOAL, BLOCK_START = slice(0, 2), slice(4, 6), slice(6, 8), slice(8, 10)
STEP = 0.2  # units the agent moves per step at full action
AGENT_RADIUS, BLOCK_RADIUS, GOAL_RADIUS = 0.16, 0.18, 0.3
CONTACT = AGENT_RADIUS + BLOCK_RADIUS
WAY = 0.5  # units the block has to move to reach the goal region
ACTION_LIMIT = 0.6  # largest action of scripted policies


@dataclass(frozen=True)
class ToyTask(ABC):
    """One task in the scene that all tasks share."""

    id: str
    instructions: tuple[str, ...]

    @abstractmethod
    def measure_gap(self, state: Tensor) -> Tensor:
        """Distance f32 [B] to the success region in units, for ``state`` [B, 11]; 0 or less is a success."""

    @abstractmethod
    def plan(self, parameters: VariantParameters, state: Tensor, agent: Tensor) -> Tensor:
        """The move f32 [B, 2], in units, that a scripted row wants to make from ``agent`` [B, 2], its agent's place."""

    @abstractmethod
    def limit_speed(self, parameters: VariantParameters) -> Tensor:
        """The largest action f32 [B] of each scripted row."""


def measure_distance(a: Tensor, b: Tensor) -> Tensor:
    """Distance f32 [B] between the points ``a`` and ``b``, each [B, 2]."""
    gap = a - b
    return (gap[:, 0] * gap[:, 0] + gap[:, 1] * gap[:, 1]).sqrt()
