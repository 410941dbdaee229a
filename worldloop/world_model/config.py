"""Every setting of the world model. Sizes that the simulator fixes (pixels, proprio, actions) are not here."""

from __future__ import annotations

from dataclasses import dataclass, field

from worldloop.core.errors import require_choice, require_positive, require_range

DENOISERS = ("hybrid", "cosmos")
PREDICTIONS = ("data", "velocity")
CODECS = ("pixel", "wan")
PRECISIONS = ("fp32", "bf16")
VIDEO_LOSSES = ("l1", "mse")
SUCCESS_LOSSES = ("bce", "mse")


@dataclass(frozen=True)
class HybridConfig:
    """The convolutional U-Net with a transformer bottleneck."""

    patch: int = 4  # pixels per side that the input folds into channels: the U-Net runs at size / patch
    width: int = 48  # channels of the U-Net
    patch_hidden: int = 192  # hidden channels between a patch's pixels and the U-Net, and back
    num_res_blocks: int = 2  # FiLM residual blocks before and again after the transformer
    dim: int = 128  # channels of the transformer at size / (2 patch)
    num_heads: int = 4  # attention heads; divides dim
    num_blocks: int = 3  # transformer blocks
    condition_dim: int = 192  # channels of the vector that conditions the residual blocks
    num_poses: int = 8  # local coordinate systems that proprio places on the image, now and next; 0: none

    def __post_init__(self) -> None:
        for key in (
            "patch",
            "width",
            "patch_hidden",
            "num_res_blocks",
            "dim",
            "num_heads",
            "num_blocks",
            "condition_dim",
        ):
            require_range(f"world_model.hybrid.{key}", getattr(self, key), 1)
        require_range("world_model.hybrid.num_poses", self.num_poses, 0)
        if self.dim % self.num_heads or self.condition_dim % 2:
            raise ValueError(
                f"world_model.hybrid.dim {self.dim} must be a multiple of hybrid.num_heads {self.num_heads} "
                f"and hybrid.condition_dim {self.condition_dim} even"
            )


@dataclass(frozen=True)
class CosmosConfig:
    """The transformer of Cosmos-Predict2 (diffusers' `CosmosTransformer3DModel`) at a size of one's own.

    The published 2B Video2World has 28 layers of 16 heads of 128, patch 2 on latents of 16 channels, text_dim 1024,
    rope_scale (1, 3, 3), a padding mask, and predicts velocity.
    """

    patch: int = 8  # latents per side and token
    num_layers: int = 6  # transformer blocks
    num_heads: int = 6  # attention heads
    head_dim: int = 32  # channels of a head, even, at least 12
    mlp_ratio: float = 4.0  # hidden channels of a block's MLP, over those of the transformer
    adaln_lora_dim: int = 64  # hidden channels of an adaptive layer norm
    condition_dim: int = 192  # hidden channels of what actions and proprio add to the time embedding
    patch_hidden: int = 192  # hidden channels between a patch's latents and its token, and back
    num_poses: int = 8  # local coordinate systems that proprio places on the image, now and next; 0: none
    rope_scale: tuple[float, float, float] = (1.0, 1.0, 1.0)  # rotary scaling over time, height, width
    concat_padding_mask: bool = False  # the published models have one more input channel, which is zero
    num_context_frames: int = 3  # that it remembers, at least 3: the episode's first and the latest
    prediction: str = "data"  # data (the change since now) or velocity (as published)

    def __post_init__(self) -> None:
        for key in ("patch", "num_layers", "num_heads", "adaln_lora_dim", "condition_dim", "patch_hidden"):
            require_range(f"world_model.cosmos.{key}", getattr(self, key), 1)
        require_range("world_model.cosmos.head_dim", self.head_dim, 12)
        require_range("world_model.cosmos.num_poses", self.num_poses, 0)
        require_range("world_model.cosmos.num_context_frames", self.num_context_frames, 3)
        require_positive("world_model.cosmos.mlp_ratio", self.mlp_ratio)
        require_choice("world_model.cosmos.prediction", self.prediction, PREDICTIONS)
        if self.head_dim % 2:
            raise ValueError(f"world_model.cosmos.head_dim is {self.head_dim}, allowed: even numbers")


@dataclass(frozen=True)
class SelfRolloutConfig:
    """Training on the model's own predictions, see `SelfRolloutPool`."""

    share: float = 0.5  # share of a batch that continues the model's own predictions, 0 to 1; 0: off

    def __post_init__(self) -> None:
        require_range("world_model.self_rollout.share", self.share, 0, 1)


@dataclass(frozen=True)
class WorldModelConfig:
    """Architecture, losses and sampling of the world model."""

    denoiser: str = "hybrid"  # which denoiser: hybrid or cosmos
    codec: str = "pixel"  # which codec: pixel, or wan (of pretrained)
    pretrained: str = ""  # Cosmos-Predict2 Video2World pipeline, folder or Hub name; wants denoiser cosmos, codec wan
    lora_rank: int = 16  # of the adapters that train a pretrained transformer; 0 trains all of it
    text_tokens: int = 512  # of the instruction, to a pretrained transformer
    hybrid: HybridConfig = field(default_factory=HybridConfig)  # settings of the hybrid denoiser
    cosmos: CosmosConfig = field(default_factory=CosmosConfig)  # settings of the cosmos denoiser
    self_rollout: SelfRolloutConfig = field(default_factory=SelfRolloutConfig)  # training on own predictions
    num_sampler_steps: int = 1  # denoising steps per imagined frame; 1 gives its mean, whatever the noise
    zero_time_share: float = 0.6  # share of training samples that start from pure noise (t = 0), 0 to 1
    context_noise: float = 0.05  # largest noise added to context frames in training, in units of [-1, 1] images
    video_loss: str = "mse"  # pixel loss: l1 or mse
    moved_weight: float = 4.0  # extra pixel weight where the target differs from now or from the first frame
    rare_weight: float = 1.0  # strength of the extra pixel weight of rare colours; 0: none
    success_loss: str = "bce"  # loss of the success head: bce or mse (squared error of the probability)
    success_weight: float = 0.03  # weight of the success loss beside the video loss
    success_time_weight_max: float = 4.0  # cap of the success loss' growth towards clean frames; 1: none
    ema_decay: float = 0.995  # decay per step of the averaged weights that imagine
    precision: str = "bf16"  # arithmetic of the networks: fp32 or bf16 (autocast; weights stay fp32)

    def __post_init__(self) -> None:
        require_choice("world_model.denoiser", self.denoiser, DENOISERS)
        require_choice("world_model.codec", self.codec, CODECS)
        require_choice("world_model.video_loss", self.video_loss, VIDEO_LOSSES)
        require_choice("world_model.success_loss", self.success_loss, SUCCESS_LOSSES)
        require_choice("world_model.precision", self.precision, PRECISIONS)
        if bool(self.pretrained) != (self.codec == "wan") or (self.pretrained and self.denoiser != "cosmos"):
            raise ValueError(
                "world_model.pretrained goes with world_model.denoiser cosmos and world_model.codec wan, got "
                f"{self.pretrained!r}, {self.denoiser} and {self.codec}"
            )
        require_range("world_model.lora_rank", self.lora_rank, 0)
        require_range("world_model.text_tokens", self.text_tokens, 1)
        require_range("world_model.num_sampler_steps", self.num_sampler_steps, 1)
        require_range("world_model.zero_time_share", self.zero_time_share, 0, 1)
        require_range("world_model.success_time_weight_max", self.success_time_weight_max, 1)
        require_range("world_model.ema_decay", self.ema_decay, 0, 0.999999)
        for key in ("context_noise", "moved_weight", "rare_weight", "success_weight"):
            require_range(f"world_model.{key}", getattr(self, key), 0)
