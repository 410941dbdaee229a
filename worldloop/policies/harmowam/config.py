"""The settings of HarmoWAM."""

from __future__ import annotations

from dataclasses import dataclass

from worldloop.core.errors import require_choice, require_positive, require_range
from worldloop.core.interaction import INTERACTION_SIGNS, InteractionRule

ACTS_BY = ("gate", "predictive", "reactive", "average")


@dataclass(frozen=True)
class HarmoWAMConfig:
    """The experts' networks, how the gate is taught, and how the policy acts."""

    acts_by: str = "gate"  # gate | predictive | reactive | average: which expert decides a chunk
    gate_signs: tuple[str, ...] = ("gripper", "distance")  # of an interaction, see `InteractionRule`
    gate_frames: int = 0  # frames before and after that of a change of the gripper that count as well
    gate_distance_m: float = 0.06  # from the hand to an object that it does not hold, below which it counts; metres
    width: int = 128  # channels of every token
    num_layers: int = 3  # blocks of the predictive expert
    num_heads: int = 4  # attention heads; divides width
    num_denoising_steps: int = 5  # Euler steps from noise to the actions of the predictive expert
    uses_features: bool = True  # whether the experts see the planner's tokens; false is a control
    stem_channels: tuple[int, ...] = (32, 48, 32)  # output channels of each stride-2 convolution on the frame now
    num_image_tokens: int = 4  # per camera: one from keypoints, the others from flattened stem features
    num_keypoints: int = 32  # spatial-softmax keypoints per camera
    proprio_prefixes: tuple[str, ...] = ("tcp",)  # proprio of the predictive expert, by prefix of the names; "": all
    action_low: float = -0.6  # lowest action, environment units
    action_high: float = 0.6  # highest action, environment units
    full_range_actions: tuple[str, ...] = ("gripper",)  # actions, by prefix, with the robot's range
    reactive_weight: float = 0.1  # of the reactive expert's loss, beside the predictive expert's
    gate_weight: float = 0.05  # of the gate's loss
    augment_shift_px: int = 1  # cloning: largest random shift of the frame now, in pixels; 0: none
    augment_brightness: float = 0.1  # cloning: largest relative change of brightness, in [0, 1); 0: none
    num_cached_plans: int = 20000  # plans kept in memory while the experts learn

    def __post_init__(self) -> None:
        require_choice("policy.harmowam.acts_by", self.acts_by, ACTS_BY)
        for sign in self.gate_signs:
            require_choice("policy.harmowam.gate_signs", sign, INTERACTION_SIGNS)
        if not self.stem_channels or min(self.stem_channels) < 1:
            raise ValueError(f"policy.harmowam.stem_channels is {self.stem_channels}; allowed: positive numbers")
        if not self.gate_signs:
            raise ValueError("policy.harmowam.gate_signs names nothing that the gate could learn from")
        for key in ("gate_frames", "augment_shift_px", "num_cached_plans"):
            require_range(f"policy.harmowam.{key}", getattr(self, key), 0)
        for key in ("width", "num_layers", "num_heads", "num_denoising_steps", "num_keypoints"):
            require_range(f"policy.harmowam.{key}", getattr(self, key), 1)
        require_range("policy.harmowam.num_image_tokens", self.num_image_tokens, 2)
        require_positive("policy.harmowam.gate_distance_m", self.gate_distance_m)
        for key in ("reactive_weight", "gate_weight"):
            require_range(f"policy.harmowam.{key}", getattr(self, key), 0)
        if not 0 <= self.augment_brightness < 1:
            raise ValueError(f"policy.harmowam.augment_brightness is {self.augment_brightness}; allowed: 0 to below 1")
        if self.width % self.num_heads or self.width % 2:
            raise ValueError(f"policy.harmowam.width is {self.width}; allowed: even multiples of num_heads")
        if self.action_low >= self.action_high:
            raise ValueError(
                f"policy.harmowam.action_low is {self.action_low}; allowed: below action_high {self.action_high}"
            )

    @property
    def interaction(self) -> InteractionRule:
        """What the gate is taught."""
        return InteractionRule(self.gate_signs, self.gate_frames, self.gate_distance_m)
