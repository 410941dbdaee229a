"""The features of a LeRobot dataset that was recorded elsewhere, as its ``meta/info.json`` describes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldloop.core.errors import WorldloopError
from worldloop.sans.lerobot_format import IMAGE_PREFIX

_NUMERIC = ("float", "int", "uint", "bool")  # how the names of numeric types begin
_ADDED = ("timestamp", "frame_index", "episode_index", "index", "task_index")  # features that LeRobot adds


def list_cameras(features: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Camera name, e.g. ``top`` -> its feature, e.g. ``observation.images.top``, in the dataset's order.

    Depth maps are left out.
    """
    cameras = [
        key
        for key, feature in features.items()
        if feature["dtype"] in ("image", "video") and not _is_depth(feature.get("info") or {})
    ]
    return {name_camera(key): key for key in cameras}


def name_camera(feature: str) -> str:
    """``observation.images.top`` -> ``top``."""
    return feature.removeprefix(IMAGE_PREFIX)


def _is_depth(info: dict[str, Any]) -> bool:
    return bool(info.get("is_depth_map") or info.get("video.is_depth_map"))


def name_dimensions(feature: dict[str, Any], kind: str) -> tuple[str, ...]:
    """Names of the dimensions of a vector feature. LeRobot stores a list, a mapping to lists, or nothing.

    If there is not one name per dimension, the names are ``kind_0``, ``kind_1``, ...
    """
    names, size = feature.get("names"), int(np.prod(feature["shape"]))
    if isinstance(names, dict):
        names = [name for values in names.values() for name in (values if isinstance(values, list) else [values])]
    if not names or len(names) != size:
        names = [f"{kind}_{i}" for i in range(size)]
    return tuple(str(name) for name in names)


def is_unnamed(names: Sequence[str], kind: str) -> bool:
    """Whether ``names`` are those that `name_dimensions` gives where the dataset has none."""
    return tuple(names) == tuple(f"{kind}_{i}" for i in range(len(names)))


def name_actions(feature: dict[str, Any], actions_per_row: int) -> tuple[str, ...]:
    """Names of the dimensions of one action, of which a row holds ``actions_per_row`` side by side.

    Those of ``dx_0, dy_0, dx_1, dy_1``, as `worldloop sans merge` writes them, are ``dx, dy``. Raises `WorldloopError`
    if the dimensions cannot be shared out.
    """
    names = name_dimensions(feature, "action")
    if actions_per_row == 1:
        return names
    if len(names) % actions_per_row:
        raise WorldloopError(
            f"recording.actions_per_row is {actions_per_row}, which does not divide the {len(names)} dimensions of "
            "recording.action_key"
        )
    own = tuple(name.removesuffix("_0") for name in names[: len(names) // actions_per_row])
    stacked = tuple(f"{name}_{i}" for i in range(actions_per_row) for name in own)
    if names == stacked and not is_unnamed(names, "action"):
        return own
    return tuple(f"action_{i}" for i in range(len(own)))


def require_numeric(root: Path, features: Mapping[str, Mapping[str, Any]], setting: str, key: str) -> None:
    """Raise `WorldloopError` naming ``setting`` and what there is instead, unless ``key`` is a feature of numbers."""
    if key in features and str(features[key]["dtype"]).startswith(_NUMERIC):
        return
    what = f"which is {features[key]['dtype']}, not numbers" if key in features else "which it does not have"
    known = [k for k, f in features.items() if str(f["dtype"]).startswith(_NUMERIC) and k not in _ADDED]
    raise WorldloopError(
        f"recording.{setting} asks dataset {root} for {key!r}, {what}; its features of numbers are: "
        f"{', '.join(known) or 'none'}; all: {', '.join(features)}"
    )
