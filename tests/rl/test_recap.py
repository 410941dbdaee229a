"""Which imagined chunks are called good."""

from __future__ import annotations

from dataclasses import replace

import torch
from hand_rollouts import make_chunk, make_rollout, make_step

from worldloop.core.types import Rollout
from worldloop.rl.advantages import compute_group_advantages
from worldloop.rl.recap import label_first_chunks


def two_chunks() -> Rollout:
    """Four rows of two chunks; of row 1 one action of the first chunk counts."""
    first = make_step([[0.5]] * 4, [[True, True], [True, False], [True, True], [True, True]], 1)
    second = make_step([[0.5]] * 4, [[True, True], [False, False], [True, True], [True, False]], 1)
    return make_rollout(first, second, chunks=[make_chunk(0), make_chunk(1)], task=["t", "u", "t", "v"])


GROUPS = compute_group_advantages(torch.tensor([1.0, 0.0, 0.5, 0.3]), torch.tensor([0, 0, 0, 1]), normalises=False)


def test_first_chunks_above_the_threshold_of_their_task_are_good() -> None:
    """Advantages .5, -.5 and 0 of the first group; row 3 is alone in its group, which tells nothing."""
    labelled = label_first_chunks(two_chunks(), GROUPS, {"t": -0.1, "u": -0.6}, ["cam"])
    assert labelled.is_good.tolist() == [1, 1, 1]
    strict = label_first_chunks(two_chunks(), GROUPS, {"t": 0.0, "u": -0.5}, ["cam"])
    assert strict.is_good.tolist() == [1, 0, 0], "a member of average return is labelled too"
    assert strict.chunks.actions[..., 0].tolist() == [[0, 1], [10, 11], [20, 21]], "those of the first chunk"
    assert strict.chunks.valid.tolist() == [[True, True], [True, False], [True, True]]
    assert strict.chunks.observation.task == ("t", "u", "t")
    assert strict.chunks.observation.env_step.tolist() == [0, 0, 0]
    assert strict.chunks.observation.sim_state is None, "nothing privileged"


def test_only_the_cameras_of_the_policy_are_kept() -> None:
    rollout = two_chunks()
    seen = rollout.observations[0]
    both = replace(seen, frames=seen.frames | {"hand": seen.frames["cam"]})
    rollout = replace(rollout, observations=(both, *rollout.observations[1:]))
    labelled = label_first_chunks(rollout, GROUPS, {"t": 0.0, "u": 0.0}, ["cam"])
    assert list(labelled.chunks.observation.frames) == ["cam"]


def test_no_group_may_tell_anything() -> None:
    alike = compute_group_advantages(torch.ones(4), torch.zeros(4, dtype=torch.long))
    assert len(label_first_chunks(two_chunks(), alike, {}, ["cam"])) == 0
