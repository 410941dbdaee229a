"""Actions as tokens: uniform bins per dimension, as in OpenVLA (arXiv:2406.09246)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worldloop.core.specs import RobotSpec
from worldloop.policies.robot_dimensions import find_action_range


class ActionBins(nn.Module):
    """Maps actions f32 [..., A] to tokens int64 [..., A] in 0..num_bins-1 and back to bin centres.

    Each dimension's centres are evenly spaced over [low, high], clipped to the robot's bounds. A dimension whose name
    starts with one of ``full_range`` (e.g. a gripper) uses the robot's whole range. With a symmetric range and an odd
    ``num_bins``, zero is a centre. ``encode(decode(token)) == token`` holds exactly. Raises ``ValueError`` where no
    range is left.
    """

    centres: Tensor

    def __init__(
        self, robot: RobotSpec, low: float, high: float, num_bins: int, full_range: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        ranges = zip(*find_action_range(robot, low, high, full_range), strict=True)
        rows = [torch.linspace(first, last, num_bins, dtype=torch.float64) for first, last in ranges]
        self.num_bins = num_bins
        # linspace gives about 1e-17 where a centre should be exactly zero.
        centres = torch.stack(rows)
        centres = torch.where(centres.abs() < 1e-9, torch.zeros_like(centres), centres)
        self.register_buffer("centres", centres.float(), persistent=False)

    def encode(self, actions: Tensor) -> Tensor:
        """Tokens of the nearest centres; an action outside the range gets the outermost bin."""
        first, last = self.centres[:, 0], self.centres[:, -1]
        position = (actions - first) / (last - first) * (self.num_bins - 1)
        return position.round().clamp(0, self.num_bins - 1).long()

    def decode(self, tokens: Tensor) -> Tensor:
        """Bin centres f32 [..., A] of ``tokens`` int64 [..., A]."""
        dims = torch.arange(self.centres.shape[0], device=tokens.device)
        return self.centres[dims, tokens]
