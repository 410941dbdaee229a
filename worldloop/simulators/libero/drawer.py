"""Opening a cabinet's drawer, and opening it and putting something inside. Its scripted expert and what goes wrong."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from worldloop.simulators.libero.family import LiberoTask, Script
from worldloop.simulators.libero.hand import CLOSED, GRASP_STEPS, OPEN, UP, Hand, Vector, point_down
from worldloop.simulators.libero.place import PlaceTask

CABINET = "wooden_cabinet_1"
DRAWERS = ("top", "middle", "bottom")
LEAN_RAD = -1.25  # of the hand: it points at the cabinet, one finger above the handle and one below
PULL_M = 0.22  # further than the drawer goes, since the hand lags behind
SHORT_PULL_M = 0.14  # a share of this leaves the drawer closed for LIBERO
FINGERS_POINT = np.array([0.0, np.sin(LEAN_RAD), -np.cos(LEAN_RAD)])


@dataclass(frozen=True)
class OpenDrawerTask(LiberoTask):
    """Pull one of the cabinet's drawers open by its handle."""

    drawer: str = "middle"
    near_m: float = field(default=0.07, kw_only=True)

    def perform(self, hand: Hand) -> Script:
        drawer = self.drawer
        if hand.deviation.takes_wrong_object:
            drawer = DRAWERS[(DRAWERS.index(drawer) + 1) % len(DRAWERS)]
        yield from pull_open(hand, drawer)


@dataclass(frozen=True)
class FillDrawerTask(PlaceTask):
    """Open the drawer and put an object inside. A deviation concerns the object, once the drawer is open."""

    drawer: str = "top"

    def perform(self, hand: Hand) -> Script:
        yield from pull_open(hand, self.drawer, is_right=True)
        yield from super().perform(hand)


def find_handle(hand: Hand, drawer: str) -> Vector:
    """The middle of the handle f64 [3]: of all shapes of the drawer it sticks out furthest towards +y."""
    low, high = max(hand.scene.parts_of(CABINET, f"cabinet_{drawer}"), key=lambda box: float(box[1][1]))
    return (low + high) / 2


def pull_open(hand: Hand, drawer: str, is_right: bool = False) -> Script:
    """Grasp the handle, pull it towards +y, and let go; ``is_right``: whatever the deviation."""
    pose = point_down(roll=LEAN_RAD)
    shift = np.zeros(3) if is_right else hand.deviation.grasp_shift + hand.deviation.place_shift
    stops = not is_right and hand.deviation.progress < 1
    handle = find_handle(hand, drawer) + np.array([0.0, 0.004, 0.0]) + shift[[1, 0, 2]]
    before = handle - 0.12 * FINGERS_POINT
    yield from hand.move(handle + np.array([0.0, 0.2, 0.2]), OPEN, point_down(), within_m=0.03)
    yield from hand.move(before, OPEN, pose, within_m=0.012, max_steps=100)
    for _ in range(10):
        yield hand.toward(before, OPEN, pose)
    yield from hand.move(handle, OPEN, pose, within_m=0.006, max_steps=60, cap=0.5)
    yield from hand.hold(CLOSED, pose, GRASP_STEPS)
    way = hand.deviation.progress * SHORT_PULL_M if stops else PULL_M
    end = hand.position + np.array([0.0, way, 0.0])
    yield from hand.move(end, CLOSED, pose, within_m=0.01, cap=0.6)
    if stops and not hand.deviation.lets_go:
        return
    yield from hand.hold(OPEN, pose, 5)
    yield from hand.move(hand.position - 0.1 * FINGERS_POINT, OPEN, pose, within_m=0.03, max_steps=30)
    yield from hand.move(hand.position + 0.2 * UP, OPEN, point_down(), within_m=0.03)
