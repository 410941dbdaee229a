"""The one training loop.

An algorithm writes an `Objective`: where batches come from, and their loss. `Trainer` does the rest: microbatches,
drawing ahead, data parallelism, sharding, the moving average of the weights, gradient norms, progress, TensorBoard, and
continuing an interrupted stage.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Set
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from worldloop.core.interfaces import Metrics
from worldloop.core.interrupts import end_grace, finish_step
from worldloop.core.reporting import Reporter, SilentWriter, Writer
from worldloop.training.data_parallel import add_metrics
from worldloop.training.ema import EmaWeights
from worldloop.training.optimizer import OneCycleOptimizer, Optimizer
from worldloop.training.prefetch import Prefetcher
from worldloop.training.resume import GeneratorState, Stateful, TrainableState, TrainingCheckpoint, TrainingSetup
from worldloop.training.sharding import gather, shard


class Objective[BatchT](ABC):
    """What a `Trainer` minimises; one instance on every rank.

    ``generators`` are those of this rank's microbatches, by number: all randomness of the training comes from them.
    """

    progress_metric = "loss"  # the metric that is shown beside the progress bar
    log_every = 20  # steps between two points in TensorBoard
    draws_ahead = False  # whether `draw_batch` gives all batches; then they are drawn in the background

    def __init__(self, generators: Mapping[int, torch.Generator]) -> None:
        self.generators = generators
        self.step_metrics: Metrics = {}  # measured by `batches`: this rank's part of sums over ranks

    @abstractmethod
    def batches(self, step: int) -> Iterable[Mapping[int, BatchT]]:
        """Yield the updates of ``step``, each as microbatch number -> batch, for this rank's microbatches.

        All ranks must yield equally many updates. A microbatch that has no rows may be missing from an update.
        """

    def draw_batch(self, step: int, number: int) -> BatchT:
        """The batch of microbatch ``number``, if `draws_ahead`; called once the loss of the step before is known."""
        raise NotImplementedError

    @abstractmethod
    def count(self, batch: BatchT) -> Tensor:
        """The number of elements over which the loss of ``batch`` is a mean, a scalar; the microbatch's weight."""

    @abstractmethod
    def compute_loss(self, batch: BatchT, number: int) -> tuple[Tensor, Metrics]:
        """The scalar loss of microbatch ``number``, and metrics, which are averaged with the same weights."""

    def prepare_update(self, batches: Mapping[int, BatchT]) -> None:
        """Called on every rank before the losses of an update; may all_reduce."""
        return

    def end_step(self, step: int, metrics: Metrics) -> Metrics:
        """Called after every step; returns what is shown and logged.

        In steps that are logged (every ``log_every``) ``metrics`` are summed over all ranks, else they are this rank's
        part.
        """
        return metrics

    def state(self) -> dict[str, Stateful]:
        """What a checkpoint stores besides weights and optimizer; equal on every rank."""
        return {}

    def microbatch_state(self) -> dict[int, dict[str, Stateful]]:
        """What a checkpoint stores for each microbatch of this rank."""
        return {number: {"generator": GeneratorState(g)} for number, g in self.generators.items()}


class Trainer[ModuleT: nn.Module]:
    """Optimizer steps on ``module``: ``fit(objective, num_steps)``.

    - ``make_optimizer(parameters, name=, data_parallel=)`` gives the `Optimizer`
    - ``name``: folder of the checkpoint and of the TensorBoard writer; ``tag`` begins its tags (default: ``name``)
    - ``unit``: what a step is called beside the progress bar; ``first_step``: number of the first step in TensorBoard
    - ``ema_decay``: decay of the averaged weights, which `fit` returns; ``None``: `fit` returns ``module`` itself
    - ``sharded``: names of the parameters that are sharded over the ranks (FSDP2); needs ``ema_decay``
    - ``checkpoints_end``: write a checkpoint after the last step too, for a training that another one follows
    """

    def __init__(
        self,
        module: ModuleT,
        make_optimizer: Callable[..., Optimizer],
        setup: TrainingSetup,
        reporter: Reporter,
        *,
        name: str,
        tag: str = "",
        unit: str = "step",
        first_step: int = 0,
        ema_decay: float | None = None,
        sharded: Set[str] = frozenset(),
        checkpoints_end: bool = False,
    ) -> None:
        self.module, self.setup, self.reporter = module, setup, reporter
        self.name, self.tag, self.unit, self.first_step = name, tag or name, unit, first_step
        self.ema = None if ema_decay is None else EmaWeights(module, ema_decay)
        self._whole: ModuleT | None = None
        if sharded:
            assert self.ema is not None
            self._whole = self.ema.copy()
            for part in (module, self.ema.module):
                shard(part, sharded, setup.device)
        self.optimizer = make_optimizer(module.parameters(), name=name, data_parallel=setup.data_parallel)
        self._checkpoints_end = checkpoints_end

    def fit[BatchT](self, objective: Objective[BatchT], num_steps: int) -> ModuleT:
        """Run the rest of ``num_steps`` steps; returns a module with the averaged weights, or ``module`` without any.

        The checkpoint stays until the caller drops it, after saving the result.
        """
        state = self._state() | objective.state()
        prefetcher = Prefetcher(objective.draw_batch, objective.microbatch_state(), num_steps)
        checkpoint = TrainingCheckpoint(self.setup, self.name, state, prefetcher.states)
        done = checkpoint.restore()
        if done:
            self.reporter.log(f"{self.name} goes on from step {done}")
        with (
            prefetcher,
            self.reporter.progress(num_steps - done, self.unit) as progress,
            self.reporter.writer(self.name, self.first_step + done) as writer,
        ):
            for step in range(done, num_steps):
                with finish_step():
                    metrics = self._step(objective, step, prefetcher)
                    is_logged = step % objective.log_every == 0
                    if is_logged:
                        metrics = self.setup.data_parallel.sum_metrics(metrics)
                    metrics = objective.end_step(step, metrics)
                    if is_logged:
                        writer.scalars(self.first_step + step, {f"{self.tag}/{k}": v for k, v in metrics.items()})
                    end_grace()  # the step has ended; a checkpoint of many GB takes its time
                    checkpoint.save(step + 1, always=self._checkpoints_end and step + 1 == num_steps)
                shown = objective.progress_metric
                progress.advance(1, **({shown: metrics[shown]} if shown in metrics else {}))
        return self._gather_result()

    @property
    def averaged(self) -> ModuleT:
        """The module with the current averaged weights, not a copy; ``module`` itself if nothing is averaged."""
        return self.module if self.ema is None else self.ema.module

    def _step[BatchT](self, objective: Objective[BatchT], step: int, prefetcher: Prefetcher[BatchT]) -> Metrics:
        """Run all updates of one step; returns this rank's part of the mean of their metrics, and of the step's own."""
        objective.step_metrics = {}
        if objective.draws_ahead:
            batches = {number: prefetcher.take(step, number) for number in objective.generators}
            updates = [self._update(objective, batches, lambda number: prefetcher.begin(step + 1, number))]
        else:
            updates = [self._update(objective, batches) for batches in objective.batches(step)]
        metrics = objective.step_metrics
        for own in updates:
            add_metrics(metrics, own, 1 / len(updates))
        return metrics

    def _update[BatchT](
        self,
        objective: Objective[BatchT],
        batches: Mapping[int, BatchT],
        on_loss: Callable[[int], None] = lambda number: None,
    ) -> Metrics:
        """One optimizer step on one batch per microbatch; ``on_loss`` is called when one's loss has been computed."""
        objective.prepare_update(batches)
        data_parallel = self.setup.data_parallel
        metrics: Metrics = {}
        weights = data_parallel.weigh([objective.count(batch) for batch in batches.values()])
        for (number, batch), weight in zip(batches.items(), weights, strict=True):
            loss, own = objective.compute_loss(batch, number)
            on_loss(number)
            self.optimizer.backward(loss * weight.to(loss.device))
            add_metrics(metrics, own, float(weight))
        # divided because all ranks have the same norm, and metrics are summed over the ranks
        metrics["grad_norm"] = self.optimizer.step() / data_parallel.world_size
        if self.ema is not None:
            self.ema.update(self.module)
        return metrics

    def _state(self) -> dict[str, Stateful]:
        state: dict[str, Stateful] = {"module": TrainableState(self.module), "optimizer": self.optimizer}
        return state if self.ema is None else state | {"ema": self.ema}

    def _gather_result(self) -> ModuleT:
        if self._whole is not None and self.ema is not None:
            self._whole.load_state_dict(gather(self.ema.module.state_dict()))
            return self._whole.to(self.setup.device)
        return self.averaged


class BatchObjective[BatchT](Objective[BatchT]):
    """An `Objective` with one update per step. A microbatch's batch follows from its generator and its last loss."""

    draws_ahead = True

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        if "batches" in vars(cls):  # batches of its own are not those of `draw_batch`
            cls.draws_ahead = False

    def batches(self, step: int) -> Iterable[Mapping[int, BatchT]]:
        yield {number: self.draw_batch(step, number) for number in self.generators}

    def draw_batch(self, step: int, number: int) -> BatchT:
        return self.draw(self.generators[number])

    @abstractmethod
    def draw(self, generator: torch.Generator) -> BatchT:
        """The next batch of the microbatch that draws from ``generator``; called in a thread of its own."""


def fit_small[ModuleT: nn.Module, BatchT](
    module: ModuleT,
    objective: Objective[BatchT],
    reporter: Reporter,
    *,
    num_steps: int,
    learning_rate: float,
    weight_decay: float,
    unit: str,
) -> ModuleT:
    """Fit a module on this rank only, without checkpoints; returns it in eval mode. For what takes minutes at most."""
    make_optimizer = partial(
        OneCycleOptimizer, learning_rate=learning_rate, num_steps=num_steps, weight_decay=weight_decay
    )
    trainer = Trainer(module, make_optimizer, TrainingSetup(), _ProgressOnly(reporter), name=unit, unit=unit)
    return trainer.fit(objective, num_steps).eval()


class _ProgressOnly:
    """A `Reporter` that shows progress, and neither logs nor writes curves."""

    def __init__(self, reporter: Reporter) -> None:
        self.progress = reporter.progress

    def writer(self, name: str, purge_step: int) -> AbstractContextManager[Writer]:
        return nullcontext(SilentWriter())

    def log(self, line: str) -> None:
        pass
