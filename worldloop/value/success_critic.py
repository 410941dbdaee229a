"""A critic of one probability: it predicts the return by cross-entropy, a proper score for a mean between two ends.

With ``value.target=outcome`` the return is 0 for a success and -1 for a failure. Then the critic says how likely the
policy is to succeed by the episode's end. An imagined rollout that is cut off can take the value of its last state as
its return, like truncated rollouts in model-based reinforcement learning (MBPO, arXiv:1906.08253; Dreamer,
arXiv:1912.01603).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from worldloop.core.interfaces import Metrics
from worldloop.core.specs import SimulatorSpec
from worldloop.core.types import Normalisation, Observation
from worldloop.networks.blocks import make_mlp
from worldloop.value.critic import Critic, ValueRows
from worldloop.value.observation_encoder import ObservationEncoder


class SuccessCritic(Critic):
    """``forward(observation)`` -> logit f32 [B] of the return plus 1.

    What it reads: see `ObservationEncoder`.
    """

    def __init__(self, spec: SimulatorSpec, normalisation: Normalisation) -> None:
        super().__init__(spec, normalisation)
        self.encoder = ObservationEncoder(spec, normalisation)
        self.head = make_mlp(self.encoder.dim, 64, 1, num_hidden=1)

    def prepare(self, sample: Observation) -> None:
        self.encoder.set_backgrounds(sample)

    def forward(self, observation: Observation) -> Tensor:
        return self.head(self.encoder(observation))[:, 0]

    def compute_loss(self, rows: ValueRows, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Binary cross-entropy against the return plus 1, the mean over rows."""
        return functional.binary_cross_entropy_with_logits(self(rows.observation), rows.returns + 1), {}

    @torch.no_grad()
    def value(self, observation: Observation) -> Tensor:
        """The predicted probability minus 1."""
        return (torch.sigmoid(self(observation.to(self.device))) - 1).cpu()
