"""Which imagined chunks are called good."""

from __future__ import annotations

import pytest
import torch
from hand_rollouts import make_chunk, make_rollout, make_step

from worldloop.core.types import Rollout
from worldloop.rl.recap import label_first_chunks


def two_chunks() -> Rollout:
    """Four rows of two chunks; of row 1 one action of the first chunk counts."""
    first = make_step([[0.5]] * 4, [[True, True], [True, False], [True, True], [True, True]], 1)
    second = make_step([[0.5]] * 4, [[True, True], [False, False], [True, True], [True, False]], 1)
    return make_rollout(first, second, chunks=[make_chunk(0), make_chunk(1)], task=["t", "u", "t", "v"])


def test_the_best_first_chunks_are_good_and_groups_that_tell_nothing_are_left_out() -> None:
    labelled = label_first_chunks(two_chunks(), torch.tensor([0.4, -0.1, 0.0, -0.3]), positive_share=0.5)
    assert labelled.is_good.tolist() == [1, 0, 0]
    assert labelled.chunks.actions[..., 0].tolist() == [[0, 1], [10, 11], [30, 31]], "those of the first chunk"
    assert labelled.chunks.valid.tolist() == [[True, True], [True, False], [True, True]]
    assert labelled.chunks.observation.task == ("t", "u", "v")
    assert labelled.chunks.observation.env_step.tolist() == [0, 0, 0]
    assert labelled.chunks.observation.sim_state is None, "nothing privileged"


@pytest.mark.parametrize(("share", "num_good"), [(0.25, 1), (0.5, 2), (0.75, 3)])
def test_as_many_are_good_as_asked(share: float, num_good: int) -> None:
    labelled = label_first_chunks(two_chunks(), torch.tensor([0.4, -0.1, 0.2, -0.3]), share)
    assert int(labelled.is_good.sum()) == num_good
    assert labelled.is_good[0] == 1


def test_no_group_may_tell_anything() -> None:
    assert len(label_first_chunks(two_chunks(), torch.zeros(4), 0.5)) == 0


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_a_share_of_nothing_or_all_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="positive_share"):
        label_first_chunks(two_chunks(), torch.ones(4), share)
