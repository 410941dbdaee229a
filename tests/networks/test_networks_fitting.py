import pytest
import torch
from torch import nn

from worldloop.networks.fitting import minimise


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
