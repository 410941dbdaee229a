"""Behaviour cloning of any policy on any selection of episodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from worldloop.core.errors import require_choice, require_positive
from worldloop.core.interfaces import ImitationSource, Metrics, Policy, Reporter
from worldloop.core.types import ImitationBatch
from worldloop.training.optimizer import PRECISIONS, Optimizer, autocast
from worldloop.training.resume import TrainingSetup
from worldloop.training.trainer import BatchObjective, Trainer


@dataclass(frozen=True)
class ImitationConfig:
    num_steps: int = 300  # optimizer steps
    batch_size: int = 32  # action chunks per step
    learning_rate: float = 1e-3  # peak, AdamW
    weight_decay: float = 0.01  # AdamW, only of matrices
    precision: str = "bf16"  # fp32 or bf16 (autocast; weights stay fp32)

    def __post_init__(self) -> None:
        if self.num_steps < 1 or self.batch_size < 1:
            raise ValueError("clone_policy.num_steps and clone_policy.batch_size must be at least 1")
        require_choice("clone_policy.precision", self.precision, PRECISIONS)
        require_positive("clone_policy.learning_rate", self.learning_rate)


class ImitationObjective(BatchObjective[ImitationBatch]):
    """The imitation loss that the policy defines; ``batch_size`` is the size of a microbatch."""

    def __init__(
        self,
        policy: Policy,
        dataset: ImitationSource,
        generators: Mapping[int, torch.Generator],
        device: torch.device,
        *,
        batch_size: int,
        precision: str,
    ) -> None:
        super().__init__(generators)
        self.policy, self.dataset, self.device = policy, dataset, device
        self.batch_size, self.precision = batch_size, precision

    def draw(self, generator: torch.Generator) -> ImitationBatch:
        return self.dataset.sample(generator, self.batch_size, self.policy.chunk_length)

    def count(self, batch: ImitationBatch) -> Tensor:
        return batch.valid.sum()

    def compute_loss(self, batch: ImitationBatch, number: int) -> tuple[Tensor, Metrics]:
        with autocast(self.device, self.precision):
            loss, metrics = self.policy.compute_imitation_loss(batch.to(self.device), self.generators[number])
        return loss, {**metrics, "loss": float(loss.detach())}


def fit_by_imitation(
    policy: Policy,
    dataset: ImitationSource,
    config: ImitationConfig,
    generators: Mapping[int, torch.Generator],
    setup: TrainingSetup,
    reporter: Reporter,
    *,
    name: str,
    first_step: int,
) -> Policy:
    """Train ``policy``, which has random weights, on ``dataset``.

    The training checkpoint ``name`` stays until the caller drops it.
    """
    policy.prepare(dataset)  # on the CPU: it reads all frames at once
    policy = policy.to(setup.device).train()
    make_optimizer = partial(
        Optimizer, learning_rate=config.learning_rate, num_steps=config.num_steps, weight_decay=config.weight_decay
    )
    trainer = Trainer(policy, make_optimizer, setup, reporter, name=name, first_step=first_step)
    size = config.batch_size // setup.num_microbatches
    objective = ImitationObjective(
        policy, dataset, generators, setup.device, batch_size=size, precision=config.precision
    )
    return trainer.fit(objective, config.num_steps)
