"""Times, points on an image, and the local coordinate systems that a vector places there."""

import math

import pytest
import torch

from worldloop.networks.embeddings import PoseMaps, embed_time, find_points


def place(maps: PoseMaps, affine: list[list[float]]) -> torch.Tensor:
    """The maps [channels, size, size] of one pose that is ``affine``, whatever the vector says."""
    torch.nn.init.zeros_(maps.poses[-1].weight)
    maps.poses[-1].bias.data = torch.tensor(affine).flatten() / maps.GAIN
    return maps(torch.zeros(1, 2))[0]


def test_time_embedding_tells_times_apart() -> None:
    embedded = embed_time(torch.tensor([0.0, 0.01, 0.5, 1.0]), 16)
    distance = torch.cdist(embedded, embedded) + torch.eye(4)
    assert distance.min() > 0.1


def test_time_embedding_by_hand() -> None:
    embedded = embed_time(torch.tensor([0.0, 0.001, 0.002]), 4)
    slow = 1000**-0.5  # two frequencies, 1 and 1000^(-1/2), of the time in thousandths
    expected = [[math.cos(k), math.cos(k * slow), math.sin(k), math.sin(k * slow)] for k in (0, 1, 2)]
    torch.testing.assert_close(embedded, torch.tensor(expected), atol=1e-6, rtol=1e-6)


def test_pose_maps_by_hand() -> None:
    maps = PoseMaps(input_dim=2, num_poses=1, size=5)
    torch.nn.init.constant_(maps.log_width, math.log(0.5))
    drawn = place(maps, [[2.0, 0.0, -1.0], [0.0, 1.0, 0.5]])  # u = 2 x - 1, v = y + 1 / 2
    assert drawn.shape == (maps.channels, 5, 5) == (13, 5, 5)
    x, y = 1.0, -1.0  # the corner in the last column of the first row
    u, v = 2 * x - 1, y + 0.5
    window = math.exp(-(u * u + v * v) / (2 * 0.25))
    waves = [f(k * math.pi * c) for k in (1, 2, 4) for f in (math.sin, math.cos) for c in (u, v)]
    expected = torch.tensor([window, *(window * wave for wave in waves)])
    torch.testing.assert_close(drawn[:, 0, 4], expected, atol=1e-5, rtol=1e-5)


def test_a_part_looks_the_same_wherever_its_pose_is() -> None:
    maps = PoseMaps(input_dim=2, num_poses=1, size=9)
    here = place(maps, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    there = place(maps, [[1.0, 0.0, -0.5], [0.0, 1.0, 0.25]])  # two columns to the right, one row up
    torch.testing.assert_close(here[:, 1:, :-2], there[:, :-1, 2:], atol=1e-5, rtol=1e-5)


def test_pose_maps_follow_the_vector() -> None:
    torch.manual_seed(0)
    maps = PoseMaps(input_dim=2, num_poses=3, size=4)
    drawn = maps(torch.randn(2, 2))
    assert drawn.shape == (2, 39, 4, 4)
    assert (drawn[0] - drawn[1]).abs().max() > 1e-3


def test_a_point_is_where_the_map_is_bright() -> None:
    maps = torch.zeros(2, 1, 8, 8)
    maps[0, 0, 1, 6] = maps[1, 0, 7, 0] = 1.0
    axis = torch.linspace(-1, 1, 8)
    assert torch.allclose(find_points(maps, 4.0)[:, 0], torch.stack([axis[[1, 7]], axis[[6, 0]]], dim=1), atol=1e-4)


def test_two_equal_places_meet_in_the_middle_and_a_flat_map_in_the_centre() -> None:
    maps = torch.zeros(1, 2, 6, 10)
    maps[0, 0, 2, 1] = maps[0, 0, 2, 8] = 1.0
    (y, x), centre = find_points(maps, 4.0)[0].tolist()
    assert y == pytest.approx(2 * 2 / 5 - 1, abs=1e-3)
    assert x == pytest.approx(0.0, abs=1e-5)
    assert centre == pytest.approx([0.0, 0.0], abs=1e-6)
