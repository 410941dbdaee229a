"""The two experts and the gate.

Shapes: B rows, H actions a chunk, A action dimensions, M planned frames, s actions per frame, N tokens of C channels.
Actions are scaled to [-1, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from worldloop.core.specs import CameraSpec
from worldloop.networks.blocks import AttentionPool, CrossBlock, make_mlp
from worldloop.networks.embeddings import embed_time
from worldloop.networks.frame_stack import FrameStackEncoder
from worldloop.networks.views import ViewModules


class PredictiveExpert(nn.Module):
    """The velocity of noisy actions, in a transformer over the H actions that attends to tokens of what is seen."""

    def __init__(self, chunk_length: int, action_dim: int, width: int, num_layers: int, num_heads: int) -> None:
        super().__init__()
        self.width = width
        self.embed = nn.Linear(action_dim, width)
        self.position = nn.Parameter(torch.randn(chunk_length, width))
        self.time = make_mlp(width, width, width, num_hidden=1)
        self.blocks = nn.ModuleList(CrossBlock(width, num_heads) for _ in range(num_layers))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, action_dim))

    def forward(self, noisy: Tensor, t: Tensor, memory: Tensor) -> Tensor:
        """``noisy`` [B, H, A] at time ``t`` [B], ``memory`` [B, N, C] -> velocity f32 [B, H, A]."""
        tokens = self.embed(noisy) + self.position + self.time(embed_time(t, self.width))[:, None]
        for block in self.blocks:
            tokens = block(tokens, memory)
        return self.head(tokens).float()


class ReactiveExpert(nn.Module):
    """Inverse dynamics: the s actions that lead from each frame to the next, from the two frames and pooled tokens."""

    def __init__(
        self,
        cameras: Sequence[CameraSpec],
        feature_dim: int,
        num_actions: int,
        action_dim: int,
        width: int,
        num_keypoints: int,
    ) -> None:
        super().__init__()
        self.shape = (num_actions, action_dim)
        self.encoders = ViewModules(
            {
                camera.name: FrameStackEncoder(
                    3,
                    (camera.height, camera.width),
                    torch.zeros(3, camera.height, camera.width),
                    num_keypoints=num_keypoints,
                    num_layers=4,
                )
                for camera in cameras
            }
        )
        self.pool = AttentionPool(feature_dim) if feature_dim else None
        seen_dim = sum(encoder.dim for _, encoder in self.encoders.items())
        self.mlp = make_mlp(seen_dim + feature_dim, 2 * width, num_actions * action_dim)

    def set_backgrounds(self, frames: Mapping[str, Tensor]) -> None:
        """Take the mean of ``frames``, camera -> [n, 3, h, w] in [-1, 1], as the background of each camera."""
        for camera, encoder in self.encoders.items():
            assert encoder.background is not None
            encoder.background.copy_(frames[camera].mean(0))

    def forward(self, video: Mapping[str, Tensor], features: Tensor | None) -> Tensor:
        """``video``, camera -> [B, M + 1, 3, h, w] in [-1, 1], ``features`` [B, N, F] -> f32 [B, M s, A]."""
        B, num_frames = next(iter(video.values())).shape[:2]
        seen = [
            encoder(video[camera][:, :-1].flatten(0, 1), video[camera][:, 1:].flatten(0, 1)).float()
            for camera, encoder in self.encoders.items()
        ]
        if self.pool is not None:
            assert features is not None
            seen.append(self.pool(features).float().repeat_interleave(num_frames - 1, dim=0))
        num_actions, action_dim = self.shape
        return self.mlp(torch.cat(seen, dim=1)).float().reshape(B, (num_frames - 1) * num_actions, action_dim)


class Gate(nn.Module):
    """The logit of "this is an interaction" from the tokens of the frame now, [B, N, C] -> f32 [B]."""

    def __init__(self, num_tokens: int, width: int) -> None:
        super().__init__()
        self.mlp = make_mlp(num_tokens * width, width, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.mlp(tokens.flatten(1))[:, 0].float()
