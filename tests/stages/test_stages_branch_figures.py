"""Figures of imagined branches where the answer is known: the truth itself, a still picture, a shifted one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from worldloop.metrics.frame_probe import ProbeReading
from worldloop.metrics.video import MAX_PSNR_DB, repeat_first_frame
from worldloop.open_loop import Branches
from worldloop.sim.toy import ToyConfig, toy_spec
from worldloop.stages.branch_figures import (
    align_branches,
    average,
    best_by_episode,
    compute_visual_alignment,
    follow_actions,
    measure_frames,
    measure_state_error,
    positions,
    summarise,
)

LANDMARKS = toy_spec(ToyConfig()).landmarks


@pytest.fixture
def truth(toy_clips) -> Branches:
    episodes = toy_clips.episode_index()
    clip = toy_clips.load(
        torch.stack([episodes, torch.zeros_like(episodes)], dim=1), int(toy_clips.cache.num_steps.max())
    )
    return Branches(clip.frames, clip.proprio, torch.where(clip.success > 0.5, 3.0, -3.0), clip)


class _KnowingProbe:
    """Reads the simulated positions of all frames in order, wrong by ``offset_m`` along x, and outcomes by logits."""

    def __init__(self, branches: Branches, dataset, offset_m: float, logit: torch.Tensor) -> None:
        self.answer_m = positions(branches, dataset, LANDMARKS).flatten(0, 1)
        self.answer_m[:, 0] += offset_m
        self.logit = logit.flatten()

    def read(self, first: torch.Tensor, frames: torch.Tensor) -> ProbeReading:
        assert len(first) == len(frames) == len(self.answer_m)
        return ProbeReading(self.answer_m, self.logit)


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
    probe = _KnowingProbe(truth, toy_clips, offset_m=0.03, logit=truth.logit)
    moved = replace(truth, proprio=truth.proprio + torch.tensor([0.2, 0.0, 0.0, 0.0]))
    figures = measure_state_error(moved, toy_clips, probe, LANDMARKS)
    assert figures["object_error_cm"].flatten().tolist() == pytest.approx([3.0] * truth.logit.numel(), abs=1e-4)
    assert figures["effector_error_cm_floor"].max() < 1e-4
    # the effector is in the proprio as well: 0.2 units are 2 cm
    assert figures["effector_error_cm_proprio"][truth.truth.valid].mean().item() == pytest.approx(2.0, abs=1e-4)
    assert "object_error_cm_proprio" not in figures


def test_visual_alignment_compares_what_is_seen_with_what_was_simulated(truth, toy_clips) -> None:
    outcomes = tuple(m.outcome for m in toy_clips.cache.metas)
    right = _KnowingProbe(truth, toy_clips, 0.0, truth.logit)
    assert compute_visual_alignment(truth, right, outcomes, 0.0)["imagined"]["balanced_accuracy"]["value"] == 1.0
    blind = _KnowingProbe(truth, toy_clips, 0.0, torch.full_like(truth.logit, 3.0))
    assert compute_visual_alignment(truth, blind, outcomes, 0.0)["simulated"]["balanced_accuracy"]["value"] == 0.5


def test_following_actions_by_hand(truth, toy_clips) -> None:
    probe = _KnowingProbe(truth, toy_clips, 0.0, truth.logit)
    figures = follow_actions(truth, toy_clips, probe, LANDMARKS)
    assert (figures["num_pairs"], figures["num_states"]) == (9, 3)
    for name in ("image", "object", "effector"):
        assert figures[name]["ratio"]["value"] == pytest.approx(1.0, abs=1e-4)
        assert figures[name]["correlation"]["value"] == pytest.approx(1.0, abs=1e-4)
    still = replace(truth, frames=repeat_first_frame(truth.start_frames, truth.logit.shape[1]))
    assert follow_actions(still, toy_clips, probe, LANDMARKS)["image"]["ratio"]["value"] == 0.0
    alone = replace(truth, truth=truth.truth.rows([0, 3, 6]), logit=truth.logit[[0, 3, 6]])
    assert follow_actions(alone, toy_clips, probe, LANDMARKS) is None


def test_branches_of_one_episode_share_its_best_score() -> None:
    clip = _clip(index=[[0, 0], [0, 1], [2, 0]], success=[0, 1, 0])
    branches = Branches(clip.frames, clip.proprio, torch.tensor([[0.5], [2.0], [1.0]]), clip)
    assert best_by_episode(branches, torch.tensor([2, 0])).tolist() == [1.0, 2.0]
    figures = align_branches(branches)
    assert (figures["n"], figures["num_success"], figures["auc"]["value"]) == (3, 1, 1.0)


def _clip(index: list[list[int]], success: list[int]):
    from worldloop.types import Clip

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
