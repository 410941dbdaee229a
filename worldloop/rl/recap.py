"""Labels for imagined action chunks: which of several chunks from one real state are better than the others?

RECAP (arXiv:2511.14759) labels recorded steps by V(later) - V(now). A critic alone cannot say more about one state than
that. A world model can: it imagines what K sampled chunks from the same real state lead to, and the critic values the
states that are reached. Their differences within the group do not depend on how good the state is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from worldloop.core.types import ImitationBatch, Rollout


@dataclass(frozen=True)
class LabelledChunks:
    """The chunks that ``imagined`` rollouts began with: ``chunks`` of n rows, ``is_good`` int64 [n] (1 good, 0 not)."""

    chunks: ImitationBatch
    is_good: Tensor

    def __len__(self) -> int:
        return len(self.is_good)


def label_first_chunks(rollout: Rollout, advantages: Tensor, positive_share: float) -> LabelledChunks:
    """Label the first chunk of every row: a share ``positive_share`` of them, those of the largest advantage, is good.

    ``advantages`` f32 [B]: of the row's return within its group. Rows whose advantage is exactly 0 belong to groups
    that tell nothing, and are left out. Raises ``ValueError`` for a share outside (0, 1).
    """
    if not 0 < positive_share < 1:
        raise ValueError(f"positive_share is {positive_share}, allowed: above 0 and below 1")
    rows = advantages.nonzero()[:, 0]
    observation = replace(rollout.observations[0].rows(rows), sim_state=None)
    chunks = ImitationBatch(observation, rollout.chunks[0].actions[rows], rollout.steps[0].valid[rows])
    if len(rows) == 0:
        return LabelledChunks(chunks, torch.zeros(0, dtype=torch.long))
    threshold = float(np.quantile(advantages[rows].double().numpy(), 1 - positive_share))
    return LabelledChunks(chunks, (advantages[rows] > threshold).long())
