"""The default denoiser for small machines: a convolutional U-Net with a transformer bottleneck.

The image folds into patches (pixel-unshuffle), meets maps of the local coordinate systems that proprio now and next
place on it, passes FiLM residual blocks, is halved, and meets tokens of the actions, proprio, instruction and noise
level and a reward token in a small transformer; residual blocks lead back up.
The output is a soft choice, pixel by pixel, between copying the frame now, the first frame, a learned background, and
painting anew, so that what stands still stays sharp however long the rollout is.
Shapes: B rows, C channels, K context frames, S proprio, A action, s actions per frame, p patch.
"""

from __future__ import annotations

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
from worldloop.world_model.denoiser import Conditioning, DenoiserOutput, FrameMemory

NUM_SOURCES = 4  # now, first, background, painted


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
        size: int,
        proprio_dim: int,
        action_dim: int,
        actions_per_frame: int,
        instruction_dim: int,
    ) -> None:
        super().__init__()
        if size % (2 * config.patch):
            raise WorldloopError(
                f"frames of {size} pixels do not divide by 2 x world_model.hybrid.patch = {2 * config.patch}: "
                "change either"
            )
        self.patch = config.patch
        self.channels = channels
        self.feature_dim = dim = config.dim
        width, grid = config.width, size // config.patch
        self.background = nn.Parameter(torch.zeros(channels, size, size))
        self.stem = PatchProjection(5 * channels * config.patch**2, config.patch_hidden, width)
        self.position = nn.Parameter(torch.randn(width, grid, grid) * 0.02)
        self.poses: PoseMaps | None = None
        if config.num_poses:
            self.poses = PoseMaps(proprio_dim, config.num_poses, grid)
            self.draw = nn.Conv2d(2 * self.poses.channels, width, 1)
        stacked = actions_per_frame * action_dim
        condition_input = config.condition_dim + stacked + 2 * proprio_dim + instruction_dim
        self.condition_dim = config.condition_dim
        self.condition = make_mlp(condition_input, config.condition_dim, config.condition_dim)
        self.action_token = nn.Linear(action_dim, dim)
        self.action_position = nn.Parameter(torch.randn(actions_per_frame, dim) * 0.02)
        self.proprio_tokens = nn.Linear(2 * proprio_dim, 2 * dim)
        self.condition_token = nn.Linear(config.condition_dim, dim)
        self.reward_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.down_blocks = nn.ModuleList(
            FilmResBlock(width, config.condition_dim) for _ in range(config.num_res_blocks)
        )
        self.down = nn.Conv2d(width * 4, dim, 1)
        self.token_position = nn.Parameter(torch.randn((grid // 2) ** 2, dim) * 0.02)
        self.blocks = nn.ModuleList(TransformerBlock(dim, config.num_heads) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Conv2d(dim, width * 4, 1)
        self.up_blocks = nn.ModuleList(FilmResBlock(width, config.condition_dim) for _ in range(config.num_res_blocks))
        self.out = PatchProjection(width, config.patch_hidden, (channels + NUM_SOURCES) * config.patch**2)
        self._start_as_a_copy()

    def _start_as_a_copy(self) -> None:
        """Initially the output is close to the frame now."""
        bias = torch.zeros(self.channels + NUM_SOURCES, self.patch**2)
        bias[self.channels] = 2.0
        with torch.no_grad():
            self.out.linear.weight.mul_(0.2)
            self.out.linear.bias.copy_(bias.flatten())  # type: ignore[union-attr]

    def remember(self, context: Tensor, instruction: Tensor) -> FrameMemory:
        """The frames themselves."""
        return FrameMemory(context)

    def shift(self, memory: FrameMemory, latent: Tensor, instruction: Tensor) -> FrameMemory:
        return FrameMemory(shift_frames(memory.frames, latent))

    def forward(self, noisy: Tensor, t: Tensor, memory: FrameMemory, conditioning: Conditioning) -> DenoiserOutput:
        """See `Denoiser`: L = 1; ``memory`` is of (first, previous, now)."""
        first, previous, now = memory.frames[:, 0], memory.frames[:, -2], memory.frames[:, -1]
        background = self.background.to(now).expand_as(now)
        # at t = 0 the noise tells nothing and would only have to be ignored
        informative = noisy[:, 0] * t[:, None, None, None]
        image = join_channels([informative, now, now - previous, first, background])
        condition = self.condition(
            torch.cat(
                [
                    embed_time(t, self.condition_dim),
                    conditioning.actions[:, 0].flatten(1),
                    conditioning.proprio,
                    conditioning.next_proprio[:, 0],
                    conditioning.instruction,
                ],
                dim=1,
            )
        )
        x = self.stem(fold_patches(image, self.patch)) + self.position
        if self.poses is not None:
            maps = [self.poses(conditioning.proprio), self.poses(conditioning.next_proprio[:, 0])]
            x = x + self.draw(join_channels(maps))
        for block in self.down_blocks:
            x = block(x, condition)
        tokens = self._transform(x, condition, conditioning)
        half = x.shape[-1] // 2
        image_tokens = tokens[:, -half * half :].transpose(1, 2).reshape(len(x), -1, half, half)
        x = x + functional.pixel_shuffle(self.up(image_tokens), 2)
        for block in self.up_blocks:
            x = block(x, condition)
        painted = functional.pixel_shuffle(self.out(functional.silu(x)), self.patch).float()
        choice = painted[:, self.channels :].softmax(1)
        data = choice[:, :1] * now
        for i, source in enumerate((first, background, painted[:, : self.channels]), start=1):
            data = torch.addcmul(data, choice[:, i : i + 1], source)
        return DenoiserOutput(data[:, None], tokens[:, None])

    def _transform(self, x: Tensor, condition: Tensor, conditioning: Conditioning) -> Tensor:
        """Tokens [B, 1 + s + 3 + image tokens, dim] after the transformer, the reward token first."""
        B = len(x)
        actions = self.action_token(conditioning.actions[:, 0]) + self.action_position
        both = torch.cat([conditioning.proprio, conditioning.next_proprio[:, 0]], dim=1)
        proprio = self.proprio_tokens(both).reshape(B, 2, -1)
        reward = self.reward_token.to(actions.dtype).expand(B, 1, -1)
        image = self.down(fold_patches(x, 2)).flatten(2).transpose(1, 2) + self.token_position
        parts = [reward, actions, proprio, self.condition_token(condition)[:, None], image]
        tokens = torch.cat([p.to(image.dtype) for p in parts], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)
