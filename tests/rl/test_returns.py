"""Returns of imagined rows, and which of their decisions are learnt from: everything by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from worldloop.stages.decisions import compute_returns, flatten

from worldloop.core.types import ActionChunk, ChunkStep, Observation
from worldloop.rl.grpo import compute_group_advantages
from worldloop.rollout.rollout import Rollout

SURE_DB = 99.0


def _observation(num_rows: int, env_step: int = 0) -> Observation:
    frames = torch.zeros(num_rows, 1, 2, 2, 3, dtype=torch.uint8)
    return Observation(frames, None, tuple(f"row {row}" for row in range(num_rows)), torch.full((num_rows,), env_step))


def _step(probability: list[list[float]], valid: list[list[bool]], *succeeded: int) -> ChunkStep:
    """M frames of H actions, of which the rows ``succeeded`` are done."""
    B, H = len(valid), len(valid[0])
    terminated = torch.tensor([row in succeeded for row in range(B)])
    return ChunkStep(
        observation=_observation(B),
        frames=torch.zeros(B, len(probability[0]), 2, 2, 3, dtype=torch.uint8),
        proprio=None,
        rewards=torch.zeros(B, H),
        success_prob=torch.tensor(probability),
        valid=torch.tensor(valid),
        success=terminated[:, None].repeat(1, H),
        terminated=terminated,
        truncated=torch.zeros(B, dtype=torch.bool),
    )


def _rollout(*steps: ChunkStep, chunks: list[ActionChunk] | None = None) -> Rollout:
    B, H = steps[0].valid.shape
    return Rollout(
        origin="imagined",
        group_id=torch.zeros(B, dtype=torch.long),
        initial_state_id=tuple("abcdefgh"[:B]),
        observations=tuple(_observation(B, H * c) for c in range(len(steps))),
        chunks=tuple(chunks or [ActionChunk(torch.zeros(B, H, 1))] * len(steps)),
        steps=steps,
        policy_version="p",
        simulator_version="w",
    )


def _three_rows() -> ChunkStep:
    """Of which the second succeeds."""
    return _step([[0.2], [0.7], [0.1]], [[True]] * 3, 1)


def test_returns_are_one_for_success_and_the_best_probability_otherwise() -> None:
    later = _step([[0.3], [0.9], [0.05]], [[True], [False], [True]], 1)
    rollout = _rollout(_three_rows(), later)
    assert compute_returns(rollout, 0).tolist() == pytest.approx([0.3, 1.0, 0.1])
    assert compute_returns(rollout, 1).tolist() == pytest.approx([0.3, 1.0, 0.05])


def test_a_return_is_confirmed_across_chunks_and_only_by_frames_that_count() -> None:
    """Two chunks of four actions, two to a frame: frames 0 to 3 of each row."""
    first = _step([[0.2, 0.9], [0.3, 0.4], [0.1, 0.9]], [[True] * 4, [True] * 4, [True, True, False, False]])
    second = _step([[0.8, 0.1], [1.0, 1.0], [1.0, 1.0]], [[True] * 4, [False] * 4, [False] * 4])
    rollout = _rollout(first, second)
    # The best valid frame: .9 of (.2 .9 .8 .1), .4 of (.3 .4), .1 of (.1).
    assert compute_returns(rollout, 0).tolist() == pytest.approx([0.9, 0.4, 0.1])
    # With the next frame: max(min(.2, .9), min(.9, .8), min(.8, .1), .1); what lies past a row's end need not agree.
    assert compute_returns(rollout, 1).tolist() == pytest.approx([0.8, 0.4, 0.1])


def test_a_row_without_a_valid_frame_returns_zero() -> None:
    assert compute_returns(_rollout(_step([[0.7]], [[False]])), 0).tolist() == [0.0]


def test_the_penalty_comes_off_per_decibel_below_the_floor() -> None:
    step = replace(_three_rows(), expected_psnr_db=torch.tensor([[18.0], [19.0], [25.0]]))
    assert compute_returns(_rollout(step), 0, 0.1, 20.0).tolist() == pytest.approx([0.0, 0.9, 0.1])
    assert compute_returns(_rollout(step), 0, 0.0, 20.0).tolist() == pytest.approx([0.2, 1.0, 0.1])
    # The worst frame of all chunks counts: 20 - 15 dB off the first row, 20 - 19 off the second.
    later = replace(_three_rows(), expected_psnr_db=torch.tensor([[15.0], [SURE_DB], [SURE_DB]]))
    assert compute_returns(_rollout(step, later), 0, 0.1, 20.0).tolist() == pytest.approx([-0.3, 0.9, 0.1])


def test_a_row_that_is_cut_off_counts_what_the_critic_says() -> None:
    step = replace(_three_rows(), truncated=torch.tensor([False, False, True]))
    value = torch.tensor([0.6, 0.0, 0.9])
    assert compute_returns(_rollout(step), 0, last_value=value).tolist() == pytest.approx([0.6, 1.0, 0.1])


def _chunk(number: int) -> ActionChunk:
    """Four rows of two actions, 100 c + 10 b + h in chunk c and row b; the log-probability is the negative of that."""
    actions = 100.0 * number + 10 * torch.arange(4.0)[:, None] + torch.arange(2.0)
    return ActionChunk(actions[..., None], -actions, {"tokens": actions.long()[..., None]}, "p")


def test_decisions_are_those_of_kept_groups_while_their_rows_were_running() -> None:
    """Rows 0 and 2 are a group without variance; rows 1 and 3 one in which row 1 succeeds at its first action."""
    first = _step([[0.5]] * 4, [[True, True], [True, False], [True, True], [True, True]], 1)
    second = _step([[0.5]] * 4, [[True, True], [False, False], [True, True], [True, False]], 1)
    rollout = _rollout(first, second, chunks=[_chunk(0), _chunk(1)])
    groups = compute_group_advantages(torch.tensor([0.5, 1.0, 0.5, 0.0]), torch.tensor([3, 7, 3, 7]))
    decisions = flatten(rollout, groups)
    assert decisions is not None
    # (chunk 0, row 1), (chunk 0, row 3), (chunk 1, row 3)
    assert decisions.chunk.actions[..., 0].tolist() == [[10, 11], [30, 31], [130, 131]]
    assert decisions.chunk.trace["tokens"][..., 0].tolist() == [[10, 11], [30, 31], [130, 131]]
    assert decisions.log_probs.tolist() == [[-10, -11], [-30, -31], [-130, -131]]
    assert decisions.valid.tolist() == [[True, False], [True, True], [True, False]]
    assert decisions.advantages.tolist() == [1, -1, -1]
    assert decisions.observation.instruction == ("row 1", "row 3", "row 3")
    assert decisions.observation.env_step.tolist() == [0, 0, 2]


def test_nothing_is_left_to_learn_from_where_every_group_is_dropped() -> None:
    rollout = _rollout(_step([[0.5]] * 4, [[True, True]] * 4), chunks=[_chunk(0)])
    assert flatten(rollout, compute_group_advantages(torch.ones(4), torch.tensor([0, 0, 1, 1]))) is None


def test_a_policy_without_log_probabilities_is_refused() -> None:
    rollout = _rollout(_three_rows())
    with pytest.raises(ValueError, match="exact log-probabilities"):
        flatten(rollout, compute_group_advantages(torch.tensor([1.0, 0.0, 0.0]), rollout.group_id))
