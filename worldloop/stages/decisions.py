"""What a round of imagined rollouts teaches: the return of every row, and the decisions that get its advantage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worldloop.core.success import find_highest_confirmed
from worldloop.core.types import ActionChunk, Observation
from worldloop.rl.grpo import GroupAdvantages
from worldloop.rollout.rollout import Rollout


@dataclass(frozen=True)
class Decisions:
    """Every action chunk that counted in a round: N decisions with the advantage of their row."""

    observation: Observation
    chunk: ActionChunk
    log_probs: Tensor
    valid: Tensor
    advantages: Tensor


def compute_returns(
    rollout: Rollout,
    confirm_frames: int,
    uncertainty_penalty: float = 0.0,
    floor_db: float = 0.0,
    last_value: Tensor | None = None,
) -> Tensor:
    """f32 [B]: 1 for rows that were declared a success, else the highest confirmed success probability they reached.

    Confirmed: see `confirm`. A row that was cut off counts ``last_value`` f32 [B] instead, where given. A declared
    success counts 1 however sure the head was: else groups in which everybody succeeds would be taught to please the
    head. Off come ``uncertainty_penalty`` for each dB that the row's least certain frame is expected to lie below
    ``floor_db`` (the penalty of MOPO, arXiv:2005.13239).
    """
    probability = torch.cat([s.success_prob for s in rollout.steps], dim=1)
    stride = rollout.valid.shape[1] // probability.shape[1]
    best = find_highest_confirmed(probability, rollout.valid[:, ::stride], confirm_frames).clamp_min(0)
    if last_value is not None:
        best = torch.where(rollout.steps[-1].done, best, last_value)
    returns = torch.where(rollout.success, 1.0, best)
    lowest = rollout.lowest_expected_psnr_db
    if uncertainty_penalty == 0 or lowest is None:
        return returns
    return returns - uncertainty_penalty * (floor_db - lowest).clamp_min(0)


def flatten(rollout: Rollout, groups: GroupAdvantages) -> Decisions | None:
    """Decisions of kept groups, without the chunks after a row ended; None when nothing is left to learn from."""
    parts: list[tuple[Any, ...]] = []
    for observation, chunk, step in zip(rollout.observations, rollout.chunks, rollout.steps, strict=True):
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
                    groups.advantages[rows],
                )
            )
    if not parts:
        return None
    observations, chunks, *columns = zip(*parts, strict=True)
    return Decisions(
        Observation.cat(list(observations)), ActionChunk.cat(list(chunks)), *(torch.cat(column) for column in columns)
    )
