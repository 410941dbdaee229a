"""How well a critic tells from a frame whether the episode will succeed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from worldloop.core.statistics import auc, bootstrap_interval
from worldloop.core.types import Observation
from worldloop.sans.open_frames import OpenFrames

NUM_RESAMPLES = 300


@dataclass(frozen=True)
class CriticScore:
    """AUC over the ``num_frames`` frames of held-out episodes, with its 95 % interval; episodes are resampled."""

    auc: float
    low: float
    high: float
    num_frames: int

    def to_record(self) -> dict[str, float]:
        return {"value": round(self.auc, 4), "low": round(self.low, 4), "high": round(self.high, 4)}

    def __str__(self) -> str:
        return f"AUC {self.auc:.3f} ({self.low:.3f}-{self.high:.3f}) over {self.num_frames} held-out frames"


def score_critic(value: Callable[[Observation], Tensor], held_out: OpenFrames) -> CriticScore | None:
    """The score of ``value(observation) -> f32 [B]`` on ``held_out``; ``None`` where all episodes ended alike."""
    if not held_out.has_both_outcomes:
        return None
    values = torch.cat([value(held_out.load(rows)[0]) for rows in torch.arange(len(held_out.index)).split(512)]).numpy()
    label, clusters = held_out.label.numpy(), held_out.index[:, 0].numpy()
    low, high = bootstrap_interval(auc, values, label, clusters=clusters, num_resamples=NUM_RESAMPLES)
    return CriticScore(auc(values, label), low, high, len(values))
