"""A simulator that draws nothing, for tests that look at no picture: drawing takes most of a step's time."""

from __future__ import annotations

import torch
from torch import Tensor

from worldloop.simulators.base import ChunkedSimulator


def draw_black(simulator: ChunkedSimulator, num_rows: int = 1) -> dict[str, Tensor]:
    """What `ChunkedSimulator._render` gives in the dark, of ``num_rows`` rows."""
    cameras = simulator.spec.robot.cameras
    return {c.name: torch.zeros(num_rows, c.height, c.width, 3, dtype=torch.uint8) for c in cameras}
