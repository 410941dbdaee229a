"""Frames of the policy's episodes from before any success: the training data of a critic."""

from __future__ import annotations

import torch
from torch import Tensor

from worldloop.core.types import Observation
from worldloop.sans.clips import ClipDataset


class OpenFrames:
    """The frames of the policy's own episodes before a success, and whether each episode succeeded.

    ``index`` int64 [N, 2] = (episode, frame); ``label`` bool [N]: the episode succeeded.
    """

    def __init__(self, dataset: ClipDataset) -> None:
        self.dataset = dataset
        episodes = dataset.episode_index(source="policy")
        rows = [(e, f) for e in episodes.tolist() for f in range(int(dataset.num_open_steps[e]))]
        self.index = torch.tensor(rows, dtype=torch.long).reshape(-1, 2)
        solved = torch.tensor([meta.outcome == "success" for meta in dataset.cache.metas])
        self.label = solved[self.index[:, 0]]

    @property
    def has_both_outcomes(self) -> bool:
        """Whether there are frames of successes and of failures."""
        return bool(self.label.any()) and not bool(self.label.all())

    def load(self, rows: Tensor) -> tuple[Observation, Tensor]:
        """Observations at ``rows`` int64 [B], and whether their episodes succeeded, f32 [B]."""
        return self.dataset.observation(self.index[rows]), self.label[rows].float()
