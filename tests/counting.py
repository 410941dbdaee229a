"""What the tests of imagination and of its environments share: a simulator of one coordinate, and a model's state."""

from dataclasses import dataclass

from torch import Tensor

from worldloop.core.specs import CameraSpec, RobotSpec, SimulatorSpec, TaskSpec
from worldloop.core.tensors import Rows

SPEC = SimulatorSpec(
    robot=RobotSpec(
        name="r", proprio_names=("x",), action_names=("a",), action_low=(-1.0,), action_high=(1.0,), control_mode="c",
        hz=10, cameras=(CameraSpec("cam", 2, 2),),
    ),
    tasks=(TaskSpec("t", ("i",), success_radius_m=0.1, max_episode_steps=8),),
    actions_per_frame=2,
    simulator_version="v",
)  # fmt: skip


@dataclass(frozen=True)
class CountingState(Rows):
    """``position`` f32 [B], and what every `WorldState` has."""

    position: Tensor
    noise_key: Tensor
    step: Tensor

    def to_tensors(self) -> dict[str, Tensor]:
        return {"position": self.position, "noise_key": self.noise_key, "step": self.step}
