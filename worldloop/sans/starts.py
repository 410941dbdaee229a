"""Which observations of a dataset a checked world model carries, for environments and games to start from."""

from __future__ import annotations

import torch

from worldloop.core.types import Observation
from worldloop.sans.clips import ClipDataset

NUM_STARTS = 64  # of all tasks


def choose_starts(dataset: ClipDataset) -> Observation:
    """First observations of the latest episodes of ``dataset``, the policy's own where there are any.

    They are spread evenly over its tasks, one task after the other.
    """
    metas = dataset.cache.metas
    tasks = sorted({metas[e].task for e in dataset.episode_index().tolist()})
    chosen = []
    for task in tasks:
        episodes = dataset.episode_index(task=task, source="policy")
        episodes = episodes if len(episodes) else dataset.episode_index(task=task)
        chosen.append(episodes[-max(NUM_STARTS // len(tasks), 1) :])
    first = torch.cat(chosen)
    return dataset.observation(torch.stack([first, torch.zeros_like(first)], dim=1))
