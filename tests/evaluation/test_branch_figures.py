"""Figures of imagined branches where the answer is known: the truth itself, a still picture, a shifted one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from worldloop.evaluation.branch_figures import (
    Seen,
    align_branches,
    average,
    best_by_episode,
    compute_visual_alignment,
    follow_actions,
    judge_uncertainty,
    measure_frames,
    measure_state_error,
    positions,
    see,
    summarise,
)
from worldloop.evaluation.fidelity import MAX_PSNR_DB, repeat_first_frame
from worldloop.evaluation.open_loop import Branches
from worldloop.evaluation.probes import ProbeReading
from worldloop.simulators.toy.simulator import ToyConfig, ToySimulator

LANDMARKS = ToySimulator.make_spec(ToyConfig()).landmarks


@pytest.fixture
def truth(toy_clips) -> Branches:
    episodes = toy_clips.episode_index()
    clip = toy_clips.load(
        torch.stack([episodes, torch.zeros_like(episodes)], dim=1), int(toy_clips.cache.num_steps.max())
    )
    return Branches(clip.frames, clip.proprio, torch.where(clip.success > 0.5, 3.0, -3.0), clip)


def _seen(branches: Branches, dataset, offset_m: float = 0.0, logit: torch.Tensor | None = None) -> Seen:
    """The simulated positions, wrong by ``offset_m`` along x, and outcomes by ``logit`` (else the truth's)."""
    answer_m = positions(branches, dataset, LANDMARKS)
    answer_m[..., 0] += offset_m
    return Seen(answer_m, branches.logit if logit is None else logit)


def test_frames_are_read_in_their_order_with_their_episodes_first_frame(truth) -> None:
    class Probe:
        def read(self, first: torch.Tensor, frames: torch.Tensor) -> ProbeReading:
            assert torch.equal(first[:: truth.logit.shape[1]], truth.first_frames)
            means = frames.float().mean((1, 2, 3))
            return ProbeReading(means[:, None], -means)

    seen = see(Probe(), truth, truth.frames)  # type: ignore[arg-type]
    means = truth.frames.float().mean((2, 3, 4))
    assert torch.allclose(seen.position_m[..., 0], means)
    assert torch.allclose(seen.solved_logit, -means)


def test_positions_are_in_metres_and_held_after_the_end(truth, toy_clips) -> None:
    metres = positions(truth, toy_clips, LANDMARKS)
    assert metres.shape == (*truth.logit.shape, 4)  # object x y, effector x y
    state = torch.from_numpy(toy_clips.cache.episode(0).sim_state)
    assert torch.allclose(metres[0, 0], 0.1 * state[1, [4, 5, 0, 1]])
    last = len(state) - 1
    assert torch.allclose(metres[0, last - 1 :], 0.1 * state[last, [4, 5, 0, 1]].expand_as(metres[0, last - 1 :]))


def test_the_truth_is_perfect_and_a_still_picture_equals_its_baseline(truth) -> None:
    figures = measure_frames(truth)
    valid = truth.truth.valid
    assert (figures["psnr_db"][valid] == MAX_PSNR_DB).all()
    still = replace(truth, frames=repeat_first_frame(truth.start_frames, truth.logit.shape[1]))
    figures = measure_frames(still)
    for name in ("psnr_db", "ssim", "moving_psnr_db"):
        assert torch.equal(figures[name].nan_to_num(), figures[f"{name}_first_frame"].nan_to_num())
    assert figures["psnr_db"][valid].max() < MAX_PSNR_DB


def test_state_error_is_in_centimetres_beside_its_floor(truth, toy_clips) -> None:
    moved = replace(truth, proprio=truth.proprio + torch.tensor([0.2, 0.0, 0.0, 0.0]))
    true_m = positions(truth, toy_clips, LANDMARKS)
    figures = measure_state_error(
        moved, _seen(truth, toy_clips, offset_m=0.03), _seen(truth, toy_clips, offset_m=0.01), true_m, LANDMARKS
    )
    count = truth.logit.numel()
    assert figures["object_error_cm"].flatten().tolist() == pytest.approx([3.0] * count, abs=1e-4)
    assert figures["object_error_cm_floor"].flatten().tolist() == pytest.approx([1.0] * count, abs=1e-4)
    assert figures["effector_error_cm_floor"].max() < 1e-4
    # the effector is in the proprio as well: 0.2 units are 2 cm
    assert figures["effector_error_cm_proprio"][truth.truth.valid].mean().item() == pytest.approx(2.0, abs=1e-4)
    assert "object_error_cm_proprio" not in figures


def test_visual_alignment_compares_what_is_seen_with_what_was_simulated(truth, toy_clips) -> None:
    outcomes = tuple(m.outcome for m in toy_clips.cache.metas)
    right = _seen(truth, toy_clips)
    blind = _seen(truth, toy_clips, logit=torch.full_like(truth.logit, 3.0))
    figures = compute_visual_alignment(truth, blind, right, outcomes, 0.0)
    assert figures["imagined"]["balanced_accuracy"]["value"] == 0.5
    assert figures["simulated"]["balanced_accuracy"]["value"] == 1.0


def test_following_actions_by_hand(truth, toy_clips) -> None:
    seen, true_m = _seen(truth, toy_clips), positions(truth, toy_clips, LANDMARKS)
    figures = follow_actions(truth, toy_clips, seen, true_m, LANDMARKS)
    assert (figures["num_pairs"], figures["num_states"]) == (9, 3)
    for name in ("image", "object", "effector"):
        assert figures[name]["ratio"]["value"] == pytest.approx(1.0, abs=1e-4)
        assert figures[name]["correlation"]["value"] == pytest.approx(1.0, abs=1e-4)
    still = replace(truth, frames=repeat_first_frame(truth.start_frames, truth.logit.shape[1]))
    frozen = replace(seen, position_m=torch.zeros_like(seen.position_m))
    figures = follow_actions(still, toy_clips, frozen, true_m, LANDMARKS)
    assert figures["image"]["ratio"]["value"] == figures["object"]["ratio"]["value"] == 0.0
    alone = replace(truth, truth=truth.truth.rows([0, 3, 6]), logit=truth.logit[[0, 3, 6]])
    assert follow_actions(alone, toy_clips, seen, true_m, LANDMARKS) is None


def test_uncertainty_is_judged_by_what_came_true(truth) -> None:
    valid = truth.truth.valid
    actual = torch.rand(valid.shape, generator=torch.Generator().manual_seed(0)) * 10 + 20
    by_frame = {"psnr_db": actual, "object_error_cm": 50 - actual}
    assert judge_uncertainty(truth, by_frame) is None  # the model says nothing
    figures = judge_uncertainty(replace(truth, expected_psnr_db=2 * actual - 22), by_frame)
    assert figures is not None
    assert figures["n"] == int(valid.sum())
    assert figures["rank_correlation"]["value"] == pytest.approx(1.0)
    assert figures["rank_correlation_object_error_cm"]["value"] == pytest.approx(-1.0)
    assert figures["bias_db"]["value"] == pytest.approx(float((actual - 22)[valid].mean()), abs=1e-3)
    # Successes score 3 and the rest -3, except that the uncertain half has it the other way round.
    lowest = actual.masked_fill(~valid, torch.inf).amin(1)
    wrong = torch.where((lowest <= lowest.median())[:, None], -truth.logit, truth.logit)
    figures = judge_uncertainty(replace(truth, logit=wrong, expected_psnr_db=actual), by_frame)
    assert figures is not None
    assert figures["auc_by_certainty"]["certain"]["value"] > figures["auc_by_certainty"]["uncertain"]["value"]


def test_branches_of_one_episode_share_its_best_score() -> None:
    clip = _clip(index=[[0, 0], [0, 1], [2, 0]], success=[0, 1, 0])
    branches = Branches(clip.frames, clip.proprio, torch.tensor([[0.5], [2.0], [1.0]]), clip)
    assert best_by_episode(branches, torch.tensor([2, 0])).tolist() == [1.0, 2.0]
    figures = align_branches(branches)
    assert (figures["n"], figures["num_success"], figures["auc"]["value"]) == (3, 1, 1.0)


def _clip(index: list[list[int]], success: list[int]):
    from worldloop.core.types import Clip

    n = len(index)
    frames = torch.zeros(n, 1, 2, 2, 3, dtype=torch.uint8)
    return Clip(
        context=frames, context_proprio=torch.zeros(n, 1), actions=torch.zeros(n, 1, 1, 1), frames=frames,
        proprio=torch.zeros(n, 1, 1), success=torch.tensor(success)[:, None].float(),
        valid=torch.ones(n, 1, dtype=torch.bool), instruction=("i",) * n, index=torch.tensor(index),
        is_on_policy=torch.zeros(n, dtype=torch.bool),
    )  # fmt: skip


def test_summary_leaves_out_what_is_not_defined() -> None:
    values = torch.tensor([[1.0, 3.0, 99.0], [torch.nan, 5.0, 7.0], [99.0, 99.0, 99.0]])
    valid = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
    figures = summarise(values, valid)
    assert figures["mean"]["value"] == pytest.approx((2.0 + 6.0) / 2)
    assert figures["end"]["value"] == pytest.approx((3.0 + 7.0) / 2)
    assert [(p["frame"], p["n"], p["value"]) for p in figures["by_frame"]] == [(1, 1, 1.0), (2, 2, 4.0), (3, 1, 7.0)]
    assert average(torch.full((3,), torch.nan)) is None


def test_average_has_an_interval() -> None:
    figures = average(torch.from_numpy(np.arange(100.0)))
    assert figures["value"] == pytest.approx(49.5)
    assert figures["n"] == 100
    # standard error of the mean: 28.87 / 10, of which the interval spans about 2 x 1.96
    assert figures["high"] - figures["low"] == pytest.approx(2 * 1.96 * 2.887, rel=0.1)
