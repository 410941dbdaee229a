import pytest
import torch

from worldloop.core import images
from worldloop.networks.frame_stack import FrameStackEncoder


@pytest.mark.parametrize("only_keypoints", [False, True])
def test_the_background_is_taken_off_and_the_rest_is_four_times_as_strong(only_keypoints: bool) -> None:
    background, first, frame = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.manual_seed(0)
    plain = FrameStackEncoder(3, 16, only_keypoints=only_keypoints)
    torch.manual_seed(0)  # the same weights
    encoder = FrameStackEncoder(3, 16, background, only_keypoints=only_keypoints)
    nothing = torch.zeros(1, 3, 16, 16)
    torch.testing.assert_close(encoder(background[None], background[None]), plain(nothing, nothing))
    expected = plain(4 * (first - background)[None], 4 * (frame - background)[None])
    torch.testing.assert_close(encoder(first[None], frame[None]), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(expected, plain(nothing, nothing), atol=1e-2)


@pytest.mark.parametrize("only_keypoints", [False, True])
def test_features_tell_where_a_square_is_and_what_the_background_is_not(only_keypoints: bool) -> None:
    torch.manual_seed(0)
    encoder = FrameStackEncoder(3, 16, torch.zeros(3, 16, 16), only_keypoints=only_keypoints)
    frames = torch.full((3, 16, 16, 3), 100, dtype=torch.uint8)
    frames[1, 2:5, 2:5] = 250
    frames[2, 9:12, 9:12] = 250
    frames = images.to_network(frames)
    first = frames[:1].expand(3, -1, -1, -1)
    features = encoder(first, frames)
    assert features.shape == (3, encoder.dim)
    assert features.dtype == torch.float32
    distance = torch.cdist(features, features)
    assert (distance + 10 * torch.eye(3) > 0.01).all()
    swapped = encoder(frames, first)
    assert not torch.allclose(swapped[1], features[1], atol=1e-2), "first and now are told apart"


@pytest.mark.parametrize(("size", "patch", "cells"), [((48, 64), 4, 6 * 8), ((8, 12), 1, 4 * 6), (64, 4, 8 * 8)])
def test_pictures_need_not_be_square(size: int | tuple[int, int], patch: int, cells: int) -> None:
    height, width = (size, size) if isinstance(size, int) else size
    encoder = FrameStackEncoder(3, size, torch.zeros(3, height, width))
    assert encoder.patch == patch
    assert encoder.dim == 2 * 16 + 64 * cells
    frames = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    assert encoder(frames, frames).shape == (2, encoder.dim)
