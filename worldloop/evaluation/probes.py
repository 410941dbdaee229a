"""Reads the simulator's state off a frame: where things are, and whether the task is solved.

An instrument for imagined frames, which have no state behind them. It is trained on simulated frames only, knows
nothing of any world model, and every figure it gives belongs beside the same figure on held-out simulated frames.
World-VLA-Loop (arXiv:2602.06508, table 2) calls agreement of the outcome *seen* in the video visual alignment and has
people or a language model look; here a classifier looks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldloop.core import images
from worldloop.core.interfaces import Metrics, Reporter
from worldloop.networks.blocks import make_mlp
from worldloop.networks.frame_pair import FramePairEncoder
from worldloop.training.trainer import BatchObjective, fit_small

LEARNING_RATE = 2e-3
POSITION_WEIGHT = 4.0  # of the position loss (in standard deviations) beside the success loss
SHIFT_LEVELS = 6  # grey levels of brightness by which training frames vary, as imagined ones do


@dataclass(frozen=True)
class ProbeBatch:
    """``first`` and ``frame`` u8 [B, h, w, 3] (of the episode, and to read), ``position_m`` f32 [B, P], ``solved``
    f32 [B]."""

    first: Tensor
    frame: Tensor
    position_m: Tensor
    solved: Tensor


@dataclass(frozen=True)
class ProbeReading:
    """``position_m`` f32 [B, P] metres, ``solved_logit`` f32 [B]."""

    position_m: Tensor
    solved_logit: Tensor


class FrameProbe(nn.Module):
    """A `FramePairEncoder` and one MLP for P coordinates and the success logit."""

    position_mean: Tensor
    position_std: Tensor

    def __init__(self, background: Tensor, position_mean: Tensor, position_std: Tensor) -> None:
        super().__init__()
        self.register_buffer("position_mean", position_mean.float())
        self.register_buffer("position_std", position_std.float().clamp_min(1e-4))
        self.encoder = FramePairEncoder(len(background), background.shape[-1], background)
        self.head = make_mlp(self.encoder.dim, 256, len(position_mean) + 1, num_hidden=2)

    def forward(self, first: Tensor, frame: Tensor) -> Tensor:
        """u8 [B, h, w, 3] twice -> f32 [B, P + 1]: standardised coordinates, then the success logit."""
        with torch.autocast(first.device.type, dtype=torch.bfloat16):
            features = self.encoder(images.to_network(first), images.to_network(frame))
        return self.head(features)

    @torch.no_grad()
    def read(self, first: Tensor, frames: Tensor, batch_size: int = 512) -> ProbeReading:
        """``frames`` u8 [N, h, w, 3] of the episodes that began with ``first`` u8 [N, h, w, 3]."""
        device = self.position_mean.device
        pairs = zip(first.split(batch_size), frames.split(batch_size), strict=True)
        output = torch.cat([self(a.to(device), b.to(device)).cpu() for a, b in pairs])
        return ProbeReading(output[:, :-1] * self.position_std.cpu() + self.position_mean.cpu(), output[:, -1])


class ProbeObjective(BatchObjective[ProbeBatch]):
    """Success and position of simulated frames whose brightness varies."""

    def __init__(
        self,
        probe: FrameProbe,
        load: Callable[[Tensor], ProbeBatch],
        num_rows: int,
        batch_size: int,
        positive_rate: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__({0: generator})
        self.probe, self.load, self.num_rows = probe, load, num_rows
        self.batch_size, self.positive_rate = batch_size, positive_rate

    def draw(self, generator: torch.Generator) -> ProbeBatch:
        batch = self.load(torch.randint(self.num_rows, (self.batch_size,), generator=generator))
        shift = torch.randint(-SHIFT_LEVELS, SHIFT_LEVELS + 1, (self.batch_size, 1, 1, 1), generator=generator)
        return replace(batch, frame=(batch.frame.short() + shift).clamp(0, 255).byte())

    def count(self, batch: ProbeBatch) -> Tensor:
        return torch.tensor(self.batch_size)

    def compute_loss(self, batch: ProbeBatch, number: int) -> tuple[Tensor, Metrics]:
        probe = self.probe
        device = probe.position_mean.device
        output = probe(batch.first.to(device), batch.frame.to(device))
        target = (batch.position_m.to(device) - probe.position_mean) / probe.position_std
        solved, rate = batch.solved.to(device), self.positive_rate
        weight = torch.where(solved > 0.5, 0.5 / rate, 0.5 / (1 - rate))
        loss = functional.binary_cross_entropy_with_logits(output[:, -1], solved, weight)
        if target.shape[1]:
            loss = loss + POSITION_WEIGHT * functional.smooth_l1_loss(output[:, :-1], target, beta=0.1)
        return loss, {"loss": float(loss.detach())}


def fit_frame_probe(
    load: Callable[[Tensor], ProbeBatch],
    num_rows: int,
    *,
    num_steps: int,
    batch_size: int,
    generator: torch.Generator,
    device: torch.device,
    reporter: Reporter,
) -> FrameProbe:
    """A probe fitted on the simulated frames that ``load(rows int64 [B])`` gives for rows 0..num_rows - 1.

    The success loss weighs both classes equally.
    """
    sample = load(torch.randint(num_rows, (min(num_rows, 2048),), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        background = images.to_network(sample.frame).mean(0)
        probe = FrameProbe(background, sample.position_m.mean(0), sample.position_m.std(0)).to(device)
    positive_rate = float(sample.solved.mean().clamp(0.02, 0.98))
    return fit_small(
        probe,
        ProbeObjective(probe, load, num_rows, batch_size, positive_rate, generator),
        reporter,
        num_steps=num_steps,
        learning_rate=LEARNING_RATE,
        weight_decay=0.01,
        unit="probe step",
    )
