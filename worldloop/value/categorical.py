"""A critic that predicts the distribution of the return from an observation.

RECAP (arXiv:2511.14759) trains its value function as a classifier over 201 bins of the return. The bins' targets are
those of HL-Gauss (arXiv:2403.03950): the return, smoothed by a normal distribution. It is fitted on whole episodes,
whose returns are known; it does not bootstrap.

Departures:

1. RECAP's value function is a vision-language model, and its target is the discretised return. This one is small, and
   its targets are smooth, so that near returns share what few episodes teach.
2. HL-Gauss puts the ends of the range at the edges of the outer bins. Here they are the outer bins' centres. So a
   critic that is certain of the best or the worst return can say so exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from worldloop.core.interfaces import Metrics
from worldloop.core.specs import SimulatorSpec
from worldloop.core.tensors import check_shape
from worldloop.core.types import Normalisation, Observation
from worldloop.networks.blocks import make_mlp
from worldloop.value.critic import Critic, ValueRows
from worldloop.value.observation_encoder import ObservationEncoder

NUM_BINS = 201  # RECAP's; bin i has its centre at -1 + i / 200
SMOOTHING = 0.75  # sigma of the targets in bin widths, as recommended in HL-Gauss


def hl_gauss_targets(returns: Tensor, num_bins: int = NUM_BINS, smoothing: float = SMOOTHING) -> Tensor:
    """Target probabilities f32 [B, num_bins] of ``returns`` f32 [B] in [-1, 0]; rows sum to 1.

    Bin i gets the mass of a normal distribution around the return between the bin's edges, divided by the mass between
    the first and the last edge (HL-Gauss, arXiv:2403.03950). Its standard deviation is ``smoothing`` bin
    widths. Bin centres run from -1 to 0. Near an end the missing tail moves the target's mean inwards, by up to .37 bin
    widths with the default smoothing.

    Raises ``ValueError`` for a return outside [-1, 0].
    """
    check_shape("returns", returns, (None,))
    if not bool(((returns >= -1) & (returns <= 0)).all()):
        raise ValueError(f"returns lie between {float(returns.min())} and {float(returns.max())}, allowed: -1 to 0")
    # in bin widths from the first centre: centres at 0, 1, 2, ..., edges halfway between them
    edges = torch.arange(num_bins + 1, device=returns.device) - 0.5
    position = (returns.float() + 1) * (num_bins - 1)
    below = torch.special.ndtr((edges - position[:, None]) / smoothing)
    return below.diff(dim=1) / (below[:, -1:] - below[:, :1])


class CategoricalCritic(Critic):
    """``forward(observation)`` -> logits f32 [B, NUM_BINS] of the return's bins.

    What it reads: see `ObservationEncoder`.
    """

    bin_centres: Tensor

    def __init__(self, spec: SimulatorSpec, normalisation: Normalisation) -> None:
        super().__init__(spec, normalisation)
        self.encoder = ObservationEncoder(spec, normalisation)
        self.head = make_mlp(self.encoder.dim, 64, NUM_BINS, num_hidden=1)
        self.register_buffer("bin_centres", torch.linspace(-1, 0, NUM_BINS), persistent=False)

    def prepare(self, sample: Observation) -> None:
        self.encoder.set_backgrounds(sample)

    def forward(self, observation: Observation) -> Tensor:
        return self.head(self.encoder(observation))

    def compute_loss(self, rows: ValueRows, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Cross-entropy of the logits against `hl_gauss_targets`, the mean over rows."""
        return functional.cross_entropy(self(rows.observation), hl_gauss_targets(rows.returns)), {}

    @torch.no_grad()
    def value(self, observation: Observation) -> Tensor:
        """The mean of the predicted distribution."""
        probabilities = self(observation.to(self.device)).softmax(dim=1)
        return (probabilities @ self.bin_centres).clamp(-1, 0).cpu()
