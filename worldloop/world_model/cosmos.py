"""A frame-by-frame denoiser on diffusers' `CosmosTransformer3DModel`; it can load published Cosmos-Predict2 weights.

Departures from the published model (arXiv:2511.00062; Cosmos2VideoToWorldPipeline in diffusers is its reference):

1. One frame at a time. The published model denoises a whole video with attention among all frames. Here a context frame
   attends only to itself; the new frame attends to itself and to all context frames. So the keys and values of a frame
   depend only on it and the instruction, and are computed once: a rollout that reuses them (`shift`) equals one that
   computes them anew (`remember`).
2. Rotary positions count places in the window, not times: the episode's first frame is at 0, now at K - 1, the new
   frame at K. When a frame joins, every other frame but the first is rotated back by one place.
3. Actions and proprio (now and next) pass through an MLP; its output is added to the time embedding of every adaptive
   layer norm (World-VLA-Loop, arXiv:2602.06508). A reward token without a position joins the tokens of the new frame.
4. Several cameras lie side by side in the rotary table, like one wide image. They share the patch embedding and attend
   to each other.
5. Two more inputs are added to the tokens of the new frame: the same patches of (first, previous, now), and maps of
   local coordinate systems that proprio (now and next) places on the image (`PoseMaps`). A small transformer takes long
   to learn from attention alone which patches to copy, and where the robot goes.
6. With ``prediction: data`` the network predicts the change since now, and for every pixel a soft choice between the
   frame now, the first frame, and now plus that change. So static pixels stay sharp.
7. Time t runs from noise to data: the published tau is 1 - t, and the published network output is noise - data.

Shapes: B rows, K context frames, C channels, N tokens of a frame in all cameras, n tokens in one camera,
D = heads x head_dim, G layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from worldloop.core.context_frames import shift_frames
from worldloop.core.errors import WorldloopError, require_choice, require_positive, require_range
from worldloop.networks.blocks import attend, make_mlp
from worldloop.networks.views import ViewModules, map_views
from worldloop.world_model.cosmos_view import CosmosView, silence
from worldloop.world_model.denoiser import Conditioning, DenoiserOutput, FrameMemory

PREDICTIONS = ("data", "velocity")
CLEAN_TIME = 1e-4 / (1 + 1e-4)  # tau of context frames, from the published pipeline's sigma_conditioning


@dataclass(frozen=True)
class CosmosConfig:
    """Sizes of the Cosmos-Predict2 transformer (diffusers' `CosmosTransformer3DModel`).

    The published 2B Video2World has 28 layers, 16 heads of 128 channels, patch 2 on latents of 16 channels, text_dim
    1024, rope_scale (1, 3, 3) and a padding mask, and predicts velocity.
    """

    patch: int = 8  # side of a token's patch, in latent pixels
    num_layers: int = 6  # transformer blocks
    num_heads: int = 6  # attention heads
    head_dim: int = 32  # channels of a head; even, at least 12
    mlp_ratio: float = 4.0  # hidden channels of a block's MLP, as a multiple of the transformer's channels
    adaln_lora_dim: int = 64  # hidden channels of an adaptive layer norm
    condition_dim: int = 192  # hidden channels of the MLP of actions and proprio
    patch_hidden: int = 192  # hidden channels of the maps from patches to tokens and back
    num_poses: int = 8  # local coordinate systems that proprio places on the image, now and next; 0: none
    rope_scale: tuple[float, float, float] = (1.0, 1.0, 1.0)  # rotary scaling over time, height, width
    concat_padding_mask: bool = False  # one more input channel, all zero, as in the published models
    num_context_frames: int = 3  # context frames, at least 3: the episode's first and the latest
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
class CosmosMemory(FrameMemory):
    """The context frames, with their ``keys`` (normed and rotated) and ``values``, [B, G, heads, K, N, head_dim] each.

    In this order all keys of one head are contiguous.
    """

    keys: Tensor
    values: Tensor


class CosmosDenoiser(nn.Module):
    """`Denoiser` for one frame at a time; see the module's docstring."""

    Config = CosmosConfig
    frames_per_call = 1
    cos: Tensor
    sin: Tensor
    cos_back: Tensor
    sin_back: Tensor

    def __init__(
        self,
        config: CosmosConfig,
        channels: int,
        sizes: Mapping[str, tuple[int, int]],
        proprio_dim: int,
        action_dim: int,
        actions_per_frame: int,
        instruction_dim: int,
        transformer: Any | None = None,
    ) -> None:
        """``transformer``: a published one whose sizes equal ``config``, see `pretrained`; ``None``: random weights.

        Raises `WorldloopError` where latents do not divide into patches or exceed the rotary table.
        """
        super().__init__()
        for camera, (height, width) in sizes.items():
            if height % config.patch or width % config.patch:
                raise WorldloopError(
                    f"latents of {height} x {width} of camera {camera!r} do not divide by "
                    f"world_model.cosmos.patch = {config.patch}: change either"
                )
        self.config = config
        self.num_context_frames = config.num_context_frames
        self.ignores_noise = config.prediction != "velocity"
        self.feature_dim = dim = config.num_heads * config.head_dim
        self.transformer = transformer or _make_transformer(config, channels, sizes, instruction_dim)
        self.text_dim = int(self.transformer.config.text_embed_dim)
        condition_dim = actions_per_frame * action_dim + 2 * proprio_dim
        self.condition = make_mlp(condition_dim, config.condition_dim, 3 * dim)
        self.reward_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.feature_norm = nn.LayerNorm(dim)
        self.views = ViewModules(
            {
                camera: CosmosView(
                    size,
                    channels=channels,
                    dim=dim,
                    patch=config.patch,
                    hidden=config.patch_hidden,
                    proprio_dim=proprio_dim,
                    num_poses=config.num_poses,
                    chooses=config.prediction == "data",
                )
                for camera, size in sizes.items()
            }
        )
        if transformer is not None:  # our additions start at zero, so that published weights act as published
            silence(self.condition[-1])
            for _, view in self.views.items():
                view.silence()
        cos, sin = self._place_views(channels)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        # The rotation back by one place; it is the same for every place.
        self.register_buffer("cos_back", self.cos[1] * self.cos[2] + self.sin[1] * self.sin[2], persistent=False)
        self.register_buffer("sin_back", self.sin[1] * self.cos[2] - self.cos[1] * self.sin[2], persistent=False)

    def _place_views(self, channels: int) -> tuple[Tensor, Tensor]:
        """Cos and sin of the rotary table, [K + 1, N, head_dim] each, with all views side by side."""
        grids, rope, patch = [view.grid for _, view in self.views.items()], self.transformer.rope, self.config.patch
        extent = self.num_context_frames + 1, max(rows for rows, _ in grids), sum(columns for _, columns in grids)
        for what, size, limit in zip(("frames", "rows", "columns"), extent, rope.max_size, strict=True):
            if size > limit:
                raise WorldloopError(
                    f"{size} {what} of patches are more than the {limit} of the transformer's rotary table: "
                    "use fewer world_model.cameras, smaller images or fewer world_model.cosmos.num_context_frames"
                )
        like = torch.empty(1).expand(1, channels, extent[0], extent[1] * patch, extent[2] * patch)

        def choose(table: Tensor) -> Tensor:
            table, placed, first = table.unflatten(0, extent), [], 0
            for rows, columns in grids:
                placed.append(table[:, :rows, first : first + columns].flatten(1, 2))
                first += columns
            return torch.cat(placed, dim=1)

        cos, sin = rope(like)
        return choose(cos), choose(sin)

    def remember(self, context: Mapping[str, Tensor], instruction: Tensor) -> CosmosMemory:
        """Keys and values of the frames in ``context``, camera -> [B, K, C, h, w], or [B, 1, C, h, w] for now alone.

        ``instruction`` is [B, E].
        """
        B, K = next(iter(context.values())).shape[:2]
        # At an episode's start all frames are equal, so one pass gives the keys and values of all.
        num_distinct = 1 if all(torch.equal(f[:, 1:], f[:, :-1]) for f in context.values()) else K
        tokens = self._embed(map_views(lambda f: f[:, :num_distinct].flatten(0, 1)[:, None], context), is_context=1.0)
        tau = torch.full((len(tokens),), CLEAN_TIME, device=tokens.device)
        text = self._read_text(instruction).repeat_interleave(num_distinct, dim=0)
        kept: list[tuple[Tensor, Tensor]] = []
        place = self.cos[0], self.sin[0]  # attention within one frame does not depend on the frame's place

        def keep(layer: int, keys: Tensor, values: Tensor) -> None:
            kept.append((keys, values))

        self._transform(tokens, tau, None, text, place, keep, for_memory=True)
        keys, values = (
            torch.stack([pair[i] for pair in kept], dim=1)
            .unflatten(0, (B, -1))
            .movedim(1, 3)
            .expand(-1, -1, -1, K, -1, -1)
            for i in (0, 1)
        )
        cos, sin = (table[:-1][-K:] for table in (self.cos, self.sin))
        return CosmosMemory(dict(context), rotate(keys, cos, sin), values)

    def shift(self, memory: FrameMemory, latent: Mapping[str, Tensor], instruction: Tensor) -> CosmosMemory:
        """Append ``latent``, camera -> [B, C, h, w]: equals `remember` of the shifted frames, for the cost of one."""
        assert isinstance(memory, CosmosMemory)
        new = self.remember(map_views(lambda frames: frames[:, None], latent), instruction)
        first, recent = memory.keys[:, :, :, :1], rotate(memory.keys[:, :, :, 2:], self.cos_back, self.sin_back)
        values = memory.values[:, :, :, :1], memory.values[:, :, :, 2:], new.values.to(memory.values)
        return CosmosMemory(
            map_views(shift_frames, memory.frames, latent),
            torch.cat([first, recent, new.keys.to(recent)], dim=3),
            torch.cat(values, dim=3),
        )

    def forward(
        self, noisy: Mapping[str, Tensor], t: Tensor, memory: FrameMemory, conditioning: Conditioning
    ) -> DenoiserOutput:
        """See `Denoiser`: L = 1."""
        assert isinstance(memory, CosmosMemory)
        B, N = len(t), self.cos.shape[1]
        known = [conditioning.actions[:, 0].flatten(1), conditioning.proprio, conditioning.next_proprio[:, 0]]
        shift = self.condition(torch.cat(known, dim=1))
        # At t = 0 the input is pure noise: a data prediction ignores it, a velocity prediction needs it.
        if self.ignores_noise:
            informative: Mapping[str, Tensor] = map_views(lambda x: x * t[:, None, None, None, None], noisy)
        else:
            informative = noisy
        seen = [view.see(memory.frames[camera], conditioning) for camera, view in self.views.items()]
        image = self._embed(informative, is_context=0.0) + torch.cat(seen, dim=1)
        tokens = torch.cat([self.reward_token.to(image.dtype).expand(B, 1, -1), image], dim=1)
        place = tuple(_prepend(table[-1], value) for table, value in ((self.cos, 1.0), (self.sin, 0.0)))

        tokens, embedded, temb = self._transform(
            tokens, 1 - t, shift, self._read_text(conditioning.instruction), place, _recall(memory)
        )
        image = self.transformer.norm_out(tokens[:, -N:], embedded, temb)
        projected = self.transformer.proj_out(image)
        lengths = [view.num_tokens for _, view in self.views.items()]
        data = {}
        for (camera, view), own, outputs in zip(
            self.views.items(), image.split(lengths, dim=1), projected.split(lengths, dim=1), strict=True
        ):
            output = view.unpatch(outputs).float()
            if self.config.prediction == "velocity":
                data[camera] = noisy[camera] - (1 - t)[:, None, None, None, None] * output[:, None]
            else:
                data[camera] = view.choose(own, memory.frames[camera], output)[:, None]
        return DenoiserOutput(data, self.feature_norm(tokens)[:, None])

    def read_slots(self, slots: Tensor, t: Tensor, memory: FrameMemory, conditioning: Conditioning) -> Tensor:
        """See `Denoiser`: the slots are the only new tokens. They have no position; each has its own time."""
        assert isinstance(memory, CosmosMemory)
        ones = torch.ones(slots.shape[1], self.cos.shape[-1], device=slots.device)
        text = self._read_text(conditioning.instruction)
        tokens, _, _ = self._transform(slots, 1 - t, None, text, (ones, torch.zeros_like(ones)), _recall(memory))
        return self.feature_norm(tokens)

    def _embed(self, frames: Mapping[str, Tensor], is_context: float) -> Tensor:
        """Camera -> [B, 1, C, h, w] to tokens [B, N, D]; one channel says whether the frame is a context frame."""
        tokens = []
        for camera in self.views.cameras:
            video = frames[camera].movedim(1, 2)
            channels = [video, torch.full_like(video[:, :1], is_context)]
            if self.config.concat_padding_mask:
                channels.append(torch.zeros_like(channels[1]))
            tokens.append(self.transformer.patch_embed(torch.cat(channels, dim=1)).flatten(1, 3))
        return torch.cat(tokens, dim=1)

    def _read_text(self, instruction: Tensor) -> Tensor:
        """[B, E] -> text tokens [B, E / text_dim, text_dim]."""
        return instruction.unflatten(1, (-1, self.text_dim))

    def _transform(
        self,
        tokens: Tensor,
        tau: Tensor,
        shift: Tensor | None,
        text: Tensor,
        place: tuple[Tensor, ...],
        with_memory: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor] | None],
        for_memory: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run all blocks over ``tokens`` [B, T, D] at ``tau`` [B], or [B, T] with a time for each token.

        ``shift`` [B, 3 D] is added to the time embedding; it goes only with ``tau`` [B].

        ``with_memory(layer, keys, values)`` gets each layer's unrotated keys and values [B, heads, T, head_dim]. It may
        return rotated keys and values of other tokens, [B, heads, T', head_dim], to attend to as well. With
        ``for_memory`` the last layer stops after its keys and values, because the tokens are not used.
        """
        temb, embedded = (e.unflatten(0, tau.shape) for e in self.transformer.time_embed(tokens, tau.flatten()))
        if shift is not None:
            temb = temb + shift.to(temb)
        for layer, block in enumerate(self.transformer.transformer_blocks):
            h, gate = block.norm1(tokens, embedded, temb)
            query, keys, values = self._project(block.attn1, h, h)
            past = with_memory(layer, keys, values)
            if for_memory and layer == len(self.transformer.transformer_blocks) - 1:
                break
            query, keys = rotate(query, *place), rotate(keys, *place)
            if past is not None:
                keys, values = torch.cat([past[0], keys], dim=2), torch.cat([past[1], values], dim=2)
            tokens = tokens + gate * block.attn1.to_out[0](self._join(attend(query, keys, values)))
            asking = tokens if text.shape[1] > 1 else tokens[:, :1]  # with one text token all tokens read the same
            h, gate = block.norm2(asking, embedded, temb)
            mixed = attend(*self._project(block.attn2, h, text.to(h)))
            tokens = tokens + gate * block.attn2.to_out[0](self._join(mixed))
            h, gate = block.norm3(tokens, embedded, temb)
            tokens = tokens + gate * block.ff(h)
        return tokens, embedded, temb

    def _project(self, attention: Any, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normed queries of ``x``, and normed keys and values of ``seen``: [B, heads, T, head_dim] each."""
        # Contiguous tokens of a head make norms, rotations, concatenation and products faster.
        heads = (
            self._split(project(t))
            for project, t in ((attention.to_q, x), (attention.to_k, seen), (attention.to_v, seen))
        )
        query, keys, values = (h.contiguous() for h in heads)
        return attention.norm_q(query).to(values), attention.norm_k(keys).to(values), values

    def _split(self, x: Tensor) -> Tensor:
        """[..., T, D] -> [..., heads, T, head_dim]."""
        return x.unflatten(-1, (self.config.num_heads, -1)).transpose(-2, -3)

    def _join(self, x: Tensor) -> Tensor:
        """Inverse of `_split`."""
        return x.transpose(-2, -3).flatten(-2)


def _recall(memory: CosmosMemory) -> Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """``with_memory`` of `CosmosDenoiser._transform`: the tokens also attend to those of ``memory``."""

    def recall(layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        past = (kept[:, layer].flatten(2, 3) for kept in (memory.keys, memory.values))
        return tuple(kept.to(values) for kept in past)  # type: ignore[return-value]

    return recall


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary ``cos`` and ``sin`` [..., T, head_dim] to ``x`` [..., heads, T, head_dim], its halves paired."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x) + torch.cat([-second, first], dim=-1) * sin.to(x)


def _prepend(table: Tensor, value: float) -> Tensor:
    """Put a row of ``value`` first: the reward token has no position (cos 1, sin 0)."""
    return torch.cat([torch.full_like(table[:1], value), table])


def _make_transformer(config: CosmosConfig, channels: int, sizes: Mapping[str, tuple[int, int]], text_dim: int) -> Any:
    try:
        from diffusers import CosmosTransformer3DModel
    except ImportError as error:
        raise WorldloopError(
            "world_model.denoiser cosmos needs diffusers, which is not installed: pip install -e '.[cosmos]' in the "
            "clone"
        ) from error
    longest = max(128, *(height for height, _ in sizes.values()), sum(width for _, width in sizes.values()))
    return CosmosTransformer3DModel(
        in_channels=channels + 1,
        out_channels=channels,
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        num_layers=config.num_layers,
        mlp_ratio=config.mlp_ratio,
        text_embed_dim=text_dim,
        adaln_lora_dim=config.adaln_lora_dim,
        max_size=(longest, longest, longest),
        patch_size=(1, config.patch, config.patch),
        rope_scale=config.rope_scale,
        concat_padding_mask=config.concat_padding_mask,
        extra_pos_embed_type=None,
    )
