"""Contexts by hand: frames are numbers, -1 standing for nothing."""

import pytest
import torch

from worldloop.core.context_frames import fill_context, shift_frames


@pytest.mark.parametrize(
    ("known", "num_frames", "expected"),
    [
        ([7], 3, [7, 7, 7]),
        ([7, 8], 3, [7, 7, 8]),
        ([0, 7, 8], 3, [0, 7, 8]),
        ([7], 5, [7, 7, 7, 7, 7]),
        ([7, 8], 5, [7, 7, 7, 7, 8]),
        ([0, 7, 8], 5, [0, 7, 7, 7, 8]),
        ([0, 5, 6, 7, 8], 5, [0, 5, 6, 7, 8]),
        ([0, 5, 6, 7, 8], 3, [0, 7, 8]),
    ],
)
def test_what_is_missing_repeats_the_oldest_known(known: list[int], num_frames: int, expected: list[int]) -> None:
    frames = torch.tensor([known, known])[..., None]
    assert fill_context(frames, num_frames)[1, :, 0].tolist() == expected


def test_the_first_frame_stays_and_the_others_move_up() -> None:
    assert shift_frames(torch.tensor([[0, 7, 8]]), torch.tensor([9])).tolist() == [[0, 8, 9]]
    assert shift_frames(torch.tensor([[0, 5, 6, 7, 8]]), torch.tensor([9])).tolist() == [[0, 6, 7, 8, 9]]


def test_a_past_fills_up_as_frames_follow() -> None:
    context = fill_context(torch.tensor([[0, 7, 8]]), 5)
    for following in (9, 10, 11):
        context = shift_frames(context, torch.tensor([following]))
    assert context.tolist() == [[0, 8, 9, 10, 11]]
