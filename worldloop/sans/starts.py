"""Choose the observations that are stored with a checked world model. Environments and games start from them."""

from __future__ import annotations

import torch

from worldloop.core.types import Observation
from worldloop.sans.clips import ClipDataset

NUM_STARTS = 64  # over all tasks together


def choose_starts(dataset: ClipDataset) -> Observation:
    """The first observations of the latest episodes of ``dataset``, up to `NUM_STARTS`, with an equal part per task.

    A task's starts come from the policy's own episodes if it has any, else from all its episodes. Tasks follow one
    another.
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
