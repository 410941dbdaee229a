"""ToyPush-v1: the white disc pushes the blue one to the goal."""

from __future__ import annotations

import torch
from torch import Tensor

from worldloop.simulators.perturbations import VariantParameters
from worldloop.simulators.toy.scene import (
    ACTION_LIMIT,
    BLOCK,
    BLOCK_RADIUS,
    BLOCK_START,
    CONTACT,
    GOAL,
    GOAL_RADIUS,
    WAY,
    ToyTask,
    measure_distance,
)


class PushTask(ToyTask):
    """Success: the block's centre is in the goal region."""

    def measure_gap(self, state: Tensor) -> Tensor:
        return measure_distance(state[:, BLOCK], state[:, GOAL]) - GOAL_RADIUS

    def plan(self, parameters: VariantParameters, state: Tensor, agent: Tensor) -> Tensor:
        """Move to the line behind the block, then along the line. ``too_high`` and ``far`` do not touch the block."""
        p, start = parameters, state[:, BLOCK_START]
        # lateral offsets are given in ManiSkill's metres for a 4 cm cube; the toy's block is 0.36 units wide
        offset = p.lateral_m / 0.04 * 2 * BLOCK_RADIUS + torch.where(p.height_m > 0, 0.5 + 2 * p.height_m, 0.0)
        offset = torch.where(p.wanders, torch.where(start[:, 1] > 0, -0.7, 0.7), offset)
        line_y = start[:, 1] + offset
        final_x = start[:, 0] + p.progress.clamp_max(1.15) * WAY - CONTACT
        off_line = (agent[:, 1] - line_y).abs()
        is_behind = agent[:, 0] <= start[:, 0] - CONTACT
        goes = (off_line < 0.03) | (~is_behind & (off_line < 0.1))
        behind_x = torch.minimum(agent[:, 0], start[:, 0] - CONTACT - 0.06)
        target_x = torch.where(goes, final_x, behind_x)
        return torch.stack([target_x - agent[:, 0], line_y - agent[:, 1]], dim=1)

    def limit_speed(self, parameters: VariantParameters) -> Tensor:
        return ACTION_LIMIT * parameters.speed


PUSH = PushTask(
    "ToyPush-v1",
    (
        "push the blue disc to the red goal",
        "move the blue disc onto the red circle",
        "shove the blue disc along until it lies on the red goal",
    ),
)
