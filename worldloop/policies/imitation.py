"""Behaviour cloning of any policy on any selection of episodes, with or without advantage labels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from worldloop.core.errors import WorldloopError, require_choice, require_positive, require_range
from worldloop.core.interfaces import AdvantageConditionedPolicy, ImitationSource, Metrics, Policy
from worldloop.core.reporting import Reporter
from worldloop.core.types import ImitationBatch, Observation
from worldloop.training.optimizer import PRECISIONS, Optimizer, autocast
from worldloop.training.resume import TrainingSetup
from worldloop.training.trainer import BatchObjective, Trainer

UNKNOWN = -1  # the indicator of a chunk that is called neither good nor bad
LabelledBatch = tuple[ImitationBatch, Tensor]  # and is_good int64 [B]: 1 good, 0 not good, -1 unknown


class LabelledImitationSource(Protocol):
    """An `ImitationSource` that also tells which chunks are good."""

    def images(self) -> dict[str, Tensor]:
        """See `ImitationSource.images`."""
        ...

    def observations(self, block_size: int) -> Iterator[Observation]:
        """See `ImitationSource.observations`."""
        ...

    def proprio(self) -> Tensor:
        """See `ImitationSource.proprio`."""
        ...

    def actions(self) -> Tensor:
        """See `ImitationSource.actions`."""
        ...

    def sample(self, generator: torch.Generator, batch_size: int, chunk_length: int) -> LabelledBatch:
        """B chunks of H = ``chunk_length`` actions, drawn with replacement, and their indicators."""
        ...


@dataclass(frozen=True)
class _Mixture[SourceT: (ImitationSource, LabelledImitationSource)]:
    """``source``, with a share of every batch replaced by rows of ``chunks``.

    A row is drawn with a probability in proportion to its entry in ``weights`` [n]. The number of such rows is
    ``share`` times the batch size, rounded, and at least one unless ``share`` is 0. The observations of both have the
    same cameras and context frames, no privileged state, and both or neither say what is an interaction.
    """

    source: SourceT
    chunks: ImitationBatch
    weights: Tensor
    share: float

    def images(self) -> dict[str, Tensor]:
        return self.source.images()

    def observations(self, block_size: int) -> Iterator[Observation]:
        """Those of the source, then the imagined ones."""
        yield from self.source.observations(block_size)
        for first in range(0, len(self.weights), block_size):
            yield self.chunks.observation.rows(list(range(first, min(first + block_size, len(self.weights)))))

    def proprio(self) -> Tensor:
        """That of the source: statistics are those of real episodes."""
        return self.source.proprio()

    def actions(self) -> Tensor:
        """See `proprio`."""
        return self.source.actions()

    def _draw_imagined(self, generator: torch.Generator, batch_size: int, chunk_length: int) -> Tensor:
        """Rows of ``chunks``, int64 [m], for a batch."""
        num_imagined = max(1, round(self.share * batch_size)) if self.share and len(self.weights) else 0
        if num_imagined and chunk_length != (imagined_length := self.chunks.valid.shape[1]):
            raise WorldloopError(
                f"the policy imitates chunks of {chunk_length} actions, and imagined ones have {imagined_length}: "
                "make its own chunks as long as chunk_length, or set improve_policy.method=recap"
            )
        if num_imagined == 0:
            return torch.zeros(0, dtype=torch.long)
        return torch.multinomial(self.weights, num_imagined, replacement=True, generator=generator)

    def _join(self, real: ImitationBatch, chosen: Tensor) -> ImitationBatch:
        if len(chosen) == 0:
            return real
        real = replace(real, observation=replace(real.observation, sim_state=None))
        return ImitationBatch.cat([real, self.chunks.rows(chosen)])


class WithImagined(_Mixture[ImitationSource]):
    """An `ImitationSource`, mixed with imagined chunks."""

    def sample(self, generator: torch.Generator, batch_size: int, chunk_length: int) -> ImitationBatch:
        chosen = self._draw_imagined(generator, batch_size, chunk_length)
        if len(chosen) == batch_size:
            return self.chunks.rows(chosen)
        return self._join(self.source.sample(generator, batch_size - len(chosen), chunk_length), chosen)


@dataclass(frozen=True)
class LabelledWithImagined(_Mixture[LabelledImitationSource]):
    """A `LabelledImitationSource`, mixed with imagined chunks, whose indicators are ``is_good`` int64 [n]."""

    is_good: Tensor

    def sample(self, generator: torch.Generator, batch_size: int, chunk_length: int) -> LabelledBatch:
        chosen = self._draw_imagined(generator, batch_size, chunk_length)
        if len(chosen) == batch_size:
            return self.chunks.rows(chosen), self.is_good[chosen]
        real, is_good = self.source.sample(generator, batch_size - len(chosen), chunk_length)
        return self._join(real, chosen), torch.cat([is_good, self.is_good[chosen]])


@dataclass(frozen=True)
class ImitationConfig:
    num_steps: int = 300  # optimizer steps; 0: keep a pretrained policy as it is (policy.lerobot.path)
    batch_size: int = 32  # action chunks per step
    learning_rate: float = 1e-3  # peak, AdamW
    weight_decay: float = 0.01  # AdamW, only of matrices
    precision: str = "bf16"  # fp32 or bf16 (autocast; weights stay fp32)

    def __post_init__(self) -> None:
        if self.num_steps < 0 or self.batch_size < 1:
            raise ValueError("clone_policy.num_steps must be at least 0, and clone_policy.batch_size at least 1")
        require_choice("clone_policy.precision", self.precision, PRECISIONS)
        require_positive("clone_policy.learning_rate", self.learning_rate)


class _CloningObjective[PolicyT: Policy, SourceT, BatchT](BatchObjective[BatchT]):
    """A loss that the policy defines, on batches of ``dataset``; ``batch_size`` is the size of a microbatch."""

    def __init__(
        self,
        policy: PolicyT,
        dataset: SourceT,
        generators: Mapping[int, torch.Generator],
        device: torch.device,
        *,
        batch_size: int,
        precision: str,
    ) -> None:
        super().__init__(generators)
        self.policy, self.dataset, self.device = policy, dataset, device
        self.batch_size, self.precision = batch_size, precision

    def compute_loss(self, batch: BatchT, number: int) -> tuple[Tensor, Metrics]:
        with autocast(self.device, self.precision):
            loss, metrics = self.compute_policy_loss(batch, self.generators[number])
        return loss, {**metrics, "loss": float(loss.detach())}

    @abstractmethod
    def compute_policy_loss(self, batch: BatchT, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """The policy's own loss, a mean over valid actions, and its metrics."""


class ImitationObjective(_CloningObjective[Policy, ImitationSource, ImitationBatch]):
    """The imitation loss that the policy defines; ``batch_size`` is the size of a microbatch."""

    def draw(self, generator: torch.Generator) -> ImitationBatch:
        return self.dataset.sample(generator, self.batch_size, self.policy.imitation_length)

    def count(self, batch: ImitationBatch) -> Tensor:
        return batch.valid.sum()

    def compute_policy_loss(self, batch: ImitationBatch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        return self.policy.compute_imitation_loss(batch.to(self.device), generator)


class ConditionedImitationObjective(
    _CloningObjective[AdvantageConditionedPolicy, LabelledImitationSource, LabelledBatch]
):
    """The conditioned loss that the policy defines; a row's indicator is dropped with ``indicator_dropout``, 0 to 1.

    A dropped indicator is unknown, so that the policy also learns to act without one.
    """

    def __init__(
        self,
        policy: AdvantageConditionedPolicy,
        dataset: LabelledImitationSource,
        generators: Mapping[int, torch.Generator],
        device: torch.device,
        *,
        batch_size: int,
        precision: str,
        indicator_dropout: float,
    ) -> None:
        require_range("indicator_dropout", indicator_dropout, 0.0, 1.0)
        super().__init__(policy, dataset, generators, device, batch_size=batch_size, precision=precision)
        self.indicator_dropout = indicator_dropout

    def draw(self, generator: torch.Generator) -> LabelledBatch:
        batch, is_good = self.dataset.sample(generator, self.batch_size, self.policy.imitation_length)
        is_dropped = torch.rand(len(is_good), generator=generator) < self.indicator_dropout
        return batch, is_good.masked_fill(is_dropped, UNKNOWN)

    def count(self, batch: LabelledBatch) -> Tensor:
        return batch[0].valid.sum()

    def compute_policy_loss(self, batch: LabelledBatch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        chunks, is_good = batch
        return self.policy.compute_conditioned_loss(chunks.to(self.device), is_good.to(self.device), generator)


@dataclass(frozen=True)
class _WithoutLabels:
    """A labelled source as the `ImitationSource` that `Policy.prepare` takes."""

    source: LabelledImitationSource

    def images(self) -> dict[str, Tensor]:
        return self.source.images()

    def observations(self, block_size: int) -> Iterator[Observation]:
        return self.source.observations(block_size)

    def proprio(self) -> Tensor:
        return self.source.proprio()

    def actions(self) -> Tensor:
        return self.source.actions()

    def sample(self, generator: torch.Generator, batch_size: int, chunk_length: int) -> ImitationBatch:
        return self.source.sample(generator, batch_size, chunk_length)[0]


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
    is_new: bool = True,
) -> Policy:
    """Train ``policy`` on ``dataset``.

    A policy with random weights, ``is_new``, is prepared for ``dataset`` first. One that goes on keeps its statistics,
    e.g. of images. The training checkpoint ``name`` stays until the caller drops it.
    """
    make_objective = partial(ImitationObjective, policy, dataset, generators, setup.device)
    return _fit(policy, dataset if is_new else None, make_objective, config, setup, reporter, name, first_step)


def fit_by_conditioned_imitation(
    policy: AdvantageConditionedPolicy,
    dataset: LabelledImitationSource,
    config: ImitationConfig,
    generators: Mapping[int, torch.Generator],
    setup: TrainingSetup,
    reporter: Reporter,
    *,
    name: str,
    first_step: int,
    indicator_dropout: float = 0.3,
) -> AdvantageConditionedPolicy:
    """Train ``policy``, which has random weights, on good and bad chunks of ``dataset``, told which is which (RECAP).

    With probability ``indicator_dropout`` (0 to 1) a row's indicator is unknown, whatever its label; the default is
    the paper's (arXiv:2511.14759). The training checkpoint ``name`` stays until the caller drops it.
    """
    make_objective = partial(
        ConditionedImitationObjective, policy, dataset, generators, setup.device, indicator_dropout=indicator_dropout
    )
    return _fit(policy, _WithoutLabels(dataset), make_objective, config, setup, reporter, name, first_step)


def _fit[PolicyT: Policy, BatchT](
    policy: PolicyT,
    dataset: ImitationSource | None,
    make_objective: Callable[..., BatchObjective[BatchT]],
    config: ImitationConfig,
    setup: TrainingSetup,
    reporter: Reporter,
    name: str,
    first_step: int,
) -> PolicyT:
    """Train ``policy`` on ``make_objective(batch_size=, precision=)``, after preparing it for ``dataset``, if given.

    Without a step to train, ``policy`` is returned as it is.
    """
    if config.num_steps == 0:
        return policy
    size = config.batch_size // setup.num_microbatches
    objective = make_objective(batch_size=size, precision=config.precision)
    if dataset is not None:
        policy.prepare(dataset)  # on the CPU: it reads many frames at once
    policy = policy.to(setup.device).train()
    make_optimizer = partial(
        Optimizer, learning_rate=config.learning_rate, num_steps=config.num_steps, weight_decay=config.weight_decay
    )
    trainer = Trainer(policy, make_optimizer, setup, reporter, name=name, first_step=first_step)
    return trainer.fit(objective, config.num_steps)
