"""The optimizer recipes: warm-up, decay, clipping, and going on in the middle."""

import math

import pytest
import torch
from torch import nn

from worldloop.core.errors import WorldloopError
from worldloop.training.data_parallel import DataParallel
from worldloop.training.optimizer import OneCycleOptimizer, Optimizer, autocast


def take_steps(optimizer: Optimizer, weight: nn.Parameter, num_steps: int, scale: float = 1.0) -> list[float]:
    """The learning rates of ``num_steps`` steps on ``scale`` times the sum of ``weight``."""
    rates = []
    for _ in range(num_steps):
        rates.append(optimizer.learning_rate)
        optimizer.backward((weight * scale).sum())
        optimizer.step()
    return rates


def test_it_goes_on_where_it_was_saved() -> None:
    def begin() -> tuple[nn.Linear, Optimizer]:
        torch.manual_seed(0)
        layer = nn.Linear(3, 2)
        return layer, Optimizer(layer.parameters(), learning_rate=0.1, num_steps=20, warmup_steps=4)

    def take(layer: nn.Linear, optimizer: Optimizer, steps: range) -> None:
        for step in steps:
            optimizer.backward(layer(torch.full((1, 3), float(step))).square().sum())
            optimizer.step()

    layer, whole = begin()
    take(layer, whole, range(7))
    saved = {name: value.clone() for name, value in whole.state_dict().items()}
    weights = {name: value.clone() for name, value in layer.state_dict().items()}
    take(layer, whole, range(7, 12))
    other, resumed = begin()
    other.load_state_dict(weights)
    resumed.load_state_dict(saved)
    assert resumed.learning_rate == 0.1 * (0.1 + 0.45 * (1 + math.cos(math.pi * 7 / 20)))
    take(other, resumed, range(7, 12))
    assert torch.equal(other.weight, layer.weight)
    assert resumed.learning_rate == whole.learning_rate


def test_microbatches_add_up_to_one_batch() -> None:
    weight, rows = nn.Parameter(torch.ones(3)), torch.tensor([[1.0, 0, 0], [0, 2, 0], [0, 0, 3], [1, 1, 1]])
    optimizer = Optimizer([weight], learning_rate=0.1, num_steps=4)
    weights = DataParallel().weigh([torch.tensor(1), torch.tensor(3)])
    for part, share in zip(rows.split([1, 3]), weights, strict=True):
        optimizer.backward((part @ weight).mean() * share)
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, rows.mean(0))
    optimizer.step()
    assert weight.grad is None


def test_it_warms_up_decays_and_clips() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = Optimizer([weight], learning_rate=0.1, num_steps=100, warmup_steps=10, weight_decay=0.0)
    rates = take_steps(optimizer, weight, 100)
    assert rates[:10] == pytest.approx([0.01 * (i + 1) for i in range(10)], rel=0.03)  # the decay has begun too
    assert rates[-1] == pytest.approx(0.01, rel=0.05)
    optimizer.backward((weight * 1e4).sum())
    assert optimizer.step() == pytest.approx(2e4)  # the norm before clipping: (4 x 1e4^2)^.5


def test_clipping_scales_the_whole_gradient_to_the_largest_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = Optimizer([first, second], learning_rate=0.1, num_steps=None, max_grad_norm=1.0)
    seen: list[float] = []
    monkeypatch.setattr(optimizer.optimizer, "step", lambda: seen.extend((float(first.grad), float(second.grad))))
    optimizer.backward(3 * first.sum() + 4 * second.sum())
    assert optimizer.step() == pytest.approx(5.0)
    assert seen == pytest.approx([0.6, 0.8])


def test_without_a_number_of_steps_the_rate_stays() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = Optimizer([weight], learning_rate=0.1, num_steps=None, warmup_steps=4)
    assert take_steps(optimizer, weight, 8) == pytest.approx([0.025, 0.05, 0.075, *[0.1] * 5])


def test_vectors_do_not_decay_and_the_frozen_do_not_move() -> None:
    """With a loss of zero gradient only the decay moves weights: by learning rate x decay x weight."""
    matrix, vector = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)
    optimizer = Optimizer([matrix, vector, frozen], learning_rate=0.1, num_steps=None, warmup_steps=0, weight_decay=0.5)
    optimizer.backward(0 * (matrix.sum() + vector.sum() + frozen.sum()))
    optimizer.step()
    torch.testing.assert_close(matrix.detach(), torch.full((2, 2), 1 - 0.1 * 0.5))
    assert vector.tolist() == [1.0, 1.0]
    assert frozen.tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_a_loss_that_is_not_finite_stops_before_the_weights_change() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = Optimizer([weight], learning_rate=0.1, num_steps=10, name="fit_world_model")
    with pytest.raises(WorldloopError, match="fit_world_model: the loss became nan"):
        optimizer.backward(weight.sum() * float("nan"))
    assert torch.equal(weight, torch.ones(2, 2))
    assert weight.grad is None


@pytest.mark.parametrize("num_steps", [1, 2, 5, 10, 11, 20])
def test_one_cycle_rises_once_and_falls_to_almost_nothing(num_steps: int) -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = OneCycleOptimizer([weight], learning_rate=0.1, num_steps=num_steps, weight_decay=0.0)
    rates = take_steps(optimizer, weight, num_steps)
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    if num_steps > 1:
        assert rates[-1] < 1e-5 < rates[peak]
    if num_steps == 20:
        assert rates[1] == pytest.approx(0.1)  # after a tenth of the steps


def test_one_cycle_clips_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = OneCycleOptimizer([weight], learning_rate=0.1, num_steps=4, weight_decay=0.0)
    seen: list[list[float]] = []
    monkeypatch.setattr(optimizer.optimizer, "step", lambda: seen.append(weight.grad.tolist()))
    optimizer.backward((weight * 1e4).sum())
    optimizer.step()
    assert seen == [[1e4, 1e4]]


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_arithmetic_in_bf16_where_it_is_asked_for(precision: str, dtype: torch.dtype) -> None:
    layer = nn.Linear(2, 2)
    with autocast(torch.device("cpu"), precision):
        assert layer(torch.ones(1, 2)).dtype == dtype
    assert layer.weight.dtype == torch.float32
