"""A world model of two cameras and two tasks whose every answer is known, for tests of environments and games."""

from dataclasses import dataclass

import torch
from torch import Tensor

from worldloop.core.interfaces import ImaginedChunk
from worldloop.core.specs import CameraSpec, RobotSpec, SimulatorSpec, TaskSpec
from worldloop.core.tensors import Rows
from worldloop.core.types import Observation

WIDE, HAND = CameraSpec("wide", 4, 6), CameraSpec("hand", 2, 3)


def make_spec(wide: CameraSpec = WIDE, hand: CameraSpec = HAND) -> SimulatorSpec:
    """A point on a line, to be moved to the right within 8 steps or to the left within 4."""
    robot = RobotSpec("point", ("x",), ("dx",), (-1.0,), (1.0,), "delta", hz=10, cameras=(wide, hand))
    right = TaskSpec("Right-v1", ("go right", "move to the right"), success_radius_m=0.1, max_episode_steps=8)
    left = TaskSpec("Left-v1", ("go left",), success_radius_m=0.1, max_episode_steps=4)
    return SimulatorSpec(robot, (right, left), actions_per_frame=2, simulator_version="v")


@dataclass(frozen=True)
class TwoViewsState(Rows):
    """``position`` f32 [B], ``direction`` f32 [B]: 1 to the right, -1 to the left."""

    position: Tensor
    direction: Tensor
    noise_key: Tensor
    step: Tensor

    def to_tensors(self) -> dict[str, Tensor]:
        return dict(vars(self))


class TwoViews:
    """Its position is the start's plus the sum of all actions; it has solved its task from 2 on in the right direction.

    ``wide`` shows 100 plus ten times the position, ``hand`` 200 minus that. It expects 30 dB less ten per unit.
    """

    def __init__(self, spec: SimulatorSpec | None = None) -> None:
        self.spec = spec or make_spec()

    def start(self, context: Observation, noise_key: Tensor) -> TwoViewsState:
        assert tuple(context.frames) == self.spec.robot.camera_names
        assert context.proprio is not None
        direction = torch.tensor([1.0 if task == "Right-v1" else -1.0 for task in context.task])
        return TwoViewsState(context.proprio[:, 0].clone(), direction, noise_key, torch.zeros_like(noise_key))

    def restore(self, tensors: dict[str, Tensor]) -> TwoViewsState:
        return TwoViewsState(**tensors)

    def imagine(self, state: TwoViewsState, actions: Tensor) -> tuple[TwoViewsState, ImaginedChunk]:
        position = state.position + actions.sum((1, 2))
        logit = torch.where(position * state.direction >= 2, 10.0, -10.0)[:, None]
        chunk = ImaginedChunk(self.show(position), position[:, None, None], logit, 30 - 10 * position.abs()[:, None])
        return TwoViewsState(position, state.direction, state.noise_key, state.step + 1), chunk

    def show(self, position: Tensor) -> dict[str, Tensor]:
        """Camera -> u8 [B, 1, h, w, 3]."""
        grey = {"wide": 100 + 10 * position, "hand": 200 - 10 * position}
        return {
            camera.name: grey[camera.name]
            .to(torch.uint8)[:, None, None, None, None]
            .expand(-1, 1, camera.height, camera.width, 3)
            .contiguous()
            for camera in self.spec.robot.cameras
        }

    def make_starts(self, positions: list[float], tasks: list[str]) -> Observation:
        """One observation for each position and task."""
        place = torch.tensor(positions)
        instruction = tuple(self.spec.task(task).instruction for task in tasks)
        env_step = torch.zeros(len(place), dtype=torch.long)
        return Observation(self.show(place), place[:, None], tuple(tasks), instruction, env_step)
