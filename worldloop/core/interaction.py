"""The rule by which a policy's gate is taught; `worldloop.sans.interaction` applies it to stored episodes."""

from __future__ import annotations

from dataclasses import dataclass

INTERACTION_SIGNS = ("gripper", "distance")


@dataclass(frozen=True)
class InteractionRule:
    """Which frame steps of a recorded episode are an interaction with the object; the others are transit.

    - ``signs``; one is enough. ``gripper``: its command changes in the step, or at most ``num_frames`` steps before or
      after. ``distance``: the hand is less than ``distance_m`` metres from the object, and does not hold it: the
      gripper's command is the one that the episode began with
    """

    signs: tuple[str, ...]
    num_frames: int
    distance_m: float
