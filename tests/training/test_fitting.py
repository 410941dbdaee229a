import pytest
import torch
from torch import nn
from worldloop.training.fitting import minimise


def test_minimise_finds_the_minimum_and_reports_every_step() -> None:
    weight = nn.Parameter(torch.tensor([3.0, -2.0]))
    losses: list[float] = []
    minimise(
        [weight], lambda: (weight - 1).square().sum(), num_steps=200, learning_rate=0.1, weight_decay=0.0,
        on_step=losses.append,
    )  # fmt: skip
    assert len(losses) == 200
    assert losses[0] == pytest.approx(4 + 9)
    assert weight.detach().tolist() == pytest.approx([1.0, 1.0], abs=0.02)


@pytest.mark.parametrize("num_steps", [1, 2, 5, 10, 11, 20])
def test_any_number_of_steps(num_steps: int) -> None:
    weight, losses = nn.Parameter(torch.ones(1)), []

    def loss() -> torch.Tensor:
        return weight.square().sum()

    minimise([weight], loss, num_steps=num_steps, learning_rate=0.1, weight_decay=0.0, on_step=losses.append)
    assert len(losses) == num_steps
