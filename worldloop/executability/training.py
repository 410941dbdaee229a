"""How an inverse dynamics model is fitted."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from worldloop.core.context_frames import NUM_CONTEXT_FRAMES
from worldloop.core.interfaces import Metrics
from worldloop.core.reporting import Reporter
from worldloop.core.types import Clip
from worldloop.executability.inverse_dynamics import InverseDynamics
from worldloop.training.trainer import BatchObjective, fit_small

WEIGHT_DECAY = 0.01
BACKGROUND_FRAMES = 512


class ClipLoader(Protocol):
    """Loads clips by (episode, frame step), see `worldloop.sans.clips.ClipDataset`."""

    def load(self, index: Tensor, num_frames: int, num_context_frames: int = NUM_CONTEXT_FRAMES) -> Clip: ...


class InverseDynamicsObjective(BatchObjective[Clip]):
    """The loss on frame steps drawn from ``index`` int64 [N, 2] = (episode, frame step)."""

    def __init__(
        self, model: InverseDynamics, clips: ClipLoader, index: Tensor, *, batch_size: int, generator: torch.Generator
    ) -> None:
        super().__init__({0: generator})
        self.model, self.clips, self.index, self.batch_size = model, clips, index, batch_size

    def draw(self, generator: torch.Generator) -> Clip:
        rows = torch.randint(len(self.index), (self.batch_size,), generator=generator)
        return self.clips.load(self.index[rows], 1)

    def count(self, batch: Clip) -> Tensor:
        return torch.tensor(len(batch.index))

    def compute_loss(self, batch: Clip, number: int) -> tuple[Tensor, Metrics]:
        loss = self.model.compute_loss(batch.to(self.model.device))
        return loss, {"loss": float(loss.detach())}


def fit_inverse_dynamics(
    model: InverseDynamics,
    clips: ClipLoader,
    index: Tensor,
    *,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
    generator: torch.Generator,
    reporter: Reporter,
) -> InverseDynamics:
    """Fit ``model`` on the frame steps in ``index`` int64 [N, 2]; returns it in eval mode, on its device.

    All random numbers come from ``generator``.
    """
    sample = index[torch.randint(len(index), (min(len(index), BACKGROUND_FRAMES),), generator=generator)]
    frames = clips.load(sample, 1).context
    model.set_backgrounds({camera: seen[:, -1].to(model.device) for camera, seen in frames.items()})
    return fit_small(
        model.train(),
        InverseDynamicsObjective(model, clips, index, batch_size=batch_size, generator=generator),
        reporter,
        num_steps=num_steps,
        learning_rate=learning_rate,
        weight_decay=WEIGHT_DECAY,
        unit="inverse dynamics step",
    )
