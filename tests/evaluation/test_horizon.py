import numpy as np
import pytest
import torch
from imagined import make_clip, make_episodes

from worldloop.evaluation.horizon import align_branches, find_best_by_episode, judge_horizon
from worldloop.evaluation.open_loop import Branches


def _branches(logit: list[float], index: list[list[int]], success: list[int]) -> Branches:
    clip = make_clip([[s] for s in success], index=index)
    return Branches(clip.frames, clip.proprio, torch.tensor(logit)[:, None], clip)


def test_branches_of_one_episode_share_its_best_score() -> None:
    branches = _branches([0.5, 2.0, 1.0], index=[[0, 0], [0, 1], [2, 0]], success=[0, 1, 0])
    assert find_best_by_episode(branches, torch.tensor([2, 0])).tolist() == [1.0, 2.0]
    alignment = align_branches(branches)
    assert (alignment.n, alignment.num_success, alignment.auc.value) == (3, 1, 1.0)


def test_a_horizon_by_hand() -> None:
    """Episode 0 succeeds in its second branch, 1 and 2 fail; branch scores 3 > 2 > 1 > 0 > -1."""
    episodes = make_episodes([0.0, 0.0, 0.0], [1, 0, 0])
    branches = _branches(
        [2.0, 1.0, 0.0, 3.0, -1.0], index=[[0, 0], [0, 1], [1, 0], [1, 1], [2, 0]], success=[0, 1, 0, 0, 0]
    )
    horizon = judge_horizon(2, branches, episodes)
    assert horizon.episodes_auc.value == 0.5  # of the failures, 3 beats the success's 2 and -1 does not
    assert horizon.branches.auc.value == 0.5  # the successful branch beats 0 and -1, not 2 and 3
    figures = horizon.to_dict()
    assert (figures["chunks"], figures["branches"]["n"], figures["branches"]["num_success"]) == (2, 5, 1)
    assert figures["episodes"]["auc"]["value"] == figures["branches"]["auc"]["value"] == 0.5


def test_one_outcome_has_no_auc_and_a_diverged_model_is_an_error() -> None:
    episodes = make_episodes([0.0, 0.0], [0, 0])
    figures = judge_horizon(1, _branches([0.0, 1.0], [[0, 0], [1, 0]], [0, 0]), episodes).to_dict()
    assert figures["episodes"] == {"auc": None}
    assert figures["branches"] == {"n": 2, "num_success": 0, "auc": None}
    with pytest.raises(ValueError, match="NaN"):
        judge_horizon(1, _branches([0.0, np.nan], [[0, 0], [1, 0]], [0, 0]), episodes)
