"""Batches that are drawn ahead are those that would have been drawn in turn."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from reporters import RecordingReporter
from torch import Tensor, nn

from worldloop.core.interfaces import Metrics
from worldloop.training.optimizer import Optimizer
from worldloop.training.resume import Stateful, TrainingSetup
from worldloop.training.trainer import BatchObjective, Trainer

make_optimizer = partial(Optimizer, learning_rate=0.05, num_steps=None, warmup_steps=0)


class Tally:
    """A sum that drawing reads and the loss changes, as a self-rollout pool."""

    def __init__(self) -> None:
        self.total = torch.zeros(())

    def state_dict(self) -> dict[str, Tensor]:
        return {"total": self.total}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        self.total = tensors["total"]


class Noisy(BatchObjective[Tensor]):
    """Draws rows and the loss's noise from one generator; every batch depends on the loss before."""

    def __init__(self, layer: nn.Linear, numbers: tuple[int, ...] = (0, 1), fails_at: int = -1) -> None:
        super().__init__({number: torch.Generator().manual_seed(number) for number in numbers})
        self.layer, self.fails_at = layer, fails_at
        self.tallies = {number: Tally() for number in numbers}
        self.drawn: list[tuple[int, int]] = []
        self.threads: set[str] = set()

    def draw_batch(self, step: int, number: int) -> Tensor:
        if step == self.fails_at:
            raise ValueError("no such row")
        self.drawn.append((step, number))
        self.threads.add(threading.current_thread().name)
        tally = self.tallies[number]
        rows = self.draw(self.generators[number]) + tally.total
        tally.total = torch.zeros(())  # taken out, until the loss puts it back
        return rows

    def draw(self, generator: torch.Generator) -> Tensor:
        return torch.randn(4, 3, generator=generator)

    def count(self, batch: Tensor) -> Tensor:
        return torch.tensor(len(batch))

    def compute_loss(self, batch: Tensor, number: int) -> tuple[Tensor, Metrics]:
        noise = torch.randn(4, generator=self.generators[number])
        loss = (self.layer(batch)[:, 0] + noise).square().mean()
        self.tallies[number].total = loss.detach().tanh()
        return loss, {"loss": float(loss.detach())}

    def microbatch_state(self) -> dict[int, dict[str, Stateful]]:
        return {number: own | {"tally": self.tallies[number]} for number, own in super().microbatch_state().items()}


def make_layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def fit(objective: Noisy, num_steps: int, setup: TrainingSetup | None = None) -> list[Tensor]:
    trainer = Trainer(objective.layer, make_optimizer, setup or TrainingSetup(), RecordingReporter(), name="fit")
    return [p.detach().clone() for p in trainer.fit(objective, num_steps).parameters()]


def test_weights_and_generators_end_as_if_every_batch_were_drawn_in_turn() -> None:
    ahead, in_turn = Noisy(make_layer()), Noisy(make_layer())
    in_turn.draws_ahead = False
    for one, other in zip(fit(ahead, 6), fit(in_turn, 6), strict=True):
        assert torch.equal(one, other)
    for number, generator in ahead.generators.items():
        assert torch.equal(generator.get_state(), in_turn.generators[number].get_state())
    assert sorted(ahead.drawn) == [(step, number) for step in range(6) for number in (0, 1)]
    assert ahead.threads == {"MainThread", "batches_0"}
    assert in_turn.threads == {"MainThread"}


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_a_checkpoint_does_not_hold_what_was_drawn_ahead(tmp_path: Path, cut: int) -> None:
    whole = fit(Noisy(make_layer()), 6)
    setup = TrainingSetup(checkpoint_root=tmp_path, checkpoint_every_s=1e-9)
    cut_off = Noisy(make_layer(), fails_at=cut)
    with pytest.raises(ValueError, match="no such row"):
        fit(cut_off, 6, setup)
    again = Noisy(make_layer())
    for one, other in zip(fit(again, 6, setup), whole, strict=True):
        assert torch.equal(one, other)
    assert again.drawn[0] == (cut, 0)


def test_no_thread_is_left() -> None:
    before = threading.active_count()
    fit(Noisy(make_layer()), 3)
    with pytest.raises(ValueError, match="no such row"):
        fit(Noisy(make_layer(), fails_at=2), 3)
    assert threading.active_count() == before
