"""Placing: an object onto or into another one, or into a region. Its scripted expert and what goes wrong."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from worldloop.simulators.libero.family import LiberoTask, Script
from worldloop.simulators.libero.grasping import Grasp, choose_grasp, pick
from worldloop.simulators.libero.hand import CLOSED, OPEN, RELEASE_STEPS, UP, Hand, Vector, point_down

SHORT_M = 0.05  # a drop so far before the place is no success
RISE_M = 0.12  # of the hand after it has let go


@dataclass(frozen=True)
class PlaceTask(LiberoTask):
    """Pick up an object and put it down where the goal's predicate says.

    - ``aims_at``: the object or region above which it lets go; "": the predicate's
    - ``above_top``: whether heights count from the top of that, else from its frame
    - ``drop_m``: height of the object's frame above it when the hand lets go; ``carry_m``: of the hand on the way there
    - ``grasp``: ``None``: by the object's name
    """

    drop_m: float = 0.012
    carry_m: float = 0.2
    aims_at: str = ""
    above_top: bool = False
    grasp: Grasp | None = None
    near_m: float = field(default=0.05, kw_only=True)

    def perform(self, hand: Hand) -> Script:
        _, name, target = hand.scene.goal
        if hand.deviation.takes_wrong_object:
            name = choose_wrong_object(hand, (name, target, self.aims_at))
            yield from pick(hand, name, choose_grasp(name))
        else:
            yield from pick(hand, name, self.grasp or choose_grasp(name))
        yield from self.put_down(hand, name, self.aims_at or target)

    def put_down(self, hand: Hand, name: str, target: str) -> Script:
        """Carry what is in the fingers above ``target``, lower it, let go, and move up."""
        pose = hand.scene.hand_rotation.copy()
        point = self.find_place(hand, target) + hand.deviation.place_shift
        height = max(hand.position[2] + 0.02, point[2] + self.carry_m)

        def above() -> Vector:
            held = hand.scene.position_of(name) - hand.position
            return np.array([point[0] - held[0], point[1] - held[1], height])

        def down() -> Vector:
            return point + self.drop_m * UP - (hand.scene.position_of(name) - hand.position)

        raised = np.array([hand.position[0], hand.position[1], height])
        if hand.deviation.progress < 1:
            yield from hand.move(raised, CLOSED, pose, within_m=0.02)
            stop = stop_short(raised, above(), hand.deviation.progress)
            yield from hand.move(stop, CLOSED, pose, within_m=0.012, max_steps=120, cap=0.8)
            if not hand.deviation.lets_go:
                return
        else:
            yield from hand.move(raised, CLOSED, pose, within_m=0.02)
            yield from hand.move(above, CLOSED, pose, within_m=0.012, max_steps=120, cap=0.8)
            yield from hand.move(down, CLOSED, pose, within_m=0.008, max_steps=50, cap=0.5)
        yield from hand.hold(OPEN, pose, RELEASE_STEPS)
        yield from hand.move(hand.position + RISE_M * UP, OPEN, pose, within_m=0.02)
        yield from hand.hold(OPEN, point_down(), 5)

    def find_place(self, hand: Hand, target: str) -> Vector:
        """The point f64 [3] above which the object has to be."""
        if not self.above_top:
            return hand.scene.position_of(target).copy()
        low, high = hand.scene.bounds_of(target)
        return np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, high[2]])


def stop_short(start: Vector, end: Vector, progress: float) -> Vector:
    """The point f64 [3] after the share ``progress`` of the way from ``start`` to `SHORT_M` before ``end``."""
    way = end - start
    length = float(np.linalg.norm(way))
    return start + way * (progress * max(length - SHORT_M, 0.0) / max(length, 1e-9))


def choose_wrong_object(hand: Hand, right: tuple[str, ...]) -> str:
    """An object of the scene that is none of ``right``."""
    others = [name for name in hand.scene.movable if name not in right]
    return others[int(float(hand.deviation.noise_phase[0, 0]) * len(others)) % len(others)]
