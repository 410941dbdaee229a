"""Meta-World's 50 tasks by its own names: what each asks for, and how far it is from being done.

A new version of Meta-World has new names (``-v3``), so radii and words here belong to these alone. No
import of metaworld here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

# Where things lie in Meta-World's observation of 39 numbers; positions are in metres, in the world frame.
NUM_OBSERVED = 39
NOW, BEFORE = slice(0, 18), slice(18, 36)  # hand, gripper and objects now, and one environment step ago
HAND, OBJECT, SECOND_OBJECT, GOAL = slice(0, 3), slice(4, 7), slice(11, 14), slice(36, 39)

Gap = Literal["reported", "object", "object_x", "unknown"]


@dataclass(frozen=True)
class MetaWorldTask:
    """One task: its ``id``, what to do in words, and when it is done.

    ``phrases`` are whole instructions; a single one is put into three sentences. A success is a ``gap`` of at most
    ``success_radius_m``, 0 if that is not what Meta-World's success says. ``gap`` is what Meta-World reports
    (``reported``), or from the goal to the ``object`` or to its first coordinate, where it reports none.
    """

    id: str
    phrases: tuple[str, ...]
    success_radius_m: float = 0.0
    gap: Gap = "reported"

    @property
    def instructions(self) -> tuple[str, ...]:
        """Paraphrases; the first stands for all."""
        if len(self.phrases) > 1:
            return self.phrases
        (phrase,) = self.phrases
        return phrase, f"use the robot arm to {phrase}", f"{self.id.rsplit('-', 1)[0].replace('-', ' ')}: {phrase}"

    def measure_distance_m(self, observed: NDArray[np.float64], reported_m: float) -> float:
        """Distance to the region of success, 0 inside, NaN if unknown; ``observed`` f64 [39] is the observation."""
        way = observed[OBJECT] - observed[GOAL]
        gap = {
            "reported": reported_m,
            "object": float(np.linalg.norm(way)),
            "object_x": float(abs(way[0])),
            "unknown": float("nan"),
        }[self.gap]
        return max(gap - self.success_radius_m, 0.0) if gap == gap else gap


def _unknown(name: str, phrase: str) -> MetaWorldTask:
    """A task whose success is no distance: turning, or several conditions at once."""
    return MetaWorldTask(name, (phrase,), gap="unknown")


MT10 = (
    MetaWorldTask(
        "reach-v3",
        (
            "move the hand to the red ball",
            "reach the red dot with the gripper",
            "bring the fingers to the red goal in the air",
        ),
        0.05,
    ),
    MetaWorldTask(
        "push-v3",
        (
            "push the red puck to the green dot",
            "slide the red cylinder over the table onto the green goal",
            "move the puck along the table until it lies on the green spot",
        ),
        0.05,
    ),
    MetaWorldTask(
        "pick-place-v3",
        (
            "pick up the red puck and hold it at the blue ball",
            "grasp the red cylinder and carry it to the blue dot",
            "lift the puck to the blue goal",
        ),
        0.07,
    ),
    MetaWorldTask(
        "door-open-v3",
        (
            "open the door",
            "pull the door open by its handle",
            "take the handle of the safe and swing its door open",
        ),
        0.08,
        "object_x",
    ),
    MetaWorldTask(
        "drawer-open-v3",
        ("open the drawer", "pull the drawer out by its handle", "draw the green drawer open"),
        0.03,
    ),
    MetaWorldTask(
        "drawer-close-v3",
        ("close the drawer", "push the drawer in", "shove the green drawer shut"),
        0.065,
    ),
    MetaWorldTask(
        "button-press-topdown-v3",
        (
            "press the button from above",
            "push the red button down",
            "go above the box and press its button",
        ),
        0.024,
    ),
    MetaWorldTask(
        "peg-insert-side-v3",
        (
            "insert the peg into the hole from the side",
            "pick up the green peg and push it sideways into the box",
            "put the peg into the hole in the side of the box",
        ),
        0.07,
    ),
    MetaWorldTask(
        "window-open-v3",
        ("open the window", "slide the window open", "push the handle of the window to the right"),
        0.05,
    ),
    MetaWorldTask(
        "window-close-v3",
        ("close the window", "slide the window shut", "push the handle of the window to the left"),
        0.05,
    ),
)

OTHERS = (
    _unknown("assembly-v3", "put the ring onto the peg"),
    MetaWorldTask("basketball-v3", ("put the ball into the basket",), 0.08),
    MetaWorldTask("bin-picking-v3", ("move the cube from one bin into the other",), 0.05),
    MetaWorldTask("box-close-v3", ("put the lid onto the box",), 0.08, "object"),
    MetaWorldTask("button-press-topdown-wall-v3", ("press the button behind the wall from above",), 0.024),
    MetaWorldTask("button-press-v3", ("press the button from the front",), 0.02),
    MetaWorldTask("button-press-wall-v3", ("press the button behind the wall from the front",), 0.03),
    MetaWorldTask("coffee-button-v3", ("press the button of the coffee machine",), 0.02),
    MetaWorldTask("coffee-pull-v3", ("pull the mug away from the coffee machine",), 0.07),
    MetaWorldTask("coffee-push-v3", ("push the mug under the coffee machine",), 0.07),
    MetaWorldTask("dial-turn-v3", ("turn the dial",), 0.07),
    _unknown("disassemble-v3", "lift the ring off the peg"),
    MetaWorldTask("door-close-v3", ("close the door",), 0.08),
    MetaWorldTask("door-lock-v3", ("lock the door",), 0.02),
    MetaWorldTask("door-unlock-v3", ("unlock the door",), 0.02),
    MetaWorldTask("faucet-close-v3", ("close the faucet",), 0.07),
    MetaWorldTask("faucet-open-v3", ("open the faucet",), 0.07),
    _unknown("hammer-v3", "hammer the nail into the box"),
    MetaWorldTask("hand-insert-v3", ("put the hand with the block into the hole",), 0.05),
    MetaWorldTask("handle-press-side-v3", ("press the handle down from the side",), 0.02),
    MetaWorldTask("handle-press-v3", ("press the handle down",), 0.02),
    MetaWorldTask("handle-pull-side-v3", ("pull the handle up from the side",), 0.08),
    MetaWorldTask("handle-pull-v3", ("pull the handle up",), 0.05),
    _unknown("lever-pull-v3", "pull the lever up"),
    MetaWorldTask("peg-unplug-side-v3", ("pull the peg out of the hole",), 0.07),
    MetaWorldTask("pick-out-of-hole-v3", ("lift the puck out of the hole",), 0.07),
    MetaWorldTask("pick-place-wall-v3", ("carry the puck over the wall to the goal",), 0.07),
    MetaWorldTask("plate-slide-back-side-v3", ("slide the plate out of the cabinet to the side",), 0.07),
    MetaWorldTask("plate-slide-back-v3", ("slide the plate back out of the cabinet",), 0.07),
    MetaWorldTask("plate-slide-side-v3", ("slide the plate sideways into the cabinet",), 0.07),
    MetaWorldTask("plate-slide-v3", ("slide the plate into the cabinet",), 0.07),
    MetaWorldTask("push-back-v3", ("pull the puck back to the goal",), 0.07),
    MetaWorldTask("push-wall-v3", ("push the puck around the wall to the goal",), 0.07),
    MetaWorldTask("reach-wall-v3", ("reach over the wall to the goal",), 0.05),
    MetaWorldTask("shelf-place-v3", ("put the block onto the shelf",), 0.07),
    MetaWorldTask("soccer-v3", ("kick the ball into the goal",), 0.07),
    MetaWorldTask("stick-pull-v3", ("pull the thermos with the stick",), 0.12),
    MetaWorldTask("stick-push-v3", ("push the thermos with the stick",), 0.12),
    MetaWorldTask("sweep-into-v3", ("sweep the block into the hole",), 0.05),
    MetaWorldTask("sweep-v3", ("sweep the block off the table",), 0.05),
)
