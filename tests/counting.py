"""What the tests of imagination and of its environments share: a simulator of one coordinate, and a model's state."""

from dataclasses import dataclass

from torch import Tensor

from worldloop.core.specs import SimulatorSpec
from worldloop.core.tensors import Rows

SPEC = SimulatorSpec(
    task="t", instruction="i", image_size=2, proprio_names=("x",), action_names=("a",), action_low=(-1.0,),
    action_high=(1.0,), hz=10, actions_per_frame=2, max_episode_steps=8, success_radius_m=0.1, control_mode="c",
    camera="cam", simulator_version="v",
)  # fmt: skip


@dataclass(frozen=True)
class CountingState(Rows):
    """``position`` f32 [B], and what every `WorldState` has."""

    position: Tensor
    noise_key: Tensor
    step: Tensor

    def to_tensors(self) -> dict[str, Tensor]:
        return {"position": self.position, "noise_key": self.noise_key, "step": self.step}
