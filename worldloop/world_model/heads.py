"""The heads beside the video: will it have succeeded, and where will the robot be.

They read the denoiser's tokens or the context alone, and know nothing of the denoiser.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldloop.networks.blocks import AttentionPool, make_mlp


class SuccessHead(nn.Module):
    """Logit of "the task has been solved at this frame" from the denoiser's tokens (World-VLA-Loop's phi(z_t))."""

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.pool = AttentionPool(feature_dim, num_queries=4)
        self.mlp = make_mlp(5 * feature_dim, feature_dim, 1, num_hidden=1)

    def forward(self, features: Tensor) -> Tensor:
        """``features`` [B, L, N, F] -> logits f32 [B, L]."""
        B, L, N, F = features.shape
        tokens = features.reshape(B * L, N, F)
        pooled = torch.cat([self.pool(tokens), tokens[:, 0]], dim=-1)
        return self.mlp(pooled).float().reshape(B, L)


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
        self.mlp = make_mlp(proprio_dim + stacked_action_dim + image_dim, hidden_dim, proprio_dim)

    def forward(self, proprio: Tensor, actions: Tensor, now: Tensor) -> Tensor:
        """``proprio`` [B, S], ``actions`` [B, s, A] in [-1, 1], ``now`` [B, C, size, size] -> f32 [B, S]."""
        image = self.image(functional.adaptive_avg_pool2d(now, 8).flatten(1))
        change = self.mlp(torch.cat([proprio, actions.flatten(1).to(proprio), image.to(proprio)], dim=1))
        return proprio + change.float()
