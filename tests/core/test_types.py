"""What a rollout says of its rows: by hand."""

from dataclasses import replace

import pytest
import torch
from hand_rollouts import make_rollout, make_step

from worldloop.core.types import Rollout


def test_a_success_counts_where_its_action_does() -> None:
    first = make_step([[0.5]] * 3, [[True, True], [True, True], [True, False]])
    second = make_step([[0.5]] * 3, [[True, False], [False, False], [True, True]], 0, 1)
    rollout = make_rollout(first, second)
    assert rollout.success.tolist() == [True, False, False]  # row 1 had ended before
    assert rollout.valid.tolist() == [
        [True, True, True, False],
        [True, True, False, False],
        [True, False, True, True],
    ]


def test_the_least_certain_frame_is_that_of_all_chunks() -> None:
    step = make_step([[0.5, 0.5]] * 2, [[True, True]] * 2)
    first = replace(step, expected_psnr_db=torch.tensor([[30.0, 25.0], [torch.inf, torch.inf]]))
    second = replace(step, expected_psnr_db=torch.tensor([[27.0, 26.0], [torch.inf, torch.inf]]))
    lowest = make_rollout(first, second).lowest_expected_psnr_db
    assert lowest is not None
    assert lowest.tolist() == [25.0, torch.inf]
    assert make_rollout(first, step).lowest_expected_psnr_db is None


def test_a_rollout_has_an_observation_and_a_chunk_for_every_step() -> None:
    rollout = make_rollout(make_step([[0.5]], [[True]]))
    for changes in ({"steps": ()}, {"chunks": ()}, {"observations": rollout.observations * 2}):
        with pytest.raises(ValueError, match="as many observations as chunks and steps"):
            replace(rollout, **changes)
    with pytest.raises(ValueError, match="at least one"):
        Rollout("imagined", rollout.group_id, ("a",), (), (), (), "p", "w")
