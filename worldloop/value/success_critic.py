"""A small critic: it predicts from an observation how likely the policy is to succeed by the episode's end.

It is fitted on the policy's real episodes, whose outcomes are known, by cross-entropy, a proper score. It does not
bootstrap. An imagined rollout that is cut off takes the critic's value of its last state as its return, like truncated
rollouts in model-based reinforcement learning (MBPO, arXiv:1906.08253; Dreamer, arXiv:1912.01603).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldloop.core.interfaces import Reporter
from worldloop.core.specs import SimulatorSpec
from worldloop.core.types import Observation
from worldloop.networks.blocks import make_mlp
from worldloop.value.observation_encoder import LoadRows, ObservationEncoder, fit_on_observations

LoadOutcomes = LoadRows  # the label is 1 if the row's episode succeeded, else 0


class Critic(nn.Module):
    """``forward(observation)`` -> logit f32 [B] of success by the episode's end.

    ``spec``, ``backgrounds``, ``proprio`` and what the critic reads: see `ObservationEncoder`.
    """

    def __init__(self, spec: SimulatorSpec, backgrounds: Mapping[str, Tensor], proprio: Tensor | None) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = ObservationEncoder(spec, backgrounds, proprio)
        self.head = make_mlp(self.encoder.dim, 64, 1, num_hidden=1)

    def forward(self, observation: Observation) -> Tensor:
        return self.head(self.encoder(observation))[:, 0]

    @torch.no_grad()
    def value(self, observation: Observation) -> Tensor:
        """The probability of success, f32 [B] in [0, 1], on the CPU."""
        return torch.sigmoid(self(observation.to(self.encoder.device))).cpu()


def fit_critic(
    load: LoadOutcomes,
    num_rows: int,
    spec: SimulatorSpec,
    *,
    num_steps: int,
    batch_size: int,
    generator: torch.Generator,
    device: torch.device,
    reporter: Reporter,
) -> Critic:
    """Fit a critic for the cameras and tasks of ``spec``.

    ``load(rows int64 [B])``, for rows in 0..num_rows - 1, returns observations and, f32 [B], whether their episodes
    succeeded.
    """
    return fit_on_observations(
        Critic,
        functional.binary_cross_entropy_with_logits,
        load,
        num_rows,
        spec,
        num_steps=num_steps,
        batch_size=batch_size,
        generator=generator,
        device=device,
        reporter=reporter,
    )
