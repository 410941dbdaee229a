"""Turning the stove's knob. Its scripted expert and what goes wrong."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from worldloop.simulators.libero.family import LiberoTask, Script
from worldloop.simulators.libero.hand import CLOSED, OPEN, UP, Hand, point_down

BUTTON = "button"  # the knob's body in LIBERO's stove
GRASP_SHIFT_M = np.array([-0.015, 0.0, 0.0])  # from the knob's axis to where the fingers close
GRASP_Z_M = 0.932  # between the fingers, on the table of LIBERO's table scenes
TRAVEL_Z_M = 1.15
TURN_RAD, TURN_STEP_RAD = 1.0, 0.05
SHORT_TURN_RAD = 0.5  # a share of this leaves the stove off
SHARE_OF_SHIFT = 0.5  # a knob is small: shifts for cubes would miss it every time


@dataclass(frozen=True)
class TurnOnTask(LiberoTask):
    """Turn the knob of a stove until it is on."""

    near_m: float = field(default=0.015, kw_only=True)

    def perform(self, hand: Hand) -> Script:
        stove = hand.scene.goal[1]
        middle = hand.scene.position_of(f"{stove}_{BUTTON}")
        shift = SHARE_OF_SHIFT * (hand.deviation.grasp_shift + hand.deviation.place_shift)
        point = np.array([middle[0], middle[1], GRASP_Z_M]) + GRASP_SHIFT_M + shift
        yield from hand.move(np.array([point[0], point[1], TRAVEL_Z_M]), OPEN, point_down(), within_m=0.02)
        yield from hand.move(point + 0.05 * UP, OPEN, point_down())
        yield from hand.move(point, OPEN, point_down(), within_m=0.008, max_steps=40, cap=0.5)
        yield from hand.hold(CLOSED, point_down(), 10)
        stops = hand.deviation.progress < 1
        end = hand.deviation.progress * SHORT_TURN_RAD if stops else TURN_RAD
        for step in range(40):
            yield hand.toward(point, CLOSED, point_down(yaw=min(end, TURN_STEP_RAD * step)))
        if stops and hand.deviation.lets_go:
            yield from hand.hold(OPEN, point_down(yaw=end), 10)
            yield from hand.move(hand.position + 0.15 * UP, OPEN, point_down(), within_m=0.02)
