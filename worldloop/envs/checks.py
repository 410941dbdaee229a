"""Checks of the observations, options and actions that a caller gives. Bad ones raise `WorldloopError`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from worldloop.core.errors import WorldloopError
from worldloop.core.specs import SimulatorSpec
from worldloop.core.types import Observation


def refuse_unknown(options: Mapping[str, Any], known: set[str]) -> None:
    """Raise `WorldloopError` for an option of ``reset`` that is not in ``known``."""
    if unknown := sorted(set(options) - known):
        raise WorldloopError(f"reset option {unknown[0]!r} is not known: {', '.join(sorted(known))}")


def check_task(what: str, task: Any, spec: SimulatorSpec) -> str:
    """Return ``task``; raises `WorldloopError` unless it is the id of a task of ``spec``."""
    if task not in spec.task_ids:
        raise WorldloopError(
            f"{what} {task!r} is not known to this world model: it imagines {', '.join(spec.task_ids)}"
        )
    return str(task)


def check_observation(what: str, observation: Any, num_rows: int, spec: SimulatorSpec) -> Observation:
    """Return ``observation`` with only the cameras of ``spec``. ``what`` names it in an error.

    Raises `WorldloopError` unless it has ``num_rows`` rows and fits ``spec``.
    """
    if not isinstance(observation, Observation) or len(observation) != num_rows or observation.proprio is None:
        raise WorldloopError(f"{what} must be an Observation of {num_rows} rows with proprio")
    check_cameras(what, observation.frames, spec, allows_more=True)
    for camera in spec.robot.cameras:
        height, width = observation.frames[camera.name].shape[2:4]
        if (height, width) != (camera.height, camera.width):
            raise WorldloopError(
                f"{what} is {height} x {width} by camera {camera.name!r}; "
                f"this world model was made for {camera.height} x {camera.width}"
            )
    check_proprio(what, observation.proprio, spec)
    for task in observation.task:
        check_task(f"{what} has a task that does not fit: task", task, spec)
    return observation.with_cameras(spec.robot.camera_names)


def check_cameras(what: str, frames: Mapping[str, Any], spec: SimulatorSpec, allows_more: bool = False) -> None:
    """Raise unless ``frames`` has an entry for each camera of ``spec``, and no other unless ``allows_more``."""
    names = spec.robot.camera_names
    for name in names:
        if name not in frames:
            raise WorldloopError(f"{what} lacks camera {name!r}: this world model reads {', '.join(names)}")
    for name in frames:
        if name not in names and not allows_more:
            raise WorldloopError(f"{what} has a camera {name!r}: this world model reads {', '.join(names)}")


def check_proprio(what: str, proprio: Tensor, spec: SimulatorSpec) -> None:
    """Raise unless ``proprio`` is f [B, S] and finite."""
    if proprio.shape[1] != spec.robot.proprio_dim:
        raise WorldloopError(
            f"{what} has {proprio.shape[1]} proprio values; this world model was made for "
            f"{spec.robot.proprio_dim}: {', '.join(spec.robot.proprio_names)}"
        )
    if not bool(proprio.isfinite().all()):
        raise WorldloopError(f"{what} has proprio that is not finite: {proprio.tolist()[:3]}")


def read_images(given: Any, spec: SimulatorSpec) -> dict[str, Tensor]:
    """``options["image"]`` as camera name -> u8 [1, 1, h, w, 3].

    ``given`` maps each camera's name to its image. If there is only one camera, it may be the image itself.
    """
    cameras = spec.robot.cameras
    if not isinstance(given, Mapping):
        if len(cameras) > 1:
            expected = ", ".join(f"{camera.name} uint8 {(camera.height, camera.width, 3)}" for camera in cameras)
            raise WorldloopError(f"options['image'] must be a dictionary with an image of each camera: {expected}")
        given = {cameras[0].name: given}
    check_cameras("options['image']", given, spec)
    images = {}
    for camera in cameras:
        image, shape = np.asarray(given[camera.name]), (camera.height, camera.width, 3)
        if image.dtype != np.uint8 or image.shape != shape:
            raise WorldloopError(
                f"options['image'] of camera {camera.name!r} is {image.dtype} {image.shape}, expected uint8 {shape}"
            )
        images[camera.name] = torch.from_numpy(image.copy())[None, None]
    return images


def check_actions(actions: Any, num_rows: int, box: spaces.Box, spec: SimulatorSpec) -> Tensor:
    """``actions`` as f32 [num_rows, s, A]; raises unless they are finite and inside the bounds, up to rounding."""
    array = np.asarray(actions, dtype=np.float32)
    if array.shape != (num_rows, *box.low.shape):
        raise WorldloopError(f"actions have the shape {array.shape}, expected {(num_rows, *box.low.shape)}")
    slack = 1e-5 * (box.high - box.low)
    bad = ~((array >= box.low - slack) & (array <= box.high + slack))  # also true for NaN
    if bad.any():
        row, _, column = (int(i[0]) for i in np.nonzero(bad))
        name, low, high = (getattr(spec.robot, f"action_{part}")[column] for part in ("names", "low", "high"))
        raise WorldloopError(f"action {name!r} of row {row} is {array[bad][0]}, allowed: {low} to {high}")
    return torch.from_numpy(array.copy())
