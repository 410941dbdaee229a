"""How far a scene is from what a predicate of LIBERO demands, in metres. LIBERO itself only says true or false.

The gap is to the geometric part of the predicate; a contact that it asks for as well has no distance. It decides which
failures are near-successes, and nothing else: success is LIBERO's own predicate.

| predicate | gap |
|---|---|
| On an object | to a cylinder of 3 cm radius, LIBERO's, from its frame up to 5 cm above |
| On, In a region | to the region's box, as LIBERO measures it |
| Open, Close | what is left of the drawer's way; of a door's angle, times 5 cm per rad |
| Turnon, Turnoff | what is left of the knob's angle, times 5 cm per rad |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Vector = NDArray[np.float64]

ON_RADIUS_M = 0.03  # of LIBERO's predicate On
ON_HEIGHT_M = 0.05  # an object that is held higher than so is not yet there
SITE_HEIGHT_M = 0.10  # above a region, of LIBERO's On
SITE_SLACK_M, BOX_SLACK_M = 0.005, 0.01  # that On and In leave below
LEVER_M = 0.05  # an angle counts as the way of a point so far from the axis


@dataclass(frozen=True)
class Gap:
    """``distance_m``: 0 where the geometric part holds.

    ``thing`` f64 [3]: where the object is that has to move; ``place`` f64 [3]: where it has to be.
    """

    distance_m: float
    thing: Vector
    place: Vector


def measure_predicate(scene: Any, predicate: tuple[str, ...]) -> Gap:
    """The gap of one predicate; ``ValueError`` for one that is not known. ``scene``: a `Scene`."""
    name, *arguments = predicate
    if name in ("on", "in") and len(arguments) == 2:
        return _measure_place(scene, name, *arguments)
    if name in ("open", "close", "turnon", "turnoff") and len(arguments) == 1:
        gaps = [_measure_joint(scene, name, arguments[0], joint) for joint in _find_joints(scene, arguments[0])]
        # a thing is open or on if one of its joints is, closed or off if all are
        choose = min if name in ("open", "turnon") else max
        return choose(gaps, key=lambda gap: gap.distance_m)
    raise ValueError(f"no distance is known for LIBERO's predicate {' '.join(predicate)!r}")


def _measure_place(scene: Any, name: str, thing: str, place: str) -> Gap:
    position, target = scene.position_of(thing), scene.position_of(place)
    offset = position - target
    if place not in scene.env.object_sites_dict:
        beside = max(float(np.linalg.norm(offset[:2])) - ON_RADIUS_M, 0.0)
        above = max(-float(offset[2]), float(offset[2]) - ON_HEIGHT_M, 0.0)
        return Gap(float(np.hypot(beside, above)), position, target)
    size = np.array(scene.env.object_sites_dict[place].size)
    rotation = scene.rotation_of(place)
    if name == "on":
        inside = rotation @ offset
        low = np.array([-size[0], -size[1], size[2] - SITE_SLACK_M])
        high = np.array([size[0], size[1], size[2] + SITE_HEIGHT_M])
    else:
        inside, high = offset, np.abs(rotation @ size)
        low = -high - np.array([0.0, 0.0, BOX_SLACK_M])
    outside = np.maximum(np.maximum(low - inside, inside - high), 0.0)
    return Gap(float(np.linalg.norm(outside)), position, target)


def _find_joints(scene: Any, thing: str) -> list[str]:
    sites = scene.env.object_sites_dict
    return list((sites[thing] if thing in sites else scene.env.get_object(thing)).joints)


def _measure_joint(scene: Any, name: str, thing: str, joint: str) -> Gap:
    sites = scene.env.object_sites_dict
    owner = scene.env.get_object(sites[thing].parent_name) if thing in sites else scene.env.get_object(thing)
    ends = owner.object_properties["articulation"][f"default_{name}_ranges"]
    position, axis, anchor, is_hinge = scene.read_joint(joint)
    if name in ("open", "turnon"):  # beyond the end that is nearer to 0
        threshold = min(ends, key=abs)
        left = max(0.0, (threshold - position) * np.sign(threshold))
    else:
        threshold = 0.0
        left = abs(position)
    if not is_hinge:
        spot = scene.position_of(thing)
        return Gap(left, spot, spot + axis * (threshold - position))
    arm = LEVER_M * (np.eye(3)[int(np.argmin(np.abs(axis)))])  # a direction across the axis
    arm = np.cross(axis, np.cross(arm, axis))
    arm *= LEVER_M / np.linalg.norm(arm)
    spots = [anchor + Rotation.from_rotvec(axis * angle).apply(arm) for angle in (position, threshold)]
    return Gap(LEVER_M * left, *spots)
