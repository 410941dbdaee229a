"""Advantages within groups, and the control that permutes returns."""

import math

import torch

from worldloop.core.randomness import make_generator
from worldloop.rl.advantages import compute_group_advantages, shuffle_returns


def test_advantages_by_hand() -> None:
    # Group 7: mean 1/4, population std sqrt(3)/4 -> success sqrt(3), failure -1/sqrt(3). Group 3: all equal, dropped.
    returns = torch.tensor([1.0, 5.0, 0.0, 0.0, 5.0, 0.0])
    result = compute_group_advantages(returns, torch.tensor([7, 3, 7, 7, 3, 7]))
    low = -1 / math.sqrt(3)
    assert torch.allclose(result.advantages, torch.tensor([math.sqrt(3), 0, low, low, 0, low]))
    assert result.keep.tolist() == [True, False, True, True, False, True]
    assert result.num_dropped == 1


def test_min_std_drops_weak_groups_and_singletons() -> None:
    returns = torch.tensor([0.50, 0.52, 1.0, 0.0, 3.0])
    result = compute_group_advantages(returns, torch.tensor([0, 0, 1, 1, 2]), min_std=0.02)  # stds .01, .5, 0
    assert result.keep.tolist() == [False, False, True, True, False]
    assert result.num_dropped == 2
    assert result.advantages.tolist() == [0, 0, 1, -1, 0]


def test_a_group_exactly_at_min_std_is_dropped() -> None:
    # Population stds of exactly .5 and 1, in binary too.
    result = compute_group_advantages(torch.tensor([0.0, 1.0, 0.0, 2.0]), torch.tensor([0, 0, 1, 1]), min_std=0.5)
    assert result.keep.tolist() == [False, False, True, True]
    assert result.num_dropped == 1
    assert result.advantages.tolist() == [0, 0, -1, 1]


def test_advantages_of_kept_groups_are_standardised() -> None:
    returns = torch.randn(40, generator=make_generator(0))
    advantages = compute_group_advantages(returns, torch.arange(40) % 5).advantages.reshape(8, 5)
    assert torch.allclose(advantages.mean(dim=0), torch.zeros(5), atol=1e-6)
    assert torch.allclose(advantages.std(dim=0, correction=0), torch.ones(5), atol=1e-5)


def test_shuffled_returns_are_a_permutation_over_all_rows() -> None:
    returns = torch.arange(50.0)
    shuffled = shuffle_returns(returns, make_generator(0, "shuffle"))
    assert sorted(shuffled.tolist()) == returns.tolist()
    assert (shuffled != returns).sum() > 40
    assert (shuffled[:10] >= 10).any()  # rows leave their group
    assert torch.equal(shuffled, shuffle_returns(returns, make_generator(0, "shuffle")))
