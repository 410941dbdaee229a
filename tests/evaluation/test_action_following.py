from dataclasses import replace

import pytest
import torch

from worldloop.evaluation.action_following import follow_actions
from worldloop.evaluation.fidelity import repeat_first_frame
from worldloop.evaluation.open_loop import Branches
from worldloop.evaluation.visual_state import locate_landmarks


def repeat_start(branches: Branches) -> dict[str, torch.Tensor]:
    num_frames = branches.logit.shape[1]
    return {camera: repeat_first_frame(first, num_frames) for camera, first in branches.start_frames.items()}


def test_following_actions_by_hand(truth, toy_clips, spec, see_truth) -> None:
    seen, true_m = see_truth(), locate_landmarks(truth, toy_clips, spec)
    perfect = follow_actions(truth, toy_clips, seen, true_m, spec.tasks[0].landmarks)
    assert (perfect.num_pairs, perfect.num_states) == (9, 3)
    for separation in (perfect.image, perfect.landmarks["object"], perfect.landmarks["effector"]):
        assert separation.imagined == pytest.approx(separation.simulated, abs=1e-4)
        assert separation.ratio.value == pytest.approx(1.0, abs=1e-4)
        assert separation.correlation.value == pytest.approx(1.0, abs=1e-4)
    figures = perfect.to_dict()
    assert set(figures) == {"num_pairs", "num_states", "image", "object", "effector"}
    assert figures["image"]["ratio"] == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_frozen_frames_follow_no_action(truth, toy_clips, spec, see_truth) -> None:
    seen, true_m = see_truth(), locate_landmarks(truth, toy_clips, spec)
    still = replace(truth, frames=repeat_start(truth))
    frozen = replace(seen, position_m=torch.zeros_like(seen.position_m))
    following = follow_actions(still, toy_clips, frozen, true_m, spec.tasks[0].landmarks)
    assert following.image.ratio.value == following.landmarks["object"].ratio.value == 0.0
    # Without any variation there is no correlation.
    assert following.to_dict()["image"]["correlation"] == {"value": None, "low": None, "high": None}


def test_one_episode_a_state_has_no_pair(truth, toy_clips, spec, see_truth) -> None:
    alone = replace(truth, truth=truth.truth.rows([0, 3, 6]), logit=truth.logit[[0, 3, 6]])
    true_m = locate_landmarks(truth, toy_clips, spec)
    assert follow_actions(alone, toy_clips, see_truth(), true_m, spec.tasks[0].landmarks) is None
