"""The heads beside the video: will it have succeeded, and where will the robot be.

They read the denoiser's tokens or the context alone, and know nothing of the denoiser.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldloop.networks.blocks import AttentionPool, make_mlp

FRAME_GRID = 16  # cells per side at which the success head looks at a frame
PROPRIO_GAIN = 4.0  # the small proprio head wants a several times larger learning rate than the image network


class SuccessHead(nn.Module):
    """Logit of "the task has been solved at this frame", from the denoiser's tokens and the frame it predicts.

    World-VLA-Loop reads the reward from the tokens, phi(z_t). At this size that learns late: on PushCube a convolution
    over (first frame, this frame) that keeps positions gets there in a fifth of the steps. The predicted frame comes
    detached, so the video is not bent to please the head.
    """

    def __init__(self, feature_dim: int, channels: int, size: int, width: int = 32, hidden_dim: int = 128) -> None:
        super().__init__()
        self.patch = next(p for p in range(max(1, size // FRAME_GRID), 0, -1) if size % p == 0)
        self.stem = nn.Conv2d(2 * channels * self.patch**2, width, 1)
        self.fine = nn.Conv2d(width, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.coarse = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        grid = (size // self.patch + 1) // 2
        self.flat = nn.Linear(2 * width * grid**2, hidden_dim)
        self.pool = AttentionPool(feature_dim)
        self.mlp = make_mlp(hidden_dim + 2 * feature_dim, hidden_dim, 1, num_hidden=1)

    def forward(self, features: Tensor, first: Tensor, predicted: Tensor) -> Tensor:
        """``features`` [B, L, N, F], ``first`` [B, C, size, size], ``predicted`` [B, L, C, size, size] -> f32 [B, L]."""
        B, L, N, F = features.shape
        tokens = features.reshape(B * L, N, F)
        pair = torch.cat([first[:, None].expand_as(predicted), predicted.detach()], dim=2).flatten(0, 1)
        h = self.stem(functional.pixel_unshuffle(pair, self.patch))
        h = h + self.fine(functional.silu(h))
        h = self.down(functional.silu(h))
        h = h + self.coarse(functional.silu(h))
        seen = self.flat(functional.silu(h).flatten(1))
        read = torch.cat([functional.silu(seen), self.pool(tokens), tokens[:, 0]], dim=-1)
        return self.mlp(read).float().reshape(B, L)


class ProprioHead(nn.Module):
    """Next normalised proprio from proprio, the frame step's stacked actions and the image now.

    It predicts the change. GE-Sim 2.0 reports that such a state expert raises closed-loop recall.
    """

    def __init__(
        self,
        proprio_dim: int,
        stacked_action_dim: int,
        latent_channels: int,
        hidden_dim: int = 384,
        image_dim: int = 32,
    ) -> None:
        super().__init__()
        self.image = nn.Sequential(
            nn.Linear(latent_channels * 64, image_dim), nn.SiLU(), nn.Linear(image_dim, image_dim), nn.SiLU()
        )
        self.mlp = make_mlp(proprio_dim + stacked_action_dim + image_dim, hidden_dim, proprio_dim, gain=PROPRIO_GAIN)

    def forward(self, proprio: Tensor, actions: Tensor, now: Tensor) -> Tensor:
        """``proprio`` [B, S], ``actions`` [B, s, A] in [-1, 1], ``now`` [B, C, size, size] -> f32 [B, S]."""
        image = self.image(functional.adaptive_avg_pool2d(now, 8).flatten(1))
        change = self.mlp(torch.cat([proprio, actions.flatten(1).to(proprio), image.to(proprio)], dim=1))
        return proprio + change.float()
