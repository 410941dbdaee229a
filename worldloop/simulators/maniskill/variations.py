"""Changes of a ManiSkill scene that no training has seen, to test a policy with. Imports sapien in functions only.

Three change what is seen, `camera` from where the base camera sees it, and two the object. Physics stays, except for
the object's size and shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from worldloop.simulators.maniskill.family import CameraPose

TABLE_COLOUR = (0.25, 0.32, 0.42, 1.0)  # a blue-grey cloth in place of wood
CUBE_COLOUR = (0.55, 0.1, 0.6, 1.0)  # purple
AMBIENT = (0.75, 0.6, 0.4)  # warm and bright; ManiSkill's is (0.3, 0.3, 0.3)
CAMERA_SHIFT_M = (0.03, -0.05, 0.04)
SMALLER = (0.75, 0.75, 1.0)  # of the object's edges; as high as before, or no stack would count
BLOCK = (1.0, 0.65, 1.0)  # of the object's edges


def _paint(actor: Any, colour: tuple[float, ...]) -> None:
    """Give every part of ``actor`` one colour and no texture."""
    import sapien

    for entity in actor._objs:
        body = entity.find_component_by_type(sapien.render.RenderBodyComponent)
        for shape in body.render_shapes:
            for part in getattr(shape, "parts", [shape]):
                material = part.material
                material.set_base_color_texture(None)
                material.set_base_color(list(colour))


def _find_cube(env: Any) -> Any:
    """The object of a task, which ManiSkill's tasks call by different names."""
    return next(getattr(env, name) for name in ("obj", "cubeA", "cube", "ball") if hasattr(env, name))


def _light(env: Any) -> None:
    for scene in env.scene.sub_scenes:
        scene.set_ambient_light(list(AMBIENT))


# Name -> what it does to an environment that has been made; nothing for those that other functions here know.
VARIATIONS: dict[str, Callable[[Any], None]] = {
    "background": lambda env: _paint(env.table_scene.table, TABLE_COLOUR),
    "colour": lambda env: _paint(_find_cube(env), CUBE_COLOUR),
    "lighting": _light,
    "camera": lambda env: None,
    "size": lambda env: None,
    "shape": lambda env: None,
}


def move_camera(variation: str, view: CameraPose) -> CameraPose:
    """``view``, from some centimetres beside if the variation is ``camera``."""
    if variation != "camera":
        return view
    x, y, z = (a + b for a, b in zip(view.eye_m, CAMERA_SHIFT_M, strict=True))
    return replace(view, eye_m=(x, y, z))


@contextmanager
def changed_object(variation: str) -> Iterator[None]:
    """Within this context, ManiSkill builds the tasks' object thinner (``size``) or narrow (``shape``)."""
    edges = {"size": SMALLER, "shape": BLOCK}.get(variation)
    if edges is None:
        yield
        return
    from mani_skill.utils.building import actors

    build_cube = actors.build_cube

    def build(scene: Any, half_size: float, color: Any, name: str, **settings: Any) -> Any:
        if name == "cubeB":  # what is stacked upon
            return build_cube(scene, half_size=half_size, color=color, name=name, **settings)
        half_sizes = list(np.multiply(half_size, edges))
        return actors.build_box(scene, half_sizes=half_sizes, color=color, name=name, **settings)

    actors.build_cube = build
    try:
        yield
    finally:
        actors.build_cube = build_cube
