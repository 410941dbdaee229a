"""How well a critic predicts from a frame whether the episode will succeed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worldloop.core.statistics import Estimate, auc, average_estimates, estimate_by_label
from worldloop.core.types import Observation
from worldloop.sans.open_frames import OpenFrames

NUM_RESAMPLES = 300


@dataclass(frozen=True)
class CriticScore:
    """AUC over frames of held-out episodes, the mean over tasks. The interval resamples episodes."""

    auc: Estimate

    def to_record(self) -> dict[str, float | None]:
        return self.auc.to_dict()

    def __str__(self) -> str:
        return f"AUC {self.auc} over {self.auc.n} held-out frames"


def score_critic(value: Callable[[Observation], Tensor], held_out: OpenFrames) -> CriticScore | None:
    """Score ``value(observation) -> f32 [B]`` on ``held_out``.

    A task whose episodes all ended alike is left out of the mean; ``None`` if no task is left.
    """
    if not held_out.has_both_outcomes:
        return None
    values = torch.cat([value(held_out.load(rows)[0]) for rows in torch.arange(len(held_out.index)).split(512)]).numpy()
    label, episode = held_out.label.numpy(), held_out.index[:, 0].numpy()
    task = np.array([held_out.dataset.cache.metas[e].task for e in episode.tolist()])
    by_task = [
        estimate_by_label(auc, values[own], label[own], clusters=episode[own], num_resamples=NUM_RESAMPLES)
        for own in (task == name for name in np.unique(task))
    ]
    score = average_estimates(by_task)
    return None if score is None else CriticScore(score)
