from dataclasses import replace

import pytest
import torch
from imagined import repeat_start

from worldloop.evaluation.action_following import follow_actions
from worldloop.evaluation.visual_state import locate_landmarks


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


def test_the_image_distance_is_the_mean_over_cameras(truth, toy_clips, spec, see_truth) -> None:
    """A second camera in which nothing ever moves halves the distances."""
    seen, true_m, marks = see_truth(), locate_landmarks(truth, toy_clips, spec), spec.tasks[0].landmarks
    black = {name: torch.zeros_like(views["base_camera"])[..., :8, :6, :] for name, views in (
        ("frames", truth.truth.frames), ("context", truth.truth.context))}  # fmt: skip
    both = replace(
        truth,
        frames=truth.frames | {"wall": black["frames"]},
        truth=replace(truth.truth, **{name: getattr(truth.truth, name) | {"wall": black[name]} for name in black}),
    )
    one, two = (follow_actions(branches, toy_clips, seen, true_m, marks) for branches in (truth, both))
    assert two.image.simulated == pytest.approx(one.image.simulated / 2, abs=1e-4)
    assert two.image.ratio.value == pytest.approx(1.0)
