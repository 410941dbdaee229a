"""Points on an image: found in a feature map, and drawn back onto one."""

import pytest
import torch

from worldloop.networks.embeddings import find_points


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
