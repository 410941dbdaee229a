"""A LeRobot dataset for the toy simulator, made without it: what a robot's recorder would leave."""

from pathlib import Path
from typing import Any

import numpy as np

from worldloop.core.specs import SimulatorSpec
from worldloop.sans.lerobot_format import LeRobotWriter, image_feature, vector_feature
from worldloop.simulators.toy.simulator import ToyConfig, ToySimulator

NUM_ROWS, HEIGHT, WIDTH = 12, 24, 32
INSTRUCTIONS = ("Push the blue disc to the red goal.", "move the blue disc onto the red circle")


def make_toy_spec(**changes: Any) -> SimulatorSpec:
    """Two actions a frame, one held frame after a success, one camera of 16 x 16 pixels; or ``changes``."""
    return ToySimulator.make_spec(ToyConfig(**{"success_hold_frames": 1} | changes))


def write_demonstrations(
    root: Path,
    instructions: tuple[str, ...] = INSTRUCTIONS,
    *,
    camera: str = "base_camera",
    fps: int = 10,
    state_names: list[str] | None = None,
    action_names: list[str] | None = None,
    push: float = 0.5,
) -> Path:
    """One episode per instruction, of `NUM_ROWS` rows at the toy's 10 Hz; each succeeds at its eighth action.

    The action of row r of episode e is (``push``, e / 10 + r / 100), the state (r, e, 0, 0), the picture grey 20 r + e.
    """
    states, actions = ["agent_x", "agent_y", "agent_vx", "agent_vy"], ["dx", "dy"]
    features = {
        f"observation.images.{camera}": image_feature(HEIGHT, WIDTH),
        "observation.state": vector_feature("float32", 4, states if state_names is None else state_names or None),
        "action": vector_feature("float32", 2, actions if action_names is None else action_names or None),
        "next.success": vector_feature("bool", 1),
    }
    writer, row = LeRobotWriter(root, fps, features, "disc"), np.arange(NUM_ROWS)
    for number, instruction in enumerate(instructions):
        pictures = np.stack([np.full((HEIGHT, WIDTH, 3), 20 * r + number, np.uint8) for r in row])
        vectors = {
            "observation.state": np.stack([row, np.full(NUM_ROWS, number), 0 * row, 0 * row], 1).astype(np.float32),
            "action": np.stack([np.full(NUM_ROWS, push), number / 10 + row / 100], 1).astype(np.float32),
            "next.success": (row >= 7)[:, None],
        }
        writer.add_episode(instruction, {f"observation.images.{camera}": pictures}, vectors, {})
    writer.finish()
    return root
