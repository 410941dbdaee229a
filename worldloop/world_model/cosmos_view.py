"""The modules that `CosmosDenoiser` has for each camera, outside the shared transformer.

Shapes: B rows, K context frames, C channels, n tokens of a frame of the camera, D channels of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldloop.core.context_frames import NUM_CONTEXT_FRAMES
from worldloop.networks.blocks import PatchProjection, fold_patches, join_channels
from worldloop.networks.embeddings import PoseMaps
from worldloop.world_model.denoiser import Conditioning

NUM_SOURCES = 3  # a pixel's sources: the frame now, the first frame, now plus the change
POSE_CELLS = 2  # cells of the pose maps per patch side


class CosmosView(nn.Module):
    """One camera's inputs to the transformer (context patches and pose maps) and its choice of sources for every pixel.

    ``size`` is (h, w) of the latents, ``dim`` is D; ``patch``, ``hidden`` (``patch_hidden``) and ``num_poses`` are as
    in `CosmosConfig`. The choice of sources exists only with ``chooses``.
    """

    def __init__(
        self,
        size: tuple[int, int],
        channels: int,
        dim: int,
        patch: int,
        hidden: int,
        proprio_dim: int,
        num_poses: int,
        chooses: bool,
    ) -> None:
        super().__init__()
        self.patch, self.channels = patch, channels
        self.grid = size[0] // patch, size[1] // patch
        self.window = PatchProjection(NUM_CONTEXT_FRAMES * channels * patch**2, hidden, dim)
        self.poses: PoseMaps | None = None
        if num_poses:
            self.poses = PoseMaps(proprio_dim, num_poses, (POSE_CELLS * self.grid[0], POSE_CELLS * self.grid[1]))
            self.draw = nn.Conv2d(2 * self.poses.channels, dim, POSE_CELLS, stride=POSE_CELLS)
        if chooses:
            self.choice = PatchProjection(dim, hidden, NUM_SOURCES * patch**2)
            _prefer_first_source(self.choice.linear)

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    def silence(self) -> None:
        """Zero the linear context map and the pose map, so that the view adds nothing at the start."""
        for module in (self.window.linear, *([] if self.poses is None else [self.draw])):
            silence(module)

    def see(self, frames: Tensor, conditioning: Conditioning) -> Tensor:
        """Tokens [B, n, D] from the patches of (first, previous, now) in ``frames`` [B, K, C, h, w] and the poses."""
        first, previous, now = frames[:, 0], frames[:, -2], frames[:, -1]
        window = join_channels([now, now - previous, now - first])
        seen = self.window(fold_patches(window, self.patch)).flatten(2).transpose(1, 2)
        return seen + self.draw_poses(conditioning)

    def draw_poses(self, conditioning: Conditioning) -> Tensor | float:
        """Tokens [B, n, D] from the pose maps of proprio now and next; 0 without poses, and in a plan."""
        if self.poses is None or conditioning.is_plan:
            return 0.0
        maps = [self.poses(conditioning.proprio), self.poses(conditioning.next_proprio[:, 0])]
        return self.draw(join_channels(maps)).flatten(2).transpose(1, 2)

    def choose(self, tokens: Tensor, frames: Tensor, change: Tensor) -> Tensor:
        """For every pixel mix the frame now, the first frame, and now plus ``change`` [B, C, h, w], by softmax."""
        cells = tokens.transpose(1, 2).unflatten(2, self.grid)
        choice = functional.pixel_shuffle(self.choice(cells), self.patch).float().softmax(1)
        now, first = frames[:, -1], frames[:, 0]
        return now + choice[:, 1:2] * (first - now) + choice[:, 2:] * change

    def unpatch(self, tokens: Tensor) -> Tensor:
        """[B, n, patch^2 C] -> [B, C, h, w], with the channel order of the published model."""
        p, (rows, columns) = self.patch, self.grid
        cells = tokens.reshape(len(tokens), rows, columns, p, p, self.channels)
        return cells.permute(0, 5, 1, 3, 2, 4).reshape(len(tokens), self.channels, rows * p, columns * p)


def _prefer_first_source(projection: nn.Conv2d) -> None:
    """Initialise the choice so that every pixel is mostly a copy of the frame now."""
    bias = torch.zeros(NUM_SOURCES, projection.out_channels // NUM_SOURCES)
    bias[0] = 2.0
    with torch.no_grad():
        projection.weight.mul_(0.2)
        projection.bias.copy_(bias.flatten())  # type: ignore[union-attr]


def silence(module: nn.Module) -> None:
    """Set all parameters of ``module`` to zero, so that its output starts at zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
