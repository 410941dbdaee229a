"""Choose what is stored with a checked world model for environments and games to start from."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from worldloop.core.types import Observation
from worldloop.sans.clips import ClipDataset

NUM_STARTS = 64  # over all tasks together


def choose_starts(dataset: ClipDataset) -> tuple[Observation, Tensor]:
    """The first observations and actions of the latest episodes of ``dataset``, with an equal part per task.

    There are N, up to `NUM_STARTS`; actions are f32 [N, A], in environment units.

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
    observations = dataset.observation(torch.stack([first, torch.zeros_like(first)], dim=1))
    actions = dataset.cache.steps("actions", first.numpy(), np.zeros(len(first), dtype=np.int64))
    return observations, torch.from_numpy(actions[:, 0])
