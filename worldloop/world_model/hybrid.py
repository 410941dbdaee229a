"""The default denoiser for small machines: one convolutional U-Net per camera and one transformer for all cameras.

1. Each camera's images are folded into patches (pixel-unshuffle). Maps of local coordinate systems, placed by proprio
   now and next, are added (`PoseMaps`).
2. FiLM residual blocks follow; then the resolution is halved and pixels become tokens.
3. A small transformer mixes the tokens of all cameras with tokens of actions, proprio, instruction and noise level, and
   a reward token.
4. The tokens return to each U-Net; residual blocks lead to the output.
5. The output is a soft choice for every pixel: the frame now, the first frame, a learned background, or a painted
   pixel. So static pixels stay sharp, however long the rollout is.

Shapes: B rows, C channels, K context frames, S proprio, A action, s actions per frame, p patch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldloop.core.context_frames import NUM_CONTEXT_FRAMES, shift_frames
from worldloop.core.errors import WorldloopError, require_range
from worldloop.networks.blocks import (
    FilmResBlock,
    PatchProjection,
    TransformerBlock,
    fold_patches,
    join_channels,
    make_mlp,
)
from worldloop.networks.embeddings import PoseMaps, embed_time
from worldloop.networks.views import ViewModules, map_views
from worldloop.world_model.denoiser import Conditioning, DenoiserOutput, FrameMemory

NUM_SOURCES = 4  # now, first, background, painted


@dataclass(frozen=True)
class HybridConfig:
    """The convolutional U-Nets with a transformer bottleneck."""

    patch: int = 4  # side in pixels of the patches folded into channels; a U-Net runs at size / patch
    width: int = 48  # channels of a U-Net
    patch_hidden: int = 192  # hidden channels of the maps from patches to the U-Net and back
    num_res_blocks: int = 2  # FiLM residual blocks before the transformer, and as many after it
    dim: int = 128  # channels of the transformer; it runs at size / (2 patch)
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


class HybridView(nn.Module):
    """The U-Net of one camera: `encode` before the transformer, `make_tokens` for it, `decode` after it.

    ``size`` is (h, w) of the latents; N is ``num_tokens``.
    """

    def __init__(self, config: HybridConfig, channels: int, size: tuple[int, int], proprio_dim: int) -> None:
        super().__init__()
        self.patch, self.channels = config.patch, channels
        width, dim = config.width, config.dim
        rows, columns = size[0] // config.patch, size[1] // config.patch
        self.token_grid = rows // 2, columns // 2
        self.background = nn.Parameter(torch.zeros(channels, *size))
        self.stem = PatchProjection(5 * channels * config.patch**2, config.patch_hidden, width)
        self.position = nn.Parameter(torch.randn(width, rows, columns) * 0.02)
        self.poses: PoseMaps | None = None
        if config.num_poses:
            self.poses = PoseMaps(proprio_dim, config.num_poses, (rows, columns))
            self.draw = nn.Conv2d(2 * self.poses.channels, width, 1)
        self.down_blocks = nn.ModuleList(
            FilmResBlock(width, config.condition_dim) for _ in range(config.num_res_blocks)
        )
        self.down = nn.Conv2d(width * 4, dim, 1)
        self.token_position = nn.Parameter(torch.randn(self.num_tokens, dim) * 0.02)
        self.up = nn.Conv2d(dim, width * 4, 1)
        self.up_blocks = nn.ModuleList(FilmResBlock(width, config.condition_dim) for _ in range(config.num_res_blocks))
        self.out = PatchProjection(width, config.patch_hidden, (channels + NUM_SOURCES) * config.patch**2)
        self._start_as_a_copy()

    @property
    def num_tokens(self) -> int:
        return self.token_grid[0] * self.token_grid[1]

    def _start_as_a_copy(self) -> None:
        """Initialise the output to be close to the frame now."""
        bias = torch.zeros(self.channels + NUM_SOURCES, self.patch**2)
        bias[self.channels] = 2.0
        with torch.no_grad():
            self.out.linear.weight.mul_(0.2)
            self.out.linear.bias.copy_(bias.flatten())  # type: ignore[union-attr]

    def encode(self, noisy: Tensor, t: Tensor, frames: Tensor, condition: Tensor, conditioning: Conditioning) -> Tensor:
        """Encode ``noisy`` [B, C, h, w] at ``t`` and ``frames`` [B, K, C, h, w] to [B, width, h / patch, w / patch]."""
        first, previous, now = frames[:, 0], frames[:, -2], frames[:, -1]
        # At t = 0 the input is pure noise and carries no information.
        informative = noisy * t[:, None, None, None]
        image = join_channels([informative, now, now - previous, first, self.background.to(now).expand_as(now)])
        x = self.stem(fold_patches(image, self.patch)) + self.position
        if self.poses is not None and not conditioning.is_plan:
            maps = [self.poses(conditioning.proprio), self.poses(conditioning.next_proprio[:, 0])]
            x = x + self.draw(join_channels(maps))
        for block in self.down_blocks:
            x = block(x, condition)
        return x

    def make_tokens(self, x: Tensor) -> Tensor:
        """Tokens [B, N, dim] from the output ``x`` of `encode`."""
        return self.down(fold_patches(x, 2)).flatten(2).transpose(1, 2) + self.token_position

    def decode(self, x: Tensor, tokens: Tensor, frames: Tensor, condition: Tensor) -> Tensor:
        """Clean latents [B, C, h, w] from the output ``x`` of `encode` and the transformer's ``tokens`` [B, N, dim]."""
        image_tokens = tokens.transpose(1, 2).reshape(len(x), -1, *self.token_grid)
        x = x + functional.pixel_shuffle(self.up(image_tokens), 2)
        for block in self.up_blocks:
            x = block(x, condition)
        painted = functional.pixel_shuffle(self.out(functional.silu(x)), self.patch).float()
        choice = painted[:, self.channels :].softmax(1)
        now = frames[:, -1]
        others = frames[:, 0], self.background.to(now).expand_as(now), painted[:, : self.channels]
        data = choice[:, :1] * now
        for i, source in enumerate(others, start=1):
            data = torch.addcmul(data, choice[:, i : i + 1], source)
        return data


class HybridDenoiser(nn.Module):
    """`Denoiser` for one frame at a time; see the module's docstring."""

    Config = HybridConfig
    frames_per_call = 1
    num_context_frames = NUM_CONTEXT_FRAMES
    ignores_noise = True

    def __init__(
        self,
        config: HybridConfig,
        channels: int,
        sizes: Mapping[str, tuple[int, int]],
        proprio_dim: int,
        action_dim: int,
        actions_per_frame: int,
        instruction_dim: int,
    ) -> None:
        super().__init__()
        for camera, (height, width) in sizes.items():
            if height % (2 * config.patch) or width % (2 * config.patch):
                raise WorldloopError(
                    f"frames of {height} x {width} pixels of camera {camera!r} do not divide by "
                    f"2 x world_model.hybrid.patch = {2 * config.patch}: change either"
                )
        self.feature_dim = dim = config.dim
        self.views = ViewModules(
            {camera: HybridView(config, channels, size, proprio_dim) for camera, size in sizes.items()}
        )
        stacked = actions_per_frame * action_dim
        condition_input = config.condition_dim + stacked + 2 * proprio_dim + instruction_dim
        self.condition_dim = config.condition_dim
        self.condition = make_mlp(condition_input, config.condition_dim, config.condition_dim)
        self.action_token = nn.Linear(action_dim, dim)
        self.action_position = nn.Parameter(torch.randn(actions_per_frame, dim) * 0.02)
        self.proprio_tokens = nn.Linear(2 * proprio_dim, 2 * dim)
        self.condition_token = nn.Linear(config.condition_dim, dim)
        self.reward_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.blocks = nn.ModuleList(TransformerBlock(dim, config.num_heads) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(dim)

    def remember(self, context: Mapping[str, Tensor], instruction: Tensor) -> FrameMemory:
        """The memory is the frames themselves."""
        return FrameMemory(dict(context))

    def shift(self, memory: FrameMemory, latent: Mapping[str, Tensor], instruction: Tensor) -> FrameMemory:
        return FrameMemory(map_views(shift_frames, memory.frames, latent))

    def forward(
        self, noisy: Mapping[str, Tensor], t: Tensor, memory: FrameMemory, conditioning: Conditioning
    ) -> DenoiserOutput:
        """See `Denoiser`; L = 1, and ``memory`` holds (first, previous, now)."""
        condition = self._embed_condition(t, conditioning)
        encoded = {
            camera: view.encode(noisy[camera][:, 0], t, memory.frames[camera], condition, conditioning)
            for camera, view in self.views.items()
        }
        images = {camera: view.make_tokens(encoded[camera]) for camera, view in self.views.items()}
        tokens = self._transform(list(images.values()), condition, conditioning)
        lengths = [image.shape[1] for image in images.values()]
        of_views = tokens[:, -sum(lengths) :].split(lengths, dim=1)
        data = {
            camera: view.decode(encoded[camera], own, memory.frames[camera], condition)[:, None]
            for (camera, view), own in zip(self.views.items(), of_views, strict=True)
        }
        # The heads read no action token: recorded actions alone tell the outcome of a policy's episode.
        reward_and_images = torch.cat([tokens[:, :1], tokens[:, -sum(lengths) :]], dim=1)
        return DenoiserOutput(data, reward_and_images[:, None])

    def read_slots(self, slots: Tensor, t: Tensor, memory: FrameMemory, conditioning: Conditioning) -> Tensor:
        """See `Denoiser`: the slots join the transformer's tokens, and nothing is known of the next frame.

        There is no time per token here, so ``t`` is not used.
        """
        now = {camera: frames[:, -1] for camera, frames in memory.frames.items()}
        start = t.new_zeros(len(t))
        condition = self._embed_condition(start, conditioning)
        images = [
            view.make_tokens(
                view.encode(torch.zeros_like(now[camera]), start, memory.frames[camera], condition, conditioning)
            )
            for camera, view in self.views.items()
        ]
        return self._transform(images, condition, conditioning, slots)[:, : slots.shape[1]]

    def _embed_condition(self, t: Tensor, conditioning: Conditioning) -> Tensor:
        """The vector [B, condition_dim] that conditions the residual blocks."""
        known = [
            embed_time(t, self.condition_dim),
            conditioning.actions[:, 0].flatten(1),
            conditioning.proprio,
            conditioning.next_proprio[:, 0],
            conditioning.instruction,
        ]
        return self.condition(torch.cat(known, dim=1))

    def _transform(
        self,
        images: Sequence[Tensor],
        condition: Tensor,
        conditioning: Conditioning,
        slots: Tensor | None = None,
    ) -> Tensor:
        """Tokens [B, n + 1 + s + 3 + image tokens, dim] after the transformer: the n slots, then the reward token.

        ``images`` has the image tokens of each camera.
        """
        B = len(condition)
        actions = self.action_token(conditioning.actions[:, 0]) + self.action_position
        both = torch.cat([conditioning.proprio, conditioning.next_proprio[:, 0]], dim=1)
        proprio = self.proprio_tokens(both).reshape(B, 2, -1)
        reward = self.reward_token.to(actions.dtype).expand(B, 1, -1)
        parts = [reward, actions, proprio, self.condition_token(condition)[:, None], *images]
        if slots is not None:
            parts = [slots, *parts]
        tokens = torch.cat([p.to(images[0].dtype) for p in parts], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)
