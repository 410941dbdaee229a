"""Changes of a Meta-World scene that no training has seen, to test a policy with.

All change what is seen, and physics stays. Each writes into MuJoCo's model, which is drawn from anew for every image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from worldloop.simulators.mujoco_rendering import FreeCamera

TABLE_COLOUR = (0.25, 0.32, 0.42, 1.0)  # a blue-grey cloth in place of wood
OBJECT_COLOUR = (0.55, 0.1, 0.6, 1.0)  # purple
LIGHT = (0.9, 0.65, 0.4)  # share of red, green and blue that is left: warm and dim
CAMERA_SHIFT_M = (0.03, -0.05, 0.04)
TABLE = ("tablelink",)
NOT_OBJECTS = ("world", "tablelink", "RetainingWall", "base", "mocap")  # the room and the robot


def _list_geoms(model: Any) -> Iterator[tuple[int, str]]:
    """Each geom's number, and the name of the body from which its tree of bodies begins."""
    for geom in range(model.ngeom):
        yield geom, model.body(model.body_rootid[model.geom_bodyid[geom]]).name


def _paint(model: Any, geom: int, colour: tuple[float, ...]) -> None:
    """One colour and no texture; what is not drawn stays so."""
    if model.geom_rgba[geom, 3] == 0:
        return
    model.geom_matid[geom] = -1
    model.geom_rgba[geom] = colour


def _paint_table(model: Any) -> None:
    for geom, root in _list_geoms(model):
        if root in TABLE:
            _paint(model, geom, TABLE_COLOUR)


def _paint_objects(model: Any) -> None:
    for geom, root in _list_geoms(model):
        if root not in NOT_OBJECTS:
            _paint(model, geom, OBJECT_COLOUR)


def _light(model: Any) -> None:
    """Evening light. MuJoCo's own lights do not reach the table, so the colours of all surfaces change instead."""
    model.mat_rgba[:, :3] *= LIGHT
    model.geom_rgba[:, :3] *= LIGHT
    model.site_rgba[:, :3] *= LIGHT


def _move_cameras(model: Any) -> None:
    """Those that stand beside the table; the hand's cameras stay where they are."""
    for camera in range(model.ncam):
        if model.cam_bodyid[camera] == 0:
            model.cam_pos[camera] += CAMERA_SHIFT_M


# Name -> what it does to MuJoCo's model.
VARIATIONS: dict[str, Callable[[Any], None]] = {
    "background": _paint_table,
    "colour": _paint_objects,
    "lighting": _light,
    "camera": _move_cameras,
}


def move_camera(variation: str, camera: str | FreeCamera) -> str | FreeCamera:
    """``camera``; one of ours from some centimetres beside if the variation is ``camera``."""
    if variation != "camera" or isinstance(camera, str):
        return camera
    x, y, z = (a + b for a, b in zip(camera.target_m, CAMERA_SHIFT_M, strict=True))
    return replace(camera, target_m=(x, y, z))
