"""Replay the actions of imagined rollouts in the simulator, from the same initial states.

A replay shows what these actions really do. A recorded episode cannot show it: its actions were chosen on true frames,
so they carry the outcome with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worldloop.core.types import ActionChunk, Observation, Rollout


@dataclass(frozen=True)
class Replay:
    """Actions to repeat: ``actions`` f32 [N, T, A], chosen by the policy of ``policy_version``."""

    actions: Tensor
    policy_version: str

    @classmethod
    def of(cls, rollout: Rollout) -> Replay:
        """All actions of ``rollout``, also those after a row's end; see `count_chunks`."""
        return cls(torch.cat([chunk.actions for chunk in rollout.chunks], dim=1).cpu(), rollout.policy_version)

    def rows(self, index: Sequence[int]) -> Replay:
        return Replay(self.actions[list(index)], self.policy_version)


class RecordedActions:
    """An `Actor` that acts as ``replay`` says, ``chunk_length`` actions at a time, whatever it observes."""

    def __init__(self, replay: Replay, chunk_length: int) -> None:
        self.version = replay.policy_version
        self._chunks = iter(replay.actions.split(chunk_length, dim=1))

    def act(self, observation: Observation, noise_key: Tensor | None) -> ActionChunk:
        return ActionChunk(next(self._chunks), policy_version=self.version)
