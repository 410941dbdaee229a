"""Actions as tokens: uniform bins per dimension, as in OpenVLA (arXiv:2406.09246)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worldloop.core.specs import RobotSpec


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
        rows = []
        for name, bound_low, bound_high in zip(robot.action_names, robot.action_low, robot.action_high, strict=True):
            is_full = name.startswith(tuple(full_range))
            first = bound_low if is_full else max(low, bound_low)
            last = bound_high if is_full else min(high, bound_high)
            if first >= last:
                raise ValueError(
                    f"action_low/high [{low}, {high}] leaves no range for action {name!r}, "
                    f"whose bounds are [{bound_low}, {bound_high}]"
                )
            rows.append(torch.linspace(first, last, num_bins, dtype=torch.float64))
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
