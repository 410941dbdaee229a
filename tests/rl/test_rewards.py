"""What imagined rows are worth: everything by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from counting import SPEC
from hand_rollouts import make_rollout, make_step
from torch import Tensor

from worldloop.config.loading import load_config
from worldloop.core.errors import WorldloopError
from worldloop.core.success import Calibration, Calibrations
from worldloop.core.types import ChunkStep, Rollout
from worldloop.rl.grpo import GrpoConfig
from worldloop.rl.reward_context import RewardContext
from worldloop.rl.rewards import (
    REWARDS,
    check_reward,
    score_certainty,
    score_rollout,
    score_success,
)
from worldloop.stages import improve_policy

DEBUG = Path(__file__).resolve().parents[2] / "configs/debug.yaml"
SURE_DB = 99.0


def make_context(confirm_frames: int = 0, floor_db: float = 0.0, last_value: Tensor | None = None) -> RewardContext:
    spec = replace(SPEC, success_confirm_frames=confirm_frames)
    return RewardContext(spec, Calibrations({"t": Calibration(floor_db=floor_db)}), last_value)


def three_rows() -> ChunkStep:
    """Of which the second succeeds."""
    return make_step([[0.2], [0.7], [0.1]], [[True]] * 3, 1)


# --- success ------------------------------------------------------------------------------------------------------


def test_success_counts_one_and_anything_else_its_best_probability() -> None:
    later = make_step([[0.3], [0.9], [0.05]], [[True], [False], [True]], 1)
    rollout = make_rollout(three_rows(), later)
    assert score_success(rollout, make_context()).tolist() == pytest.approx([0.3, 1.0, 0.1])


def test_a_frame_at_the_cut_is_worth_nothing_until_another_confirms_it() -> None:
    """One bright last frame is a cheap way to please the head; a row that has ended has no later frame to ask."""
    last = make_step([[0.9], [0.9], [0.2]], [[True]] * 3)
    ended = replace(last, truncated=torch.tensor([False, True, False]))
    rollout = make_rollout(make_step([[0.3], [0.1], [0.4]], [[True]] * 3), ended)
    assert score_success(rollout, make_context(confirm_frames=1)).tolist() == pytest.approx([0.3, 0.9, 0.2])
    assert score_success(make_rollout(last), make_context(confirm_frames=1)).tolist() == [0, 0, 0]


def test_a_probability_is_confirmed_across_chunks_and_only_by_frames_that_count() -> None:
    """Two chunks of four actions, two to a frame: frames 0 to 3 of each row."""
    first = make_step([[0.2, 0.9], [0.3, 0.4], [0.1, 0.9]], [[True] * 4, [True] * 4, [True, True, False, False]])
    second = make_step([[0.8, 0.1], [1.0, 1.0], [1.0, 1.0]], [[True] * 4, [False] * 4, [False] * 4])
    rollout = make_rollout(first, second)
    # The best valid frame: .9 of (.2 .9 .8 .1), .4 of (.3 .4), .1 of (.1).
    assert score_success(rollout, make_context()).tolist() == pytest.approx([0.9, 0.4, 0.1])
    # With the next frame: max(min(.2, .9), min(.9, .8), min(.8, .1), .1); what lies past a row's end need not agree.
    assert score_success(rollout, make_context(confirm_frames=1)).tolist() == pytest.approx([0.8, 0.4, 0.1])


def test_a_row_without_a_valid_frame_is_worth_nothing() -> None:
    assert score_success(make_rollout(make_step([[0.7]], [[False]])), make_context()).tolist() == [0.0]


def test_a_row_that_is_cut_off_counts_what_the_critic_says() -> None:
    step = replace(three_rows(), truncated=torch.tensor([False, False, True]))
    context = make_context(last_value=torch.tensor([0.6, 0.0, 0.9]))
    assert score_success(make_rollout(step), context).tolist() == pytest.approx([0.6, 1.0, 0.1])


# --- certainty ----------------------------------------------------------------------------------------------------


def test_certainty_is_minus_the_decibels_below_the_floor() -> None:
    step = replace(three_rows(), expected_psnr_db=torch.tensor([[18.0], [19.0], [25.0]]))
    context = make_context(floor_db=20.0)
    assert score_certainty(make_rollout(step), context).tolist() == [-2.0, -1.0, 0.0]
    # The worst frame of all chunks counts.
    later = replace(three_rows(), expected_psnr_db=torch.tensor([[15.0], [SURE_DB], [SURE_DB]]))
    assert score_certainty(make_rollout(step, later), context).tolist() == [-5.0, -1.0, 0.0]


def test_the_floor_is_that_of_each_rows_task() -> None:
    step = replace(three_rows(), expected_psnr_db=torch.tensor([[18.0], [18.0], [18.0]]))
    calibrations = Calibrations({"t": Calibration(floor_db=20.0), "u": Calibration(floor_db=25.0)})
    context = RewardContext(SPEC, calibrations)
    rollout = make_rollout(step, task=["u", "t", "nobody calibrated it"])
    assert score_certainty(rollout, context).tolist() == [-7.0, -2.0, 0.0]


def test_a_simulator_that_estimates_nothing_is_certain() -> None:
    assert score_certainty(make_rollout(three_rows()), make_context(floor_db=20.0)).tolist() == [0.0] * 3


# --- their sum ----------------------------------------------------------------------------------------------------


def test_terms_are_weighted_and_added() -> None:
    step = replace(three_rows(), expected_psnr_db=torch.tensor([[18.0], [19.0], [25.0]]))
    rollout, context = make_rollout(step), make_context(floor_db=20.0)
    returns, terms = score_rollout(rollout, {"success": 2.0, "certainty": 0.1}, context)
    assert returns.tolist() == pytest.approx([2 * 0.2 - 0.2, 2 * 1.0 - 0.1, 2 * 0.1 - 0.0])
    assert terms == pytest.approx({"success": 2 * (0.2 + 1.0 + 0.1) / 3, "certainty": -0.1})


def test_a_term_of_weight_zero_is_not_even_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REWARDS, "certainty", lambda *_: pytest.fail("computed"))
    returns, terms = score_rollout(make_rollout(three_rows()), {"success": 1.0, "certainty": 0.0}, make_context())
    assert returns.tolist() == pytest.approx([0.2, 1.0, 0.1])
    assert list(terms) == ["success"]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "improve_policy.reward has no term, allowed: weights of success, certainty"),
        ({"success": 0.0}, "improve_policy.reward has no term"),
        ({"success": 1.0, "speed": 0.1}, "improve_policy.reward is 'speed', allowed: success, certainty"),
        ({"success": float("nan")}, "improve_policy.reward.success is nan, allowed: any finite number"),
        ({"success": 1.0, "certainty": float("inf")}, "improve_policy.reward.certainty is inf"),
    ],
)
def test_weights_that_say_nothing_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_reward(weights)
    with pytest.raises(ValueError, match=message):
        GrpoConfig(reward=weights)


def test_the_config_names_a_term_that_it_does_not_know() -> None:
    with pytest.raises(WorldloopError, match=r"improve_policy\.reward is 'haste', allowed: success, certainty"):
        load_config(DEBUG, ["improve_policy.reward.haste=1"])


def test_a_term_of_the_default_stays_until_its_weight_is_zero(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("improve_policy: {reward: {certainty: 0.5}}")
    assert load_config(own).section(improve_policy.Config).reward == {"success": 1.0, "certainty": 0.5}
    reward = load_config(own, ["improve_policy.reward.success=0"]).section(improve_policy.Config).reward
    _, terms = score_rollout(make_rollout(three_rows()), reward, make_context())
    assert list(terms) == ["certainty"]


# --- a term of one's own ------------------------------------------------------------------------------------------


def score_calm(rollout: Rollout, context: RewardContext) -> Tensor:
    """f32 [B]: minus the mean size of a row's actions."""
    actions = torch.cat([chunk.actions for chunk in rollout.chunks], dim=1)
    return -actions.abs().mean(dim=(1, 2))


def test_a_new_term_is_one_function_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REWARDS, "calm", score_calm)  # the line in `REWARDS`
    config = load_config(DEBUG, ["improve_policy.reward.calm=0.5"]).section(improve_policy.Config)
    assert config.reward == {"success": 1.0, "certainty": 0.05, "calm": 0.5}
    rollout = make_rollout(three_rows())
    hasty = replace(rollout.chunks[0], actions=torch.tensor([[[0.0]], [[1.0]], [[-0.4]]]))
    returns, terms = score_rollout(replace(rollout, chunks=(hasty,)), config.reward, make_context())
    assert returns.tolist() == pytest.approx([0.2, 1.0 - 0.5, 0.1 - 0.2])
    assert terms["calm"] == pytest.approx(-0.5 * (0 + 1 + 0.4) / 3)
