"""ViVa: the fitted world model as a value model that also foresees where the robot will be.

ViVa (arXiv:2604.08168) lets a pretrained video diffusion transformer denoise two more slots beside what it sees: the
proprio some steps later, and the value. Here the slots are tokens that attend to the world model's tokens of the
context: [proprio now | future proprio, value]. The slot of proprio now is always clean. The other two lie on the path
from noise (t = 0) to data (t = 1). All weights are trained further, from those of the fitted world model.

Departures:

1. A slot is one token. The paper repeats proprio and value over the latents of a whole frame. A value that is repeated
   with independent noise shows through it: the mean of n copies has 1 / sqrt(n) of the noise. ``value.copies`` says
   how many copies the slot gets; at least a share ``value.pure_noise_share`` of the training slots are pure noise.
2. The network predicts clean data, by squared error. Its noisy input is multiplied by t. So at t = 0, the one step of
   inference, the noise is ignored and the value is the mean prediction.
3. The value slot knows the share of the time limit that has passed: the return of a failure depends on it.
4. The value is scaled from [-1, 0] to [-1, 1]; proprio is scaled by mean and standard deviation, like the world
   model's, and not by its range.
5. Frames are shifted and brightened at random, since a few hundred episodes are easily memorised.
6. On `hybrid`, which has no time per token, each slot's time is embedded in its token. On `cosmos` the slots have their
   own time in every adaptive layer norm as well.

7. It is fitted without gradient clipping, sharding or checkpoints: after a kill the critic of a fold begins anew.

Shapes: B rows, S proprio, n copies, F channels of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldloop.core.interfaces import Metrics, SlotReader
from worldloop.core.types import Observation
from worldloop.networks import flow
from worldloop.networks.embeddings import embed_time
from worldloop.value.config import ValueConfig
from worldloop.value.critic import Critic, ValueRows
from worldloop.value.observation_encoder import passed_share

NUM_SLOTS = 3  # proprio now, future proprio, value
DROPOUT = 0.1


class VivaCritic(Critic):
    """``world_model`` with the slots' input and output maps.

    ``forward(observation, future [B, S], value [B, n], t [B])`` -> the clean future proprio [B, S] and the clean copies
    of the value [B, n], both scaled. ``future`` and ``value`` are noisy, at time t.
    """

    def __init__(self, config: ValueConfig, world_model: SlotReader) -> None:
        super().__init__(world_model.spec, world_model.normalisation)
        assert isinstance(world_model, nn.Module)
        self.config, self.world_model = config, world_model
        self.num_copies = world_model.num_latents if config.copies == "all" else int(config.copies)
        proprio_dim, dim = len(self.normalisation.proprio_mean), world_model.feature_dim
        self.proprio_in = nn.Linear(proprio_dim, dim)
        self.future_in = nn.Linear(proprio_dim, dim)
        self.value_in = nn.Linear(self.num_copies, dim)
        self.clock_in = nn.Linear(1, dim)
        self.slots = nn.Parameter(torch.randn(NUM_SLOTS, dim) * 0.02)
        self.time_in = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(DROPOUT)
        self.future_out = nn.Linear(dim, proprio_dim)
        self.value_out = nn.Linear(dim, self.num_copies)

    @property
    def learning_rate(self) -> float:
        return self.config.learning_rate

    @property
    def frozen(self) -> frozenset[str]:
        return frozenset(f"world_model.{name}" for name in getattr(self.world_model, "frozen", ()))

    def forward(self, observation: Observation, future: Tensor, value: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        if observation.proprio is None:
            raise ValueError("ViVa reads proprio, and the observation has none")
        now = self.normalisation.normalise(observation.proprio)
        clock = passed_share(observation, self.spec).to(now)[:, None]
        at = t[:, None]
        tokens = torch.stack(
            [
                self.proprio_in(now),
                self.future_in(future * at),
                self.value_in(value * at) + self.clock_in(clock),
            ],
            dim=1,
        )
        times = torch.stack([torch.ones_like(t), t, t], dim=1)
        embedded = embed_time(times.flatten(), tokens.shape[-1]).unflatten(0, times.shape)
        tokens = tokens + self.slots + self.time_in(embedded)
        read = self.dropout(self.world_model.read_slots(observation, tokens, times))
        return self.future_out(read[:, 1]), self.value_out(read[:, 2])

    def compute_loss(self, rows: ValueRows, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Squared error of the clean value, plus ``future_weight`` times that of the clean future proprio."""
        future = self.normalisation.normalise(rows.future_proprio)
        value = (2 * rows.returns + 1)[:, None].expand(-1, self.num_copies)
        t = flow.sample_times(len(rows), self.config.pure_noise_share, generator).to(value)
        noisy = [
            flow.interpolate(torch.randn(data.shape, generator=generator).to(data), data, t) for data in (future, value)
        ]
        predicted_future, predicted_value = self(rows.observation, *noisy, t)
        value_loss = functional.mse_loss(predicted_value, value)
        future_loss = functional.mse_loss(predicted_future, future)
        metrics = {"loss_value": float(value_loss.detach()), "loss_future": float(future_loss.detach())}
        return value_loss + self.config.future_weight * future_loss, metrics

    @torch.no_grad()
    def foresee(self, observation: Observation) -> tuple[Tensor, Tensor]:
        """In one step from pure noise: the value f32 [B] in [-1, 0], and the future proprio f32 [B, S] in raw units."""
        observation = observation.with_cameras(self.spec.robot.camera_names).to(self.device)
        zeros = [
            torch.zeros(len(observation), n, device=self.device) for n in (len(self.future_out.bias), self.num_copies)
        ]
        future, value = self(observation, *zeros, zeros[0].new_zeros(len(observation)))
        mean, std = (s.to(future) for s in (self.normalisation.proprio_mean, self.normalisation.proprio_std))
        return ((value.mean(1) - 1) / 2).clamp(-1, 0).cpu(), (future * std + mean).cpu()

    def value(self, observation: Observation) -> Tensor:
        return self.foresee(observation)[0]
