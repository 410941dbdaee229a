"""Tensors and modules by camera."""

import torch
from torch import nn

from worldloop.networks.views import ViewModules, map_views


def test_a_function_is_mapped_over_the_cameras_of_the_first() -> None:
    a, b = (
        {"x": torch.tensor(1), "y": torch.tensor(2)},
        {"z": torch.tensor(9), "y": torch.tensor(3), "x": torch.tensor(4)},
    )
    assert map_views(lambda p, q: int(p - q), a, b) == {"x": -3, "y": -1}
    assert list(map_views(torch.neg, a)) == ["x", "y"]


def test_modules_keep_the_names_and_the_order_of_their_cameras() -> None:
    views = ViewModules({"observation.image": nn.Linear(1, 1), "hand": nn.Linear(1, 2)})
    assert [(camera, module.out_features) for camera, module in views.items()] == [
        ("observation.image", 1),
        ("hand", 2),
    ]
    assert views.cameras == ("observation.image", "hand")
    assert set(views.state_dict()) == {
        f"{name}.{part}" for name in ("observation/image", "hand") for part in ("weight", "bias")
    }
