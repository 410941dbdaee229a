"""The one training loop, on a linear model whose gradients can be computed in one go."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from reporters import RecordingReporter
from torch import Tensor, nn

from worldloop.core.interfaces import Metrics
from worldloop.core.interrupts import answer_signals
from worldloop.training.data_parallel import DataParallel
from worldloop.training.ema import EmaWeights
from worldloop.training.optimizer import Optimizer
from worldloop.training.resume import Stateful, TrainingSetup
from worldloop.training.trainer import BatchObjective, Objective, Trainer, fit_small

Rows = tuple[Tensor, Tensor]  # inputs f32 [n, 3], targets f32 [n]


def make_layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def squared_error(layer: nn.Module, rows: Rows) -> Tensor:
    return (layer(rows[0])[:, 0] - rows[1]).square().mean()


def draw_rows(generator: torch.Generator, num_rows: int) -> Rows:
    inputs = torch.randn(num_rows, 3, generator=generator)
    return inputs, inputs @ torch.tensor([1.0, -2.0, 0.5]) + 0.3


class Regression(BatchObjective[Rows]):
    """Mean squared error; ``sizes`` are the rows of every microbatch."""

    log_every = 2

    def __init__(self, layer: nn.Module, sizes: Mapping[int, int]) -> None:
        super().__init__({number: torch.Generator().manual_seed(number) for number in sizes})
        self.layer, self.sizes = layer, dict(sizes)
        self.by_generator = {id(g): sizes[number] for number, g in self.generators.items()}
        self.drawn: list[Rows] = []
        self.ended: list[tuple[int, Metrics]] = []
        self.memory = Memory()

    def draw(self, generator: torch.Generator) -> Rows:
        self.drawn.append(draw_rows(generator, self.by_generator[id(generator)]))
        return self.drawn[-1]

    def count(self, batch: Rows) -> Tensor:
        return torch.tensor(len(batch[1]))

    def compute_loss(self, batch: Rows, number: int) -> tuple[Tensor, Metrics]:
        loss = squared_error(self.layer, batch)
        return loss, {"loss": float(loss.detach()), "first_target": float(batch[1][0])}

    def end_step(self, step: int, metrics: Metrics) -> Metrics:
        self.ended.append((step, dict(metrics)))
        self.memory.total += metrics["loss"]
        return metrics | {"step": float(step)}

    def state(self) -> dict[str, Stateful]:
        return {"memory": self.memory}


class Memory:
    """What an objective keeps: a sum over all steps."""

    def __init__(self) -> None:
        self.total = 0.0

    def state_dict(self) -> dict[str, Tensor]:
        return {"total": torch.tensor(self.total, dtype=torch.float64)}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        self.total = float(tensors["total"])


class RecordingOptimizer(Optimizer):
    """Takes down the gradients of every step."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.gradients: list[list[Tensor]] = []

    def step(self) -> float:
        self.gradients.append([p.grad.clone() for p in self.parameters if p.grad is not None])
        return super().step()


make_optimizer = partial(RecordingOptimizer, learning_rate=0.05, num_steps=None, warmup_steps=0)


def make_trainer(
    layer: nn.Linear, setup: TrainingSetup | None = None, reporter: RecordingReporter | None = None, **settings: Any
) -> Trainer[nn.Linear]:
    settings = {"name": "fit_line"} | settings
    return Trainer(layer, make_optimizer, setup or TrainingSetup(), reporter or RecordingReporter(), **settings)


def compute_whole(rows: list[Rows]) -> tuple[float, list[Tensor]]:
    """The loss and the gradients of all ``rows`` as one batch, at the first weights."""
    layer = make_layer()
    loss = squared_error(layer, (torch.cat([x for x, _ in rows]), torch.cat([y for _, y in rows])))
    return float(loss.detach()), list(torch.autograd.grad(loss, list(layer.parameters())))


# --- a step -------------------------------------------------------------------------------------------------------


def test_unequal_microbatches_have_the_gradient_of_the_whole_batch() -> None:
    layer = make_layer()
    objective, trainer = Regression(layer, {0: 1, 1: 5, 2: 2}), make_trainer(layer)
    trainer.fit(objective, 1)
    assert [len(targets) for _, targets in objective.drawn] == [1, 5, 2]
    _, expected = compute_whole(objective.drawn)
    assert isinstance(trainer.optimizer, RecordingOptimizer)
    for got, want in zip(trainer.optimizer.gradients[0], expected, strict=True):
        torch.testing.assert_close(got, want)


def test_metrics_are_means_that_weigh_microbatches_by_their_counts() -> None:
    layer, reporter = make_layer(), RecordingReporter()
    objective = Regression(layer, {0: 1, 1: 5, 2: 2})
    make_trainer(layer, reporter=reporter).fit(objective, 1)
    loss, gradients = compute_whole(objective.drawn)
    norm = float(torch.cat([g.flatten() for g in gradients]).norm())
    targets = [float(rows[1][0]) for rows in objective.drawn]
    expected = {
        "fit_line/loss": loss,
        "fit_line/first_target": (1 * targets[0] + 5 * targets[1] + 2 * targets[2]) / 8,
        "fit_line/grad_norm": norm,
        "fit_line/step": 0.0,
    }
    assert reporter.curves["fit_line"][0] == pytest.approx(expected, rel=1e-5)


class Rounds(Regression):
    """A step has as many updates as ``batches_of_step`` gives, each with the microbatches named there."""

    batches_of_step: tuple[tuple[int, ...], ...] = ()

    def batches(self, step: int) -> Iterable[Mapping[int, Rows]]:
        self.step_metrics["rounds"] = 1.0
        for numbers in self.batches_of_step:
            yield {number: self.draw(self.generators[number]) for number in numbers}

    def end_step(self, step: int, metrics: Metrics) -> Metrics:
        self.ended.append((step, dict(metrics)))
        return metrics


def test_a_step_of_several_updates_means_their_metrics_and_keeps_its_own() -> None:
    layer = make_layer()
    objective, trainer = Rounds(layer, {0: 2, 1: 4}), make_trainer(layer)
    objective.batches_of_step = ((0, 1), (1,))  # the second update has nothing left of microbatch 0
    trainer.fit(objective, 1)
    assert isinstance(trainer.optimizer, RecordingOptimizer)
    assert len(trainer.optimizer.gradients) == 2
    ((_, metrics),) = objective.ended
    assert metrics["rounds"] == 1.0
    first, second, third = (float(rows[1][0]) for rows in objective.drawn)
    assert metrics["first_target"] == pytest.approx(((2 * first + 4 * second) / 6 + third) / 2)


def test_a_step_without_an_update_leaves_the_weights_alone() -> None:
    layer, reporter = make_layer(), RecordingReporter()
    before = layer.weight.detach().clone()
    make_trainer(layer, reporter=reporter).fit(Rounds(layer, {0: 2}), 1)
    assert torch.equal(layer.weight, before)
    assert reporter.curves["fit_line"] == {0: {"fit_line/rounds": 1.0}}
    assert reporter.bars[0].figures == [{}], "there is no loss to show"


def test_an_update_is_prepared_before_its_losses() -> None:
    order: list[str] = []

    class Prepared(Regression):
        def prepare_update(self, batches: Mapping[int, Rows]) -> None:
            order.append(f"prepare {sorted(batches)}")

        def compute_loss(self, batch: Rows, number: int) -> tuple[Tensor, Metrics]:
            order.append(f"loss {number}")
            return super().compute_loss(batch, number)

    layer = make_layer()
    make_trainer(layer).fit(Prepared(layer, {2: 1, 3: 1}), 2)
    assert order == ["prepare [2, 3]", "loss 2", "loss 3"] * 2


# --- what is shown ------------------------------------------------------------------------------------------------


def test_every_step_is_shown_and_every_second_one_drawn() -> None:
    layer, reporter = make_layer(), RecordingReporter()
    objective = Regression(layer, {0: 4})
    trainer = make_trainer(layer, reporter=reporter, tag="line", unit="update", first_step=100)
    trainer.fit(objective, 5)
    (bar,) = reporter.bars
    assert (bar.total, bar.unit, bar.count) == (5, "update", 5)
    assert [figures["loss"] for figures in bar.figures] == [metrics["loss"] for _, metrics in objective.ended]
    curve = reporter.curves["fit_line"]
    assert {step: values["line/step"] for step, values in curve.items()} == {100: 0.0, 102: 2.0, 104: 4.0}
    assert set(curve[100]) == {"line/loss", "line/first_target", "line/grad_norm", "line/step"}


@dataclass(frozen=True)
class BesideAnother(DataParallel):
    """The main one of two ranks, of which the other measures a loss of 10 and has no gradient."""

    world_size: int = 2

    def microbatches(self, num_microbatches: int) -> range:
        return range(num_microbatches)

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        return values

    def all_gather[T](self, value: T) -> list[T]:
        assert isinstance(value, dict)
        return [value, {"loss": 10.0, "grad_norm": value["grad_norm"]}]  # type: ignore[list-item]

    def all_reduce_gradients(self, parameters: Any) -> None:
        pass


def test_metrics_are_summed_over_ranks_in_the_steps_that_are_drawn() -> None:
    layer, reporter = make_layer(), RecordingReporter()
    objective = Regression(layer, {0: 4})
    trainer = make_trainer(layer, TrainingSetup(data_parallel=BesideAnother()), reporter)
    trainer.fit(objective, 2)
    losses = [float(squared_error(make_layer(), objective.drawn[0]).detach())]
    (_, drawn), (_, own) = objective.ended
    assert drawn["loss"] == pytest.approx(losses[0] + 10.0)
    assert own["loss"] < 10.0
    _, gradients = compute_whole(objective.drawn[:1])
    norm = float(torch.cat([g.flatten() for g in gradients]).norm())
    assert drawn["grad_norm"] == pytest.approx(norm), "the same on every rank, counted once"


# --- averaged weights ---------------------------------------------------------------------------------------------


def test_the_averaged_weights_are_returned() -> None:
    layer, reference = make_layer(), make_layer()
    objective = Regression(layer, {0: 4})
    trainer = make_trainer(layer, ema_decay=0.9)
    ema = EmaWeights(reference, 0.9)

    def follow(step: int, metrics: Metrics) -> Metrics:
        reference.load_state_dict(layer.state_dict())
        ema.update(reference)
        return metrics

    objective.end_step = follow  # type: ignore[method-assign]
    result = trainer.fit(objective, 3)
    assert result is trainer.averaged
    assert result is not layer
    assert torch.equal(result.weight, ema.module.weight)
    assert not torch.equal(result.weight, layer.weight)


def test_without_an_average_the_module_itself_is_returned() -> None:
    layer = make_layer()
    trainer = make_trainer(layer)
    assert trainer.averaged is layer
    assert trainer.fit(Regression(layer, {0: 4}), 1) is layer


# --- cut in the middle --------------------------------------------------------------------------------------------


def make_setup(root: Path, every_s: float = 1e-9, num_microbatches: int = 2) -> TrainingSetup:
    return TrainingSetup(checkpoint_root=root, checkpoint_every_s=every_s, num_microbatches=num_microbatches)


@contextmanager
def cut(reporter: RecordingReporter) -> Iterator[None]:
    """Ctrl-C comes within."""
    assert reporter.cut
    with pytest.raises(KeyboardInterrupt):
        yield


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_a_training_that_is_cut_ends_as_if_it_had_not_been(tmp_path: Path, ema_decay: float | None) -> None:
    def begin(setup: TrainingSetup, reporter: RecordingReporter) -> tuple[Trainer[nn.Linear], Regression]:
        layer = make_layer()
        trainer = make_trainer(layer, setup, reporter, ema_decay=ema_decay, first_step=10)
        return trainer, Regression(layer, {0: 2, 1: 3})

    whole_reporter = RecordingReporter()
    whole, whole_objective = begin(TrainingSetup(num_microbatches=2), whole_reporter)
    expected = whole.fit(whole_objective, 7)

    setup, curves = make_setup(tmp_path), RecordingReporter(cut=3)
    trainer, objective = begin(setup, curves)
    with cut(curves):
        trainer.fit(objective, 7)
    assert setup.has_checkpoint("fit_line")
    curves.cut = 0
    trainer, objective = begin(setup, curves)
    with torch.no_grad():  # what is in the checkpoint counts, not what the second try starts with
        for parameter in (*trainer.module.parameters(), *trainer.averaged.parameters()):
            parameter.zero_()
    result = trainer.fit(objective, 7)

    assert curves.lines == ["fit_line goes on from step 3"]
    assert [bar.total for bar in curves.bars] == [7, 4]
    assert [step for step, _ in objective.ended] == [3, 4, 5, 6]
    assert objective.memory.total == whole_objective.memory.total
    for name, value in expected.state_dict().items():
        assert torch.equal(result.state_dict()[name], value), name
    for number, generator in whole_objective.generators.items():
        assert torch.equal(objective.generators[number].get_state(), generator.get_state())
    assert curves.curves == whole_reporter.curves

    assert setup.has_checkpoint("fit_line"), "until the caller has saved the result"
    setup.drop_checkpoint("fit_line")
    assert not list(tmp_path.iterdir())


class Signalled(Regression):
    """Sends this process a signal in the middle of its third step."""

    def __init__(self, layer: nn.Module, sent: signal.Signals) -> None:
        super().__init__(layer, {0: 4})
        self.sent = sent

    def compute_loss(self, batch: Rows, number: int) -> tuple[Tensor, Metrics]:
        if len(self.drawn) == 3:
            os.kill(os.getpid(), self.sent)
        return super().compute_loss(batch, number)


def test_a_training_that_sigterm_ends_keeps_its_last_step(tmp_path: Path) -> None:
    setup, layer = make_setup(tmp_path, every_s=1e9, num_microbatches=1), make_layer()
    with answer_signals(), pytest.raises(KeyboardInterrupt) as raised:
        make_trainer(layer, setup).fit(Signalled(layer, signal.SIGTERM), 5)
    assert raised.value.args == (signal.SIGTERM,)
    again, reporter = make_layer(), RecordingReporter()
    objective = Regression(again, {0: 4})
    make_trainer(again, setup, reporter).fit(objective, 5)
    assert len(objective.drawn) == 2, "three of five steps were kept"
    whole = make_layer()
    make_trainer(whole, TrainingSetup()).fit(Regression(whole, {0: 4}), 5)
    assert torch.equal(again.weight, whole.weight)


def test_usr1_writes_one_checkpoint_and_the_training_goes_on(tmp_path: Path) -> None:
    setup, layer = make_setup(tmp_path, every_s=1e9, num_microbatches=1), make_layer()
    with answer_signals():
        make_trainer(layer, setup).fit(Signalled(layer, signal.SIGUSR1), 5)
    assert json.loads((tmp_path / "fit_line/partial.json").read_text())["num_steps"] == 3


def test_a_training_that_others_follow_can_be_asked_for_its_end(tmp_path: Path) -> None:
    """Checkpoints are due in a year, but for that of the last step."""
    layer, setup = make_layer(), make_setup(tmp_path, every_s=3e7, num_microbatches=1)
    make_trainer(layer, setup).fit(Regression(layer, {0: 4}), 3)
    assert not setup.has_checkpoint("fit_line")
    trained = make_layer()
    make_trainer(trained, setup, checkpoints_end=True).fit(Regression(trained, {0: 4}), 3)
    assert setup.has_checkpoint("fit_line")
    again, reporter = make_layer(), RecordingReporter()
    objective = Regression(again, {0: 4})
    make_trainer(again, setup, reporter, checkpoints_end=True).fit(objective, 3)
    assert (reporter.bars[0].total, objective.drawn) == (0, [])
    assert torch.equal(again.weight, trained.weight)


@pytest.mark.parametrize("changes", [{"checkpoint_root": None}, {"checkpoint_every_s": 0.0}])
def test_no_checkpoint_is_written_where_none_is_wanted(tmp_path: Path, changes: dict[str, Any]) -> None:
    layer, setup = make_layer(), replace(make_setup(tmp_path, num_microbatches=1), **changes)
    make_trainer(layer, setup, checkpoints_end=True).fit(Regression(layer, {0: 4}), 2)
    assert not list(tmp_path.iterdir())
    assert not setup.has_checkpoint("fit_line")


# --- small networks -----------------------------------------------------------------------------------------------


class Still(Objective[None]):
    """One loss for every step, drawn from nothing."""

    def __init__(self, loss: Callable[[], Tensor]) -> None:
        super().__init__({0: torch.Generator()})
        self.loss = loss

    def batches(self, step: int) -> Iterable[Mapping[int, None]]:
        yield {0: None}

    def count(self, batch: None) -> Tensor:
        return torch.tensor(1)

    def compute_loss(self, batch: None, number: int) -> tuple[Tensor, Metrics]:
        loss = self.loss()
        return loss, {"loss": float(loss.detach())}


def fit(layer: nn.Linear, objective: Objective[Any], num_steps: int, reporter: RecordingReporter) -> nn.Linear:
    return fit_small(
        layer, objective, reporter, num_steps=num_steps, learning_rate=0.1, weight_decay=0.03, unit="line step"
    )


def test_a_small_fit_is_a_plain_torch_loop_to_the_last_bit() -> None:
    plain = make_layer().train()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.1, weight_decay=0.03)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=12, pct_start=0.1)
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(12):
        loss = squared_error(plain, draw_rows(generator, 4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))

    layer, reporter = make_layer(), RecordingReporter()
    state = torch.get_rng_state()
    result = fit(layer, Regression(layer, {0: 4}), 12, reporter)
    assert torch.equal(torch.get_rng_state(), state), "nobody else's random numbers"
    assert result is layer
    assert not layer.training
    assert torch.equal(layer.weight, plain.weight)
    assert torch.equal(layer.bias, plain.bias)
    (bar,) = reporter.bars
    assert (bar.total, bar.unit) == (12, "line step")
    assert [figures["loss"] for figures in bar.figures] == losses
    assert (reporter.curves, reporter.lines) == ({}, []), "progress is all that is shown"


def test_a_small_fit_finds_the_minimum() -> None:
    layer, reporter = nn.Linear(1, 2, bias=False), RecordingReporter()
    layer.weight.data = torch.tensor([[3.0], [-2.0]])
    fit_small(
        layer, Still(lambda: (layer.weight - 1).square().sum()), reporter, num_steps=200, learning_rate=0.1,
        weight_decay=0.0, unit="step",
    )  # fmt: skip
    assert reporter.bars[0].figures[0]["loss"] == pytest.approx(4 + 9)
    assert layer.weight.detach().flatten().tolist() == pytest.approx([1.0, 1.0], abs=0.02)


@pytest.mark.parametrize("num_steps", [1, 2, 5, 10, 11, 20])
def test_a_small_fit_has_as_many_steps_as_asked_for(num_steps: int) -> None:
    layer, reporter = make_layer(), RecordingReporter()
    objective = Regression(layer, {0: 1})
    fit(layer, objective, num_steps, reporter)
    assert len(objective.ended) == reporter.bars[0].count == num_steps
