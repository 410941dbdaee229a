"""Every setting of the world model. Sizes that the simulator fixes (pixels, proprio, actions) are not here.

Each denoiser in `worldloop.world_model.DENOISERS` has a section of its own name: ``world_model.hybrid`` is a
`HybridConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from worldloop.core.errors import require_choice, require_range
from worldloop.core.sections import add_sections
from worldloop.core.specs import SimulatorSpec
from worldloop.world_model import CODECS, DENOISERS

PRECISIONS = ("fp32", "bf16")
VIDEO_LOSSES = ("l1", "mse")
SUCCESS_LOSSES = ("bce", "mse")


@dataclass(frozen=True)
class SelfRolloutConfig:
    """Training on the model's own predictions, see `SelfRolloutPool`."""

    share: float = 0.5  # share of a batch that continues the model's own predictions, in [0, 1]; 0: none

    def __post_init__(self) -> None:
        require_range("world_model.self_rollout.share", self.share, 0, 1)


@add_sections(DENOISERS)
@dataclass(frozen=True)
class WorldModelConfig:
    """Architecture, losses and sampling of the world model."""

    cameras: tuple[str, ...] = ()  # cameras that it reads and imagines, in one pass; empty: all of the robot's
    head_cameras: tuple[str, ...] = ()  # those of them that heads and reader of landmarks read; empty: all
    landmarks: bool = False  # carry on where the objects are, beside proprio; needs their true positions in training
    num_members: int = 1  # proprio heads, whose mean counts; 1 or more
    denoiser: str = "hybrid"  # which denoiser: hybrid or cosmos
    codec: str = "pixel"  # which codec: pixel, or wan (from pretrained)
    pretrained: str = ""  # Cosmos-Predict2 Video2World, folder or Hub name; needs denoiser cosmos, codec wan; "": none
    lora_rank: int = 16  # rank of the adapters of a pretrained transformer; 0: train all its weights
    text_tokens: int = 512  # tokens of the instruction for a pretrained transformer
    self_rollout: SelfRolloutConfig = field(default_factory=SelfRolloutConfig)  # training on own predictions
    num_sampler_steps: int = 1  # denoising steps per imagined frame; 1: the mean prediction
    zero_time_share: float = 0.6  # share of training samples that start from pure noise (t = 0), in [0, 1]
    context_noise: float = 0.05  # largest noise (std) on context latents in training; pixels are -1 to 1; 0: none
    video_loss: str = "mse"  # pixel loss: l1 or mse
    moved_weight: float = 4.0  # extra weight of pixels where the target differs from now or the first frame; 0: none
    rare_weight: float = 1.0  # factor of the extra weight of pixels with rare colours; 0: none
    success_loss: str = "bce"  # loss of the success head: bce or mse (squared error of the probability)
    success_weight: float = 0.03  # weight of the success loss beside the video loss
    success_time_weight_max: float = 4.0  # largest weight, at clean frames, of the token success loss; 1: constant
    ema_decay: float = 0.995  # decay per step of the moving average of the weights, which is used to imagine
    precision: str = "bf16"  # arithmetic of the networks: fp32 or bf16 (autocast; weights stay fp32)

    def __post_init__(self) -> None:
        require_choice("world_model.denoiser", self.denoiser, tuple(DENOISERS))
        require_choice("world_model.codec", self.codec, tuple(CODECS))
        require_choice("world_model.video_loss", self.video_loss, VIDEO_LOSSES)
        require_choice("world_model.success_loss", self.success_loss, SUCCESS_LOSSES)
        require_choice("world_model.precision", self.precision, PRECISIONS)
        if bool(self.pretrained) != (self.codec == "wan") or (self.pretrained and self.denoiser != "cosmos"):
            raise ValueError(
                "world_model.pretrained goes with world_model.denoiser cosmos and world_model.codec wan, got "
                f"{self.pretrained!r}, {self.denoiser} and {self.codec}"
            )
        require_range("world_model.lora_rank", self.lora_rank, 0)
        require_range("world_model.num_members", self.num_members, 1)
        require_range("world_model.text_tokens", self.text_tokens, 1)
        require_range("world_model.num_sampler_steps", self.num_sampler_steps, 1)
        require_range("world_model.zero_time_share", self.zero_time_share, 0, 1)
        require_range("world_model.success_time_weight_max", self.success_time_weight_max, 1)
        require_range("world_model.ema_decay", self.ema_decay, 0, 0.999999)
        for key in ("context_noise", "moved_weight", "rare_weight", "success_weight"):
            require_range(f"world_model.{key}", getattr(self, key), 0)

    def select_cameras(self, spec: SimulatorSpec) -> tuple[SimulatorSpec, tuple[str, ...]]:
        """``spec`` with only the world model's cameras, and the names of the cameras that its heads read.

        Raises ``ValueError``, with the setting's name, for an unknown camera.
        """
        seen = _restrict("world_model.cameras", spec, self.cameras)
        return seen, _restrict("world_model.head_cameras", seen, self.head_cameras).robot.camera_names

    def denoiser_config(self) -> Any:
        """The config section of the chosen denoiser, an instance of its ``Config``."""
        return getattr(self, self.denoiser)


def _restrict(setting: str, spec: SimulatorSpec, cameras: tuple[str, ...]) -> SimulatorSpec:
    try:
        return spec.with_cameras(cameras)
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from error
