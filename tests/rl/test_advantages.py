"""Advantages within groups, and the control that permutes returns."""

import math

import pytest
import torch

from worldloop.core.randomness import make_generator
from worldloop.rl.advantages import compute_group_advantages, shape_by_value, shuffle_rows


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


def test_groups_without_a_success_are_dropped_however_their_returns_differ() -> None:
    """Group 0: .1 and .3 of the head's doubts; group 1: a success; group 2: successes alone."""
    returns, groups = torch.tensor([0.1, 0.3, 1.0, 0.5, 1.0, 1.0]), torch.tensor([0, 0, 1, 1, 2, 2])
    success = torch.tensor([False, False, True, False, True, True])
    soft = compute_group_advantages(returns, groups)
    assert soft.advantages.tolist() == pytest.approx([-1, 1, 1, -1, 0, 0])
    result = compute_group_advantages(returns, groups, success=success)
    assert result.advantages.tolist() == pytest.approx([0, 0, 1, -1, 0, 0])
    assert result.keep.tolist() == [False, False, True, True, False, False]
    assert result.num_dropped == 2


def test_advantages_that_are_not_divided_keep_the_size_of_the_difference() -> None:
    returns, groups = torch.tensor([1.0, 0.5, 1.0, 0.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1, 2, 2])
    result = compute_group_advantages(returns, groups, normalises=False)
    assert result.advantages.tolist() == pytest.approx([0.25, -0.25, 0.5, -0.5, 0, 0])
    assert result.keep.tolist() == [True, True, True, True, False, False]


def test_rows_are_shuffled_over_all_groups() -> None:
    order = shuffle_rows(50, make_generator(0, "shuffle"))
    assert sorted(order.tolist()) == list(range(50))
    assert (order != torch.arange(50)).sum() > 40
    assert (order[:10] >= 10).any()  # rows leave their group
    assert torch.equal(order, shuffle_rows(50, make_generator(0, "shuffle")))


# --- shaping by a critic's values ---------------------------------------------------------------------------------


def test_a_chunk_gets_credit_for_what_the_value_did_not_expect() -> None:
    """The docstring's example, with a second group, in other rows, whose member of the second chunk is alone."""
    returns, group_id = torch.tensor([1.0, 0.5, 0.0, 0.0]), torch.tensor([4, 9, 4, 9])
    values = torch.tensor([[0.5, 0.9], [0.2, 0.3], [0.5, 0.1], [0.2, 0.7]])
    valid = torch.tensor([[True, True], [True, True], [True, True], [True, False]])
    groups = compute_group_advantages(returns, group_id)
    shaped = shape_by_value(groups, returns, values, valid, group_id)
    expected = torch.tensor([[1.0, 0.2], [1.0, 0.0], [-1.0, -0.2], [-1.0, 0.0]])
    assert torch.allclose(shaped.advantages, expected, atol=1e-6)
    assert torch.equal(shaped.advantages[:, 0], groups.advantages), "in one state no value tells members apart"
    assert shaped.keep.all()


def test_dropped_groups_stay_dropped_and_unnormalised_advantages_unnormalised() -> None:
    returns, group_id = torch.tensor([0.8, 0.2, 0.5, 0.5]), torch.tensor([0, 0, 1, 1])
    values = torch.tensor([[0.4, 0.3], [0.4, 0.1], [0.1, 0.9], [0.1, 0.2]])
    groups = compute_group_advantages(returns, group_id, normalises=False)
    shaped = shape_by_value(groups, returns, values, torch.ones(4, 2, dtype=torch.bool), group_id)
    expected = torch.tensor([[0.3, 0.2], [-0.3, -0.2], [0.0, 0.0], [0.0, 0.0]])
    assert torch.allclose(shaped.advantages, expected, atol=1e-6)


def test_a_value_that_knows_the_return_leaves_nothing_to_learn_from_later_chunks() -> None:
    returns, group_id = torch.tensor([1.0, 0.0, 0.4]), torch.zeros(3, dtype=torch.long)
    values = torch.stack([torch.full((3,), 0.3), returns], dim=1)
    groups = compute_group_advantages(returns, group_id)
    shaped = shape_by_value(groups, returns, values, torch.ones(3, 2, dtype=torch.bool), group_id)
    assert torch.allclose(shaped.advantages[:, 1], torch.zeros(3), atol=1e-6)
    assert shaped.advantages[:, 0].abs().max() > 1
