"""A token VLA a hundred times smaller, its spec, and observations and frames for it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from worldloop.core.randomness import make_generator
from worldloop.core.specs import CameraSpec, RobotSpec, SimulatorSpec, TaskSpec
from worldloop.core.types import ImitationBatch, Normalisation, Observation
from worldloop.policies.token_vla.policy import TokenVLA, TokenVLAConfig

TINY = TokenVLAConfig(
    width=32, num_layers=1, num_heads=2, mlp_width=64, stem_channels=(8, 8), num_image_tokens=2, augment_shift_px=1
)
PUSH, PULL = "push the cube to the goal", "pull the cube to the goal"
BASE, HAND = CameraSpec("base", 16, 16), CameraSpec("hand", 8, 12)


def make_spec(
    action_names: tuple[str, ...] = ("dx", "dy"), bound: float = 1.0, cameras: tuple[CameraSpec, ...] = (BASE,)
) -> SimulatorSpec:
    A = len(action_names)
    robot = RobotSpec(
        name="arm", proprio_names=("tcp_x", "tcp_y", "joint_0"), action_names=action_names, action_low=(-bound,) * A,
        action_high=(bound,) * A, control_mode="delta", hz=20.0, cameras=cameras,
    )  # fmt: skip
    tasks = tuple(TaskSpec(text[:4], (text,), success_radius_m=0.1, max_episode_steps=20) for text in (PUSH, PULL))
    return SimulatorSpec(robot, tasks, actions_per_frame=1, simulator_version="test")


def make_policy(config: TokenVLAConfig = TINY, chunk_length: int = 2, **spec: object) -> TokenVLA:
    torch.manual_seed(0)
    normalisation = Normalisation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 2.0, 2.0]))
    return TokenVLA(config, make_spec(**spec), normalisation, chunk_length)  # type: ignore[arg-type]


def make_observation(
    num_rows: int, instruction: str = PUSH, seed: int = 0, cameras: tuple[CameraSpec, ...] = (BASE,)
) -> Observation:
    g = make_generator(seed, "test")
    sizes = {camera.name: (num_rows, 3, camera.height, camera.width, 3) for camera in cameras}
    frames = {name: torch.randint(0, 256, size, generator=g, dtype=torch.uint8) for name, size in sizes.items()}
    proprio = torch.randn(num_rows, 3, generator=g)
    return Observation(
        frames, proprio, (instruction[:4],) * num_rows, (instruction,) * num_rows, torch.arange(num_rows)
    )


def invert(observation: Observation, camera: str, index: tuple[slice | int, ...]) -> Observation:
    """``observation`` whose ``camera`` shows the negative at ``index`` of its rows and frames."""
    images = observation.frames[camera].clone()
    images[index] = 255 - images[index]
    return replace(observation, frames=observation.frames | {camera: images})


@dataclass(frozen=True)
class Frames:
    """An `ImitationSource` of which only the frames are asked for."""

    frames: dict[str, torch.Tensor]

    def images(self) -> dict[str, torch.Tensor]:
        return self.frames

    def sample(self, generator: torch.Generator, batch_size: int, chunk_length: int) -> ImitationBatch:
        raise AssertionError("nothing is imitated")
