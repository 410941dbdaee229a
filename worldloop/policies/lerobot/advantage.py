"""RECAP for policies that read an instruction: the instruction says whether the next actions are good.

As in the paper (arXiv:2511.14759, section V-B) the text "Advantage: positive" or "Advantage: negative" follows the
instruction; where the label is unknown nothing follows.

Departure: guidance combines the actions of the two instructions, sampled from the same noise: a_u + b (a_c - a_u). A
flow policy has no log-probabilities that could be combined.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from worldloop.core.errors import WorldloopError
from worldloop.core.interfaces import AdvantageConditionedPolicy, Metrics
from worldloop.core.specs import SimulatorSpec
from worldloop.core.types import ActionChunk, ImitationBatch, Normalisation, Observation
from worldloop.policies.lerobot.config import LeRobotConfig
from worldloop.policies.lerobot.policy import LeRobotPolicy

SUFFIXES = ("", " Advantage: negative", " Advantage: positive")  # of unknown (-1), not good (0), good (1)


class LeRobotAdvantagePolicy(LeRobotPolicy, AdvantageConditionedPolicy):
    """A policy that is told in words which actions are good. Raises `WorldloopError` if it reads no instruction."""

    def __init__(
        self, config: LeRobotConfig, spec: SimulatorSpec, normalisation: Normalisation, chunk_length: int
    ) -> None:
        super().__init__(config, spec, normalisation, chunk_length)
        self.register_buffer("guidance_weight", torch.tensor(0.0))
        steps: Any = self._parts.preprocessor.steps
        if not any(hasattr(step, "input_tokenizer") for step in steps):
            raise WorldloopError(
                f"policy.lerobot.tells_advantage needs a policy that reads an instruction, and LeRobot's "
                f"{self._parts.config.type} reads none: set policy.lerobot.tells_advantage=false"
            )

    @torch.no_grad()
    def act(self, observation: Observation, noise_key: Tensor | None) -> ActionChunk:
        """See `Actor.act`."""
        b, good = self.guidance, torch.ones(len(observation), dtype=torch.long)
        if b == 0:
            return super().act(observation, noise_key)
        conditioned = super().act(_tell(observation, good), noise_key)
        if b == 1:
            return conditioned
        plain = super().act(observation, noise_key).actions
        return replace(conditioned, actions=self._clip(plain + b * (conditioned.actions - plain)))

    def compute_conditioned_loss(
        self, batch: ImitationBatch, is_good: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        """LeRobot's own loss, with ``is_good`` int64 [B] in the instruction."""
        told = replace(batch, observation=_tell(batch.observation, is_good))
        return self.compute_imitation_loss(told, generator)


def _tell(observation: Observation, is_good: Tensor) -> Observation:
    pairs = zip(observation.instruction, is_good.tolist(), strict=True)
    return replace(observation, instruction=tuple(text + SUFFIXES[label + 1] for text, label in pairs))
