"""ToyReach-v1: the white disc goes around the blue one to the goal, in the scene of ToyPush-v1."""

from __future__ import annotations

import torch
from torch import Tensor

from worldloop.simulators.perturbations import VariantParameters
from worldloop.simulators.toy.scene import (
    ACTION_LIMIT,
    AGENT,
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

_CLEARANCE = CONTACT + 0.08  # units in y between the path around the block and the block's centre
_PAST = 0.05  # units in x beyond the block's centre at which the path turns to the goal


class ReachTask(ToyTask):
    """Success: the agent's centre is in the goal region, and the block has not been pushed to the region.

    The block counts as not pushed there if it is at most `WAY` from its start, which the state holds.
    """

    def measure_gap(self, state: Tensor) -> Tensor:
        agent = measure_distance(state[:, AGENT], state[:, GOAL]) - GOAL_RADIUS
        pushed_too_far = measure_distance(state[:, BLOCK], state[:, BLOCK_START]) - WAY
        return torch.maximum(agent, pushed_too_far)

    def plan(self, parameters: VariantParameters, state: Tensor, agent: Tensor) -> Tensor:
        """Move to the side of the block, past it, and then straight to the goal.

        A lateral offset brings the path that much nearer to the block, so that the agent pushes it along or aside.
        ``too_high`` ends beside the goal, ``stops_short`` before it, and ``far`` stays at the plane's edge.
        """
        p, start, goal = parameters, state[:, BLOCK_START], state[:, GOAL]
        side = torch.where(agent[:, 1] >= start[:, 1], 1.0, -1.0)
        clearance = _CLEARANCE - p.lateral_m.abs() / 0.04 * 2 * BLOCK_RADIUS
        line_y = start[:, 1] + side * clearance
        corner_x = start[:, 0] + _PAST
        final_x = torch.where(p.progress < 1, start[:, 0] + p.progress * WAY, goal[:, 0])
        # where the row ends on the last leg, as a share of the way from the corner to the goal
        share = ((final_x - corner_x) / (goal[:, 0] - corner_x)).clamp(0, 1)
        beside = torch.where(p.height_m > 0, side * (0.5 + 2 * p.height_m), 0.0)
        final_y = line_y + share * (goal[:, 1] - line_y) + beside
        is_aside = (agent[:, 1] - line_y).abs() < 0.03
        is_past = agent[:, 0] >= corner_x
        wait_x = torch.minimum(agent[:, 0], start[:, 0] - CONTACT - 0.06)
        pass_x = torch.minimum(final_x, corner_x + 0.1)
        target_x = torch.where(is_past, final_x, torch.where(is_aside, pass_x, wait_x))
        target_y = torch.where(is_past, final_y, line_y)
        edge_y = start[:, 1] + torch.where(start[:, 1] > 0, -0.7, 0.7)
        target_x = torch.where(p.wanders, start[:, 0] - 0.3, target_x)
        target_y = torch.where(p.wanders, edge_y, target_y)
        return torch.stack([target_x - agent[:, 0], target_y - agent[:, 1]], dim=1)

    def limit_speed(self, parameters: VariantParameters) -> Tensor:
        """The largest action f32 [B]; larger than for pushing, because the path is twice as long."""
        return ACTION_LIMIT * (parameters.speed + 0.4).clamp_max(1.0)


REACH = ReachTask(
    "ToyReach-v1",
    (
        "bring the white disc to the red goal",
        "go around the blue disc to the red circle",
        "move the white disc onto the red goal and leave the blue one behind",
    ),
)
