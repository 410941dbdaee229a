"""Picking things up: where to grasp an object, and the way there. Lengths were found by trying."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from worldloop.simulators.libero.hand import CLOSED, GRASP_STEPS, OPEN, UP, Hand, Vector, point_down

CLEARANCE_M = 0.12  # from where the hand starts to go down to the grasp
NEAR_M = 0.06  # from the grasp, where it slows down
BACK_OFF_M = 0.22  # of a hand that comes in at an angle
WIDE_M, NARROW_M = 0.075, 0.075  # fingers open 8 cm: an object that is wider along y is grasped along x
BOWL_RADIUS_M, BOWL_HEIGHT_M = 0.0475, 0.05  # of the rim, in the bowl's own frame
PLATE_EDGE_M = 0.006  # the fingers' middle is so far inside the plate's edge
FLOOR_GAP_M = 0.008  # fingers end so far above what the object stands on


@dataclass(frozen=True)
class Grasp:
    """Where and how to grasp.

    - ``at``: ``top`` (the whole object between the fingers), ``bowl`` or ``plate`` (one finger inside of the rim)
    - ``depth_m``: how far below the top
    - ``along``, ``side``: the rim's point that lies furthest in this direction of the world
    - ``roll_rad``: by which the fingers lean, see `point_down`
    - ``travel_z_m``: height at which the hand comes; the object's top and the hand's own are the least
    """

    at: Literal["top", "bowl", "plate"]
    depth_m: float
    along: Literal["x", "y"] = "y"
    side: float = 1.0
    roll_rad: float = 0.0
    travel_z_m: float = 0.0


def choose_grasp(name: str) -> Grasp:
    """The grasp for an object by its name in LIBERO."""
    if "bowl" in name:
        return Grasp("bowl", depth_m=0.018)
    if "plate" in name:
        return Grasp("plate", depth_m=0.012)
    if "wine_bottle" in name:
        return Grasp("top", depth_m=0.07)
    return Grasp("top", depth_m=0.025)


def find_grasp(hand: Hand, name: str, grasp: Grasp) -> tuple[Vector, float]:
    """The point between the fingers f64 [3] and the yaw (rad) with which to grasp the object, before any shift."""
    low, high = hand.scene.bounds_of(name)
    middle, size = (low + high) / 2, high - low
    if grasp.at == "bowl":
        angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
        ring = np.stack([BOWL_RADIUS_M * np.cos(angle), BOWL_RADIUS_M * np.sin(angle), 0 * angle + BOWL_HEIGHT_M], 1)
        rim = hand.scene.position_of(name) + ring @ hand.scene.rotation_of(name).T  # the bowl may be tilted
        point = rim[np.argmax(grasp.side * rim[:, "xy".index(grasp.along)])]
        return point - grasp.depth_m * UP, 0.0 if grasp.along == "y" else np.pi / 2
    if grasp.at == "plate":
        edge = middle + np.array([0.0, grasp.side * (size[1] / 2 - PLATE_EDGE_M), 0.0])
        return np.array([edge[0], edge[1], high[2] - grasp.depth_m]), 0.0
    height = max(high[2] - grasp.depth_m, low[2] + FLOOR_GAP_M)
    yaw = np.pi / 2 if size[1] > WIDE_M and size[0] < NARROW_M else 0.0
    return np.array([middle[0], middle[1], height]), yaw


def pick(hand: Hand, name: str, grasp: Grasp) -> Iterator[Vector]:
    """Go above the object, down, and close the fingers; a shifted grasp goes where the deviation says."""
    point, yaw = find_grasp(hand, name, grasp)
    point = point + hand.deviation.grasp_shift
    pose, fingers_point = point_down(yaw, grasp.roll_rad), -UP
    if grasp.roll_rad:
        fingers_point = np.array([0.0, np.sin(grasp.roll_rad), -np.cos(grasp.roll_rad)])
        yield from hand.move(point - BACK_OFF_M * fingers_point, OPEN, pose, within_m=0.015, max_steps=120)
    else:
        _, high = hand.scene.bounds_of(name)
        height = max(high[2], grasp.travel_z_m or hand.position[2], point[2] + CLEARANCE_M)
        yield from hand.move(np.array([point[0], point[1], height]), OPEN, pose, within_m=0.015)
    yield from hand.move(point - NEAR_M * fingers_point, OPEN, pose, within_m=0.008)
    yield from hand.move(point, OPEN, pose, within_m=0.006, max_steps=40, cap=0.7)
    yield from hand.hold(CLOSED, pose, GRASP_STEPS)
    if grasp.roll_rad:
        yield from hand.move(point - 0.2 * fingers_point, CLOSED, pose, within_m=0.02)
