"""Helpers for several cameras: tensors in a dict by camera, and one module per camera."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import cast

from torch import Tensor, nn


def map_views[R](function: Callable[..., R], *views: Mapping[str, Tensor]) -> dict[str, R]:
    """Camera -> ``function`` of that camera's tensors in ``views``, for the cameras of the first view dict."""
    return {camera: function(*(view[camera] for view in views)) for camera in views[0]}


class ViewModules[M: nn.Module](nn.Module):
    """One module per camera, in order.

    State dict keys contain the camera's name, with ``/`` in place of dots, which torch does not allow.
    """

    def __init__(self, modules: Mapping[str, M]) -> None:
        super().__init__()
        self.cameras = tuple(modules)
        for camera, module in modules.items():
            self.add_module(camera.replace(".", "/"), module)

    def items(self) -> Iterator[tuple[str, M]]:
        return zip(self.cameras, cast(Iterator[M], self.children()), strict=True)
