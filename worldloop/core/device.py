"""The device on which networks train and imagine."""

from __future__ import annotations

import torch

from worldloop.core.errors import WorldloopError


def choose_device(name: str) -> torch.device:
    """The device called ``name``: ``cpu``, ``cuda`` or ``auto`` (a GPU if there is one, else the CPU).

    Raises `WorldloopError` for another name, and for ``cuda`` without a GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise WorldloopError(f"device {name!r} is not known: auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise WorldloopError("device is cuda (resources.device in a config), but torch sees no GPU; use cpu or auto")
    return torch.device(name)
