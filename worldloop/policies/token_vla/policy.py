"""A small vision-language-action policy, after OpenVLA-OFT (arXiv:2502.19645).

Image tokens, an instruction token, an optional proprio token and H x A learned action queries attend to each other in
one bidirectional transformer. One forward pass decodes all action tokens of a chunk. Actions are bins, so
log-probabilities are exact, as GRPO needs.

    image u8 of each camera -> its own stem -> keypoints, flattened features -> tokens  \\
    instruction -> hashed words, indicator -> token                                      >  Llama blocks,
    proprio (chosen dimensions, normalised) -> token                                    /   full attention
    H x A action queries                                                               /    -> logits [B, H, A, bins]

Departures from OpenVLA-OFT:

1. Images enter through convolutional stems that keep absolute position. From few demonstrations this is much better
   than patches; see `image_stem`.
2. The transformer is trained from scratch.
3. With ``text_encoder`` or ``image_encoder`` a frozen pretrained network reads the instruction or the images; only what
   follows it learns (`networks.pretrained`).
4. The advantage indicator of RECAP (arXiv:2511.14759) is a learned vector on the instruction token, where RECAP writes
   words into the instruction. Guidance is exact here, since bins can be renormalised.

Shapes: B rows, H actions a chunk, A action dimensions, L tokens, C width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldloop.core import images, randomness
from worldloop.core.errors import WorldloopError
from worldloop.core.interfaces import AdvantageConditionedPolicy, ImitationSource, LikelihoodPolicy, Metrics
from worldloop.core.specs import CameraSpec, SimulatorSpec
from worldloop.core.tensors import check_shape
from worldloop.core.types import ActionChunk, ImitationBatch, Normalisation, Observation
from worldloop.networks.augment import augment_frames
from worldloop.networks.instruction import InstructionEncoder
from worldloop.networks.pretrained import (
    SentenceProjection,
    Source,
    VisionBackbone,
    find_source,
    open_sentence_encoder,
    open_vision_backbone,
)
from worldloop.networks.views import ViewModules
from worldloop.policies.image_stem import ImageStem
from worldloop.policies.robot_dimensions import choose_proprio
from worldloop.policies.token_vla.action_bins import ActionBins
from worldloop.policies.token_vla.feature_stem import FeatureStem

ENCODERS = ("text_encoder", "image_encoder")  # settings that name a frozen pretrained network
NUM_FITTED = 512  # frames per camera of which the mean features are taken


@dataclass(frozen=True)
class TokenVLAConfig:
    """The token VLA's shape, its action bins and how it learns from demonstrations."""

    cameras: tuple[str, ...] = ()  # cameras that the policy reads, by name; empty: all of the robot's
    width: int = 128  # channels of every token
    num_layers: int = 2  # transformer blocks
    num_heads: int = 4  # attention heads; divides width
    mlp_width: int = 256  # hidden channels of a block's gated MLP
    stem_channels: tuple[int, ...] = (32, 48, 32)  # output channels of each stride-2 convolution
    num_image_tokens: int = 4  # per camera: one from keypoints, the others from flattened stem features
    num_keypoints: int = 32  # spatial-softmax keypoints per camera
    num_frames: int = 1  # latest frames that the policy sees, 1 to 3; from 1 it cannot tell speed
    use_proprio: bool = True  # whether there is a proprio token
    proprio_prefixes: tuple[str, ...] = ("tcp",)  # proprio dimensions used, by prefix of their names; "": all
    action_low: float = -0.6  # lowest bin centre, environment units
    action_high: float = 0.6  # highest bin centre, environment units
    full_range_actions: tuple[str, ...] = ("gripper",)  # actions, by prefix, with bins over the robot's range
    num_bins: int = 13  # bins per action dimension; odd, so that zero is a bin centre
    temperature: float = 1.0  # softmax temperature of sampling and of every log-probability
    label_smoothing: float = 0.3  # cloning: probability of the neighbouring bins together, in [0, 1); 0: none
    augment_shift_px: int = 1  # cloning: largest random shift of an image, in pixels; 0: none
    augment_brightness: float = 0.1  # cloning: largest relative change of brightness, in [0, 1); 0: none
    text_encoder: str = ""  # folder, or hf://owner/name@revision, of a frozen sentence encoder; "": hashed words
    image_encoder: str = ""  # the same of a frozen vision backbone, whose features stems read; "": pixels
    encoder_versions: dict[str, str] = field(default_factory=dict)  # for checkpoints only: setting -> commit or hash

    def __post_init__(self) -> None:
        for key in ("width", "num_layers", "num_heads", "mlp_width", "num_keypoints"):
            if getattr(self, key) < 1:
                raise ValueError(f"policy.token_vla.{key} is {getattr(self, key)}; allowed: 1 or more")
        if self.num_image_tokens < 2:
            raise ValueError(f"policy.token_vla.num_image_tokens is {self.num_image_tokens}; allowed: 2 or more")
        if self.width % self.num_heads or (self.width // self.num_heads) % 2:
            raise ValueError(
                f"policy.token_vla.num_heads is {self.num_heads}; allowed: width / num_heads an even whole number"
            )
        if not self.stem_channels or min(self.stem_channels) < 1:
            raise ValueError(
                f"policy.token_vla.stem_channels is {self.stem_channels}; allowed: one or more positive numbers"
            )
        if self.num_frames not in (1, 2, 3):
            raise ValueError(f"policy.token_vla.num_frames is {self.num_frames}; allowed: 1, 2, 3")
        if self.num_bins < 3 or self.num_bins % 2 == 0:
            raise ValueError(
                f"policy.token_vla.num_bins is {self.num_bins}; allowed: odd numbers from 3, so that 0 is a bin"
            )
        if self.action_low >= self.action_high:
            raise ValueError(
                f"policy.token_vla.action_low is {self.action_low}; allowed: below action_high {self.action_high}"
            )
        if self.temperature <= 0:
            raise ValueError(f"policy.token_vla.temperature is {self.temperature}; allowed: above 0")
        for key in ("label_smoothing", "augment_brightness"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"policy.token_vla.{key} is {getattr(self, key)}; allowed: 0 to below 1")
        if self.augment_shift_px < 0:
            raise ValueError(f"policy.token_vla.augment_shift_px is {self.augment_shift_px}; allowed: 0 or more")


def make_transformer(config: TokenVLAConfig) -> nn.Module:
    """Llama blocks of `transformers` that take embeddings; the caller passes the attention mask."""
    from transformers import LlamaConfig, LlamaModel

    shape: dict[str, Any] = {
        "vocab_size": 1,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_heads,
        "max_position_embeddings": 1024,
        "use_cache": False,
        # Plain matmul attention: the fused kernel's bfloat16 backward is several times slower on a CPU.
        "attn_implementation": "eager",
    }
    llama = LlamaModel(LlamaConfig(**shape))
    # Unused; a parameter without a gradient would break data-parallel training.
    llama.embed_tokens = nn.Identity()  # type: ignore[assignment]
    return llama


class TokenVLA(LikelihoodPolicy, AdvantageConditionedPolicy):
    """A `LikelihoodPolicy` on discretised actions. A chunk's ``trace["tokens"]`` is int64 [B, H, A].

    Initial weights come from torch's global generator: seed it before construction. There is no dropout, so
    log-probabilities are the same in training and evaluation mode. Call `prepare` once before cloning. ``spec`` has
    only the cameras that the policy reads; an observation may have more.

    The caller may set ``temperature`` (of sampling and of every log-probability), ``version`` and ``guidance``. Only
    ``guidance`` is part of the state dict.
    """

    Config = TokenVLAConfig
    proprio_mean: Tensor
    proprio_std: Tensor

    def __init__(
        self, config: TokenVLAConfig, spec: SimulatorSpec, normalisation: Normalisation, chunk_length: int
    ) -> None:
        super().__init__()
        self.config = config
        self.spec = spec = _select_cameras(config, spec)
        self.normalisation = normalisation
        self.chunk_length = chunk_length
        self.temperature = config.temperature
        self.version = ""
        bounds = (config.action_low, config.action_high)
        self.sources = _find_encoders(config)
        self.bins = ActionBins(spec.robot, *bounds, config.num_bins, config.full_range_actions)
        backbone = self.sources.get("image_encoder")
        self._backbone = None if backbone is None else open_vision_backbone(backbone)
        stems = {camera.name: _make_stem(config, camera, self._backbone) for camera in spec.robot.cameras}
        self.stems = ViewModules[ImageStem | FeatureStem](stems)
        text = self.sources.get("text_encoder")
        instructions = [instruction for task in spec.tasks for instruction in task.instructions]
        self.instruction: InstructionEncoder | SentenceProjection = (
            InstructionEncoder(config.width)
            if text is None
            else SentenceProjection(open_sentence_encoder(text), config.width, instructions)
        )
        self.proprio_index = _select_proprio(config, spec)
        index = torch.tensor(self.proprio_index, dtype=torch.long)
        self.register_buffer("proprio_mean", normalisation.proprio_mean.float()[index].clone())
        self.register_buffer("proprio_std", normalisation.proprio_std.float()[index].clone())
        if config.use_proprio:
            self.proprio = nn.Sequential(
                nn.Linear(len(self.proprio_index), config.width), nn.SiLU(), nn.Linear(config.width, config.width)
            )
        num_prefix = len(spec.robot.cameras) * config.num_image_tokens + 1 + int(config.use_proprio)
        self.prefix_type = nn.Parameter(0.02 * torch.randn(num_prefix, config.width))
        # Unit scale, like the tokens that they attend to: at scale 0.02 all queries start nearly equal.
        self.queries = nn.Parameter(torch.randn(chunk_length * spec.robot.action_dim, config.width))
        self.transformer = make_transformer(config)
        self.head = nn.Linear(config.width, config.num_bins)
        # Of actions that are not good, and of good ones; of unit scale, or it would hardly be learned.
        self.indicator = nn.Parameter(torch.randn(2, config.width))

    def prepare(self, dataset: ImitationSource) -> None:
        """Fit every camera's background and contrast to the frames of ``dataset``; both are part of the state dict.

        Without this call the background is mid-grey and the contrast is 1. Raises ``ValueError`` for a missing camera.
        """
        frames = dataset.images()
        for camera, stem in self.stems.items():
            if camera not in frames:
                raise ValueError(f"the episodes to imitate have no camera {camera!r}: they have {', '.join(frames)}")
            stem.fit(self._see(_spread(frames[camera]) if self._backbone else frames[camera]))

    def describe_settings(self, settings: TokenVLAConfig) -> TokenVLAConfig:
        """``settings`` with the places and versions of the encoders: a checkpoint does not hold their weights."""
        places: dict[str, Any] = {setting: source.address for setting, source in self.sources.items()}
        versions = {setting: source.version for setting, source in self.sources.items()}
        return replace(settings, **places, encoder_versions=versions)

    def _see(self, frames: Tensor) -> Tensor:
        """What stems read of frames u8 [..., h, w, 3]: pixels [..., 3, h, w] in [-1, 1], or the backbone's features."""
        return images.to_network(frames) if self._backbone is None else self._backbone(frames)

    def forward(self, observation: Observation, is_good: Tensor | None = None) -> Tensor:
        """Logits f32 [B, H, A, num_bins] before the temperature and without guidance.

        ``is_good`` int64 [B] is the indicator: 1 good, 0 not good, -1 unknown; ``None``: unknown everywhere.
        """
        seen = observation.with_cameras(self.spec.robot.camera_names)
        if is_good is None:
            is_good = torch.full((len(observation),), -1)
        tokens = self._embed(seen.to(self.queries.device), is_good.to(self.queries.device))
        # A 4D mask is added as it is: zeros let every token see every other; None would mean causal.
        full_attention = tokens.new_zeros(1, 1, 1, 1)
        hidden = self.transformer(inputs_embeds=tokens, attention_mask=full_attention).last_hidden_state
        hidden = hidden[:, -self.queries.shape[0] :]
        return self.head(hidden).float().unflatten(1, (self.chunk_length, self.spec.robot.action_dim))

    def _embed(self, observation: Observation, is_good: Tensor) -> Tensor:
        """Tokens [B, L, C]: images, instruction with the indicator, proprio, then action queries."""
        K, latest = observation.num_frames, slice(-self.config.num_frames, None)
        if self.config.num_frames > K:
            raise ValueError(
                f"policy.token_vla.num_frames is {self.config.num_frames}, but the observation has {K} frames"
            )
        prefix = [stem(self._see(observation.frames[name][:, latest])) for name, stem in self.stems.items()]
        # Unknown is a row of zeros: every parameter gets a gradient, as data-parallel training needs.
        indicators = torch.cat([torch.zeros_like(self.indicator[:1]), self.indicator])
        prefix.append((self.instruction(observation.instruction) + indicators[is_good + 1])[:, None])
        if self.config.use_proprio:
            prefix.append(self.proprio(self._normalised_proprio(observation))[:, None])
        embedded = torch.cat(prefix, dim=1) + self.prefix_type
        return torch.cat([embedded, self.queries.to(embedded).expand(len(observation), -1, -1)], dim=1)

    def _normalised_proprio(self, observation: Observation) -> Tensor:
        if observation.proprio is None:
            raise WorldloopError(
                "the policy needs proprio but the observation has none; set policy.token_vla.use_proprio=false"
            )
        chosen = observation.proprio[:, list(self.proprio_index)]
        # Imagined proprio can drift far outside the training data.
        return ((chosen - self.proprio_mean) / self.proprio_std.clamp_min(1e-6)).clamp(-5, 5)

    def _log_softmax(self, observation: Observation) -> Tensor:
        """log pi f32 [B, H, A, num_bins], with temperature and guidance b: log pi_u + b (log pi_c - log pi_u)."""
        b = self.guidance
        if b in (0.0, 1.0):
            is_good = torch.full((len(observation),), 1 if b else -1)
            return F.log_softmax(self(observation, is_good) / self.temperature, dim=-1)
        conditioned, unconditioned = (
            F.log_softmax(self(observation, torch.full((len(observation),), i)) / self.temperature, dim=-1)
            for i in (1, -1)
        )
        return F.log_softmax(unconditioned + b * (conditioned - unconditioned), dim=-1)

    @torch.no_grad()
    def act(self, observation: Observation, noise_key: Tensor | None) -> ActionChunk:
        """Sample bins by inverse CDF with uniforms from (noise_key [B], env_step), or take the most likely bins.

        ``log_probs`` are exact under ``temperature``, also for the most likely bins.
        """
        log_p = self._log_softmax(observation)
        if noise_key is None:
            tokens = log_p.argmax(dim=-1)
        else:
            shape = (self.chunk_length, self.spec.robot.action_dim)
            uniform = randomness.row_uniform(noise_key, observation.env_step, shape).to(log_p.device)
            cdf = log_p.double().exp().cumsum(dim=-1)
            # The first bin whose CDF exceeds u; the last CDF value may differ from 1 by rounding, so u is scaled by it.
            tokens = (cdf <= uniform.double()[..., None] * cdf[..., -1:]).sum(dim=-1).clamp_max(self.bins.num_bins - 1)
        log_probs = log_p.gather(-1, tokens[..., None]).squeeze(-1).sum(dim=-1)
        return ActionChunk(self.bins.decode(tokens).cpu(), log_probs.cpu(), {"tokens": tokens.cpu()}, self.version)

    def log_prob(self, observation: Observation, chunk: ActionChunk) -> Tensor:
        """Exact log pi(a_h | observation) f32 [B, H], summed over the A dimensions, under ``temperature``."""
        if "tokens" not in chunk.trace:
            raise ValueError("the action chunk has no trace['tokens']; it was not made by a token policy")
        check_shape("trace['tokens']", chunk.trace["tokens"], (len(observation), self.chunk_length, None))
        log_p = self._log_softmax(observation)
        return log_p.gather(-1, chunk.trace["tokens"][..., None]).squeeze(-1).sum(dim=-1)

    def compute_imitation_loss(
        self, batch: ImitationBatch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Metrics]:
        """Cross-entropy between logits and the smoothed bins of ``batch.actions``, a mean over valid actions.

        Args:
            generator: draws the image augmentation; ``None``: no augmentation, and the loss is deterministic.
        """
        return self.compute_conditioned_loss(batch, torch.full((len(batch.valid),), -1), generator)

    def compute_conditioned_loss(
        self, batch: ImitationBatch, is_good: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Metrics]:
        """`compute_imitation_loss` with the indicator ``is_good`` int64 [B]."""
        observation = batch.observation.with_cameras(self.spec.robot.camera_names)
        if generator is not None:
            shift, brightness = self.config.augment_shift_px, self.config.augment_brightness
            observation = replace(observation, frames=augment_frames(observation.frames, shift, brightness, generator))
        logits = self(observation, is_good)
        tokens = self.bins.encode(batch.actions)
        target = smooth_targets(tokens, self.bins.num_bins, self.config.label_smoothing)
        per_action = -(target * F.log_softmax(logits, dim=-1)).sum(dim=-1).mean(dim=-1)  # [B, H]
        loss = (per_action * batch.valid).sum() / batch.valid.sum().clamp_min(1)
        return loss, _imitation_metrics(loss, logits, tokens, batch, self.bins)


def _find_encoders(config: TokenVLAConfig) -> dict[str, Source]:
    """Setting -> where the pretrained encoder is that it names."""
    named = {setting: getattr(config, setting) for setting in ENCODERS if getattr(config, setting)}
    return {
        setting: find_source(f"policy.token_vla.{setting}", address, config.encoder_versions.get(setting, ""))
        for setting, address in named.items()
    }


def _make_stem(config: TokenVLAConfig, camera: CameraSpec, backbone: VisionBackbone | None) -> ImageStem | FeatureStem:
    sizes = {
        "num_frames": config.num_frames,
        "num_tokens": config.num_image_tokens,
        "num_keypoints": config.num_keypoints,
        "width": config.width,
    }
    if backbone is None:
        return ImageStem(camera, channels=config.stem_channels, **sizes)
    maps = (backbone.channels, backbone.height, backbone.width)
    return FeatureStem(maps, reduced=config.stem_channels[-1], **sizes)


def _spread(frames: Tensor) -> Tensor:
    """At most `NUM_FITTED` of ``frames`` [N, ...], evenly spread: features of all would fill the memory."""
    return frames[:: -(-len(frames) // NUM_FITTED)]


def _select_cameras(config: TokenVLAConfig, spec: SimulatorSpec) -> SimulatorSpec:
    try:
        return spec.with_cameras(config.cameras)
    except ValueError as error:
        raise ValueError(f"policy.token_vla.cameras: {error}") from error


def _select_proprio(config: TokenVLAConfig, spec: SimulatorSpec) -> tuple[int, ...]:
    if not config.use_proprio:
        return ()
    return choose_proprio(spec.robot, config.proprio_prefixes, "policy.token_vla.proprio_prefixes")


def smooth_targets(tokens: Tensor, num_bins: int, smoothing: float) -> Tensor:
    """Target probabilities f32 [..., num_bins]: 1 - smoothing for the token, smoothing / 2 for each neighbour.

    Bins are ordered, so a neighbour is nearly right. At the ends the only neighbour gets all of ``smoothing``.
    """
    one_hot = F.one_hot(tokens, num_bins).float()
    below = F.one_hot((tokens - 1).clamp_min(0), num_bins).float()
    above = F.one_hot((tokens + 1).clamp_max(num_bins - 1), num_bins).float()
    below = torch.where((tokens == 0)[..., None], above, below)
    above = torch.where((tokens == num_bins - 1)[..., None], below, above)
    return (1 - smoothing) * one_hot + smoothing / 2 * (below + above)


@torch.no_grad()
def _imitation_metrics(
    loss: Tensor, logits: Tensor, tokens: Tensor, batch: ImitationBatch, bins: ActionBins
) -> dict[str, Any]:
    predicted = logits.argmax(dim=-1)
    valid = batch.valid[..., None].expand_as(tokens)
    count = valid.sum().clamp_min(1)
    error = (bins.decode(predicted) - batch.actions).abs()
    return {
        "loss_imitation": loss.item(),
        "token_accuracy": ((predicted == tokens) & valid).sum().item() / count.item(),
        "action_error": (error * valid).sum().item() / count.item(),
    }
