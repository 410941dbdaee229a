"""The decisions of a round of rollouts: every action chunk that GRPO learns from, with its advantage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worldloop.core.types import ActionChunk, Observation, Rollout
from worldloop.rl.advantages import GroupAdvantages


@dataclass(frozen=True)
class Decisions:
    """N action chunks: ``log_probs`` f32 [N, H] when sampled, ``valid`` bool [N, H], ``advantages`` f32 [N]."""

    observation: Observation
    chunk: ActionChunk
    log_probs: Tensor
    valid: Tensor
    advantages: Tensor

    def __len__(self) -> int:
        return len(self.advantages)

    def rows(self, index: Tensor) -> Decisions:
        """The decisions at ``index`` int64 [n]."""
        return Decisions(
            self.observation.rows(index),
            self.chunk.rows(index),
            self.log_probs[index],
            self.valid[index],
            self.advantages[index],
        )

    def to(self, device: torch.device) -> Decisions:
        tensors = (tensor.to(device) for tensor in (self.log_probs, self.valid, self.advantages))
        return Decisions(self.observation.to(device), self.chunk.to(device), *tensors)


def flatten_decisions(rollout: Rollout, groups: GroupAdvantages) -> Decisions | None:
    """The decisions of kept groups, without chunks after a row's end; ``None`` if there are none.

    Raises ``ValueError`` if the policy gave no log-probabilities.
    """
    parts: list[tuple[Any, ...]] = []
    by_chunk = groups.advantages
    if by_chunk.ndim == 1:
        by_chunk = by_chunk[:, None].expand(-1, len(rollout.chunks))
    for c, (observation, chunk, step) in enumerate(
        zip(rollout.observations, rollout.chunks, rollout.steps, strict=True)
    ):
        if chunk.log_probs is None:
            raise ValueError("GRPO needs a policy with exact log-probabilities; this one gives none")
        rows = (groups.keep & step.valid.any(1)).nonzero()[:, 0]
        if len(rows):
            parts.append(
                (
                    observation.rows(rows),
                    chunk.rows(rows),
                    chunk.log_probs[rows],
                    step.valid[rows],
                    by_chunk[rows, c],
                )
            )
    if not parts:
        return None
    observations, chunks, *columns = zip(*parts, strict=True)
    return Decisions(
        Observation.cat(list(observations)), ActionChunk.cat(list(chunks)), *(torch.cat(column) for column in columns)
    )
