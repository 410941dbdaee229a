"""A frame probe: a network that reads landmark positions and success from a frame.

Imagined frames have no simulator state; the probe estimates it. It is trained only on simulated frames, without any
world model. `worldloop.evaluation.visual_state` applies it to imagined episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldloop.core import images
from worldloop.core.interfaces import Metrics
from worldloop.core.reporting import Reporter
from worldloop.networks.blocks import make_mlp
from worldloop.networks.frame_stack import FrameStackEncoder
from worldloop.training.trainer import BatchObjective, fit_small

LEARNING_RATE = 2e-3
POSITION_WEIGHT = 4.0  # of the position loss (standardised positions); the success loss has weight 1
SHIFT_LEVELS = 6  # largest brightness shift of training frames, in grey levels; imagined frames vary too


@dataclass(frozen=True)
class ProbeBatch:
    """Frames with their labels.

    - ``first``, ``frame``: camera name -> u8 [B, h, w, 3]: the episode's first frame, and the frame to read
    - ``task``: B task ids; ``position_m`` f32 [B, P]; ``solved`` f32 [B]: 1 if the task is solved, else 0
    """

    first: dict[str, Tensor]
    frame: dict[str, Tensor]
    task: tuple[str, ...]
    position_m: Tensor
    solved: Tensor


@dataclass(frozen=True)
class ProbeReading:
    """The probe's output: ``position_m`` f32 [B, P] in metres, ``solved_logit`` f32 [B]."""

    position_m: Tensor
    solved_logit: Tensor


class FrameProbe(nn.Module):
    """A `FrameStackEncoder` for each camera, then one MLP with P coordinates and a success logit for each of T tasks.

    Each task has its own outputs, because two tasks may look alike.
    """

    position_mean: Tensor
    position_std: Tensor

    def __init__(
        self,
        backgrounds: Mapping[str, Tensor],
        tasks: Sequence[str],
        position_mean: Tensor,
        position_std: Tensor,
    ) -> None:
        """``backgrounds``: camera name -> mean frame [3, h, w]; ``position_mean`` and ``position_std`` [P]."""
        super().__init__()
        self.register_buffer("position_mean", position_mean.float())
        self.register_buffer("position_std", position_std.float().clamp_min(1e-4))
        self.cameras, self.tasks = tuple(backgrounds), tuple(tasks)
        encoders = [FrameStackEncoder(len(mean), (mean.shape[1], mean.shape[2]), mean) for mean in backgrounds.values()]
        self.encoders = nn.ModuleList(encoders)
        self.head = make_mlp(
            sum(encoder.dim for encoder in encoders), 256, len(self.tasks) * (len(position_mean) + 1), num_hidden=2
        )

    def forward(self, first: Mapping[str, Tensor], frame: Mapping[str, Tensor], task: Sequence[str]) -> Tensor:
        """``first`` and ``frame``, camera name -> u8 [B, h, w, 3], and B task ids -> f32 [B, P + 1].

        Each row has standardised coordinates, then the success logit, both for its task.
        """
        device = self.position_mean.device
        with torch.autocast(device.type, dtype=torch.bfloat16):
            features = [
                encoder(images.to_network(first[camera].to(device)), images.to_network(frame[camera].to(device)))
                for camera, encoder in zip(self.cameras, self.encoders, strict=True)
            ]
        output = self.head(torch.cat(features, dim=1)).unflatten(1, (len(self.tasks), -1))
        return output[torch.arange(len(task)), [self.tasks.index(t) for t in task]]

    @torch.no_grad()
    def read(
        self, first: Mapping[str, Tensor], frames: Mapping[str, Tensor], task: Sequence[str], batch_size: int = 512
    ) -> ProbeReading:
        """Read ``frames``, camera name -> u8 [N, h, w, 3]; ``first``, likewise, has the episodes' first frames."""

        def take(views: Mapping[str, Tensor], start: int) -> dict[str, Tensor]:
            return {camera: views[camera][start : start + batch_size] for camera in self.cameras}

        blocks = [
            self(take(first, start), take(frames, start), task[start : start + batch_size]).cpu()
            for start in range(0, len(task), batch_size)
        ]
        output = torch.cat(blocks)
        return ProbeReading(output[:, :-1] * self.position_std.cpu() + self.position_mean.cpu(), output[:, -1])


class ProbeObjective(BatchObjective[ProbeBatch]):
    """Success and position loss on simulated frames of varied brightness. ``positive_rate``: task -> success share."""

    def __init__(
        self,
        probe: FrameProbe,
        load: Callable[[Tensor], ProbeBatch],
        num_rows: int,
        batch_size: int,
        positive_rate: Mapping[str, float],
        generator: torch.Generator,
    ) -> None:
        super().__init__({0: generator})
        self.probe, self.load, self.num_rows = probe, load, num_rows
        self.batch_size, self.positive_rate = batch_size, positive_rate

    def draw(self, generator: torch.Generator) -> ProbeBatch:
        batch = self.load(torch.randint(self.num_rows, (self.batch_size,), generator=generator))
        shifted = {}
        for camera, frame in batch.frame.items():
            shift = torch.randint(-SHIFT_LEVELS, SHIFT_LEVELS + 1, (self.batch_size, 1, 1, 1), generator=generator)
            shifted[camera] = (frame.short() + shift).clamp(0, 255).byte()
        return replace(batch, frame=shifted)

    def count(self, batch: ProbeBatch) -> Tensor:
        return torch.tensor(self.batch_size)

    def compute_loss(self, batch: ProbeBatch, number: int) -> tuple[Tensor, Metrics]:
        probe = self.probe
        device = probe.position_mean.device
        output = probe(batch.first, batch.frame, batch.task)
        target = (batch.position_m.to(device) - probe.position_mean) / probe.position_std
        rate = torch.tensor([self.positive_rate[task] for task in batch.task], dtype=torch.float64).to(device)
        solved = batch.solved.to(device)
        weight = torch.where(solved > 0.5, 0.5 / rate, 0.5 / (1 - rate)).float()
        loss = functional.binary_cross_entropy_with_logits(output[:, -1], solved, weight)
        if target.shape[1]:
            loss = loss + POSITION_WEIGHT * functional.smooth_l1_loss(output[:, :-1], target, beta=0.1)
        return loss, {"loss": float(loss.detach())}


def fit_frame_probe(
    load: Callable[[Tensor], ProbeBatch],
    num_rows: int,
    tasks: Sequence[str],
    *,
    num_steps: int,
    batch_size: int,
    generator: torch.Generator,
    device: torch.device,
    reporter: Reporter,
) -> FrameProbe:
    """Fit a probe for ``tasks`` on the simulated frames that ``load(rows int64 [B])`` returns.

    Rows are in 0..num_rows - 1. In the success loss both classes of each task have the same weight.
    """
    sample = load(torch.randint(num_rows, (min(num_rows, 2048),), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        backgrounds = {camera: images.to_network(frame).mean(0) for camera, frame in sample.frame.items()}
        probe = FrameProbe(backgrounds, tasks, sample.position_m.mean(0), sample.position_m.std(0)).to(device)
    positive_rate = dict.fromkeys(tasks, 0.5)
    for task in set(sample.task):
        is_own = torch.tensor([t == task for t in sample.task])
        positive_rate[task] = float(sample.solved[is_own].mean().clamp(0.02, 0.98))
    return fit_small(
        probe,
        ProbeObjective(probe, load, num_rows, batch_size, positive_rate, generator),
        reporter,
        num_steps=num_steps,
        learning_rate=LEARNING_RATE,
        weight_decay=0.01,
        unit="probe step",
    )
