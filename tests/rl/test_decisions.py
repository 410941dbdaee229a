"""Which decisions of a round are learnt from: everything by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hand_rollouts import make_chunk, make_rollout, make_step

from worldloop.rl.advantages import compute_group_advantages
from worldloop.rl.decisions import flatten_decisions


def test_decisions_are_those_of_kept_groups_while_their_rows_were_running() -> None:
    """Rows 0 and 2 are a group without variance; rows 1 and 3 one in which row 1 succeeds at its first action."""
    first = make_step([[0.5]] * 4, [[True, True], [True, False], [True, True], [True, True]], 1)
    second = make_step([[0.5]] * 4, [[True, True], [False, False], [True, True], [True, False]], 1)
    rollout = make_rollout(first, second, chunks=[make_chunk(0), make_chunk(1)], task=["t", "u", "t", "v"])
    groups = compute_group_advantages(torch.tensor([0.5, 1.0, 0.5, 0.0]), torch.tensor([3, 7, 3, 7]))
    decisions = flatten_decisions(rollout, groups)
    assert decisions is not None
    # (chunk 0, row 1), (chunk 0, row 3), (chunk 1, row 3)
    assert decisions.chunk.actions[..., 0].tolist() == [[10, 11], [30, 31], [130, 131]]
    assert decisions.chunk.trace["tokens"][..., 0].tolist() == [[10, 11], [30, 31], [130, 131]]
    assert decisions.log_probs.tolist() == [[-10, -11], [-30, -31], [-130, -131]]
    assert decisions.valid.tolist() == [[True, False], [True, True], [True, False]]
    assert decisions.advantages.tolist() == [1, -1, -1]
    assert decisions.observation.instruction == ("row 1", "row 3", "row 3")
    assert decisions.observation.task == ("u", "v", "v")
    assert decisions.observation.env_step.tolist() == [0, 0, 2]
    assert decisions.observation.frames["cam"].shape == (3, 1, 2, 2, 3)


def test_a_chunk_may_have_an_advantage_of_its_own() -> None:
    first = make_step([[0.5]] * 4, [[True, True], [True, False], [True, True], [True, True]], 1)
    second = make_step([[0.5]] * 4, [[True, True], [False, False], [True, True], [True, False]], 1)
    rollout = make_rollout(first, second, chunks=[make_chunk(0), make_chunk(1)])
    groups = compute_group_advantages(torch.tensor([0.5, 1.0, 0.5, 0.0]), torch.tensor([3, 7, 3, 7]))
    by_chunk = torch.tensor([[0.0, 0.0], [0.1, 0.2], [0.0, 0.0], [0.3, 0.4]])
    decisions = flatten_decisions(rollout, replace(groups, advantages=by_chunk))
    assert decisions is not None
    # (chunk 0, row 1), (chunk 0, row 3), (chunk 1, row 3)
    assert decisions.advantages.tolist() == pytest.approx([0.1, 0.3, 0.4])


def test_nothing_is_left_to_learn_from_where_every_group_is_dropped() -> None:
    rollout = make_rollout(make_step([[0.5]] * 4, [[True, True]] * 4), chunks=[make_chunk(0)])
    assert flatten_decisions(rollout, compute_group_advantages(torch.ones(4), torch.tensor([0, 0, 1, 1]))) is None


def test_a_policy_without_log_probabilities_is_refused() -> None:
    rollout = make_rollout(make_step([[0.2], [0.7], [0.1]], [[True]] * 3, 1))
    with pytest.raises(ValueError, match="exact log-probabilities"):
        flatten_decisions(rollout, compute_group_advantages(torch.tensor([1.0, 0.0, 0.0]), rollout.group_id))
