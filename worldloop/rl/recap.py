"""Labels for imagined action chunks: which of several chunks from one real state are better than the others?

RECAP (arXiv:2511.14759) labels recorded steps by V(later) - V(now). A critic alone cannot say more about one state than
that. A world model can: it imagines what K sampled chunks from the same real state lead to, and the critics value the
states that are reached. Their differences within the group do not depend on how good the state is.

Departure: RECAP's labels are out of fold. Here the mean of all critics values an imagined state, although some of them
have learned the episode that it started from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worldloop.core.types import ImitationBatch, Rollout
from worldloop.rl.advantages import GroupAdvantages


@dataclass(frozen=True)
class LabelledChunks:
    """The chunks that ``imagined`` rollouts began with: ``chunks`` of n rows, ``is_good`` int64 [n] (1 good, 0 not)."""

    chunks: ImitationBatch
    is_good: Tensor

    def __len__(self) -> int:
        return len(self.is_good)


def label_first_chunks(
    rollout: Rollout, groups: GroupAdvantages, thresholds: Mapping[str, float], cameras: Sequence[str]
) -> LabelledChunks:
    """Label the first chunk of every row of a kept group: good if its advantage is above its task's threshold.

    ``groups.advantages`` f32 [B] are of the rows' returns within their groups; groups that tell nothing are dropped.
    ``cameras`` are those that the policy reads.
    """
    rows = groups.keep.nonzero()[:, 0]
    observation = replace(rollout.observations[0].rows(rows).with_cameras(cameras), sim_state=None)
    chunks = ImitationBatch(observation, rollout.chunks[0].actions[rows], rollout.steps[0].valid[rows])
    threshold = torch.tensor([thresholds[task] for task in observation.task])
    return LabelledChunks(chunks, (groups.advantages[rows] > threshold).long())
