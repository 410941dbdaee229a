"""Events of stored episodes, found from the privileged simulator state: what a value should react to.

They are for labels and figures alone; no network reads them. An episode needs the landmarks ``object`` and ``effector``
in three dimensions, else none are found.

Shapes: F frame steps of an episode, so F + 1 stored frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldloop.core.specs import SimulatorSpec
from worldloop.core.types import Episode

MILESTONES = ("reach", "contact", "grasp", "lift", "place", "success")  # a value should rise
ERRORS = ("drop", "miss")  # a value should fall
EVENTS = (*MILESTONES, *ERRORS)

REACH_M = 0.06  # effector to the object's centre; a cube has a half side of .02
MOVED_M = 0.005  # the object has been touched once it is so far from its start
LIFTED_M, DOWN_M = 0.02, 0.01  # above its start: lifted from here on, back on the table below that
HELD_M = 0.035  # effector to the object's centre, at most, while the fingers hold it
OPEN_M, CLOSED_M = 0.06, 0.01  # sum of the finger positions: open above, closed on nothing below
FINGERS = "qpos_finger"  # how the names of the finger positions in proprio begin


@dataclass(frozen=True)
class Tracks:
    """One episode in metres, at its F + 1 stored frames.

    ``object_m`` and ``effector_m`` f [F + 1, 3]; ``opening_m`` f [F + 1], the sum of the finger positions, or ``None``;
    ``distance_m`` f [F + 1], from the object to where it must be, NaN if unknown; ``success`` bool [F + 1].
    """

    object_m: np.ndarray
    effector_m: np.ndarray
    opening_m: np.ndarray | None
    distance_m: np.ndarray
    success: np.ndarray


def find_events(tracks: Tracks) -> dict[str, int]:
    """Event -> the first stored frame that shows it; events that do not happen are left out.

    - ``reach``: the effector is near the object. ``contact``: the object has moved
    - ``grasp``: the fingers have closed around something near the effector. ``miss``: near the object they close until
      nothing fits between them, also when it slips out
    - ``lift``: the object is in the air. ``drop``: it is back on the table after that, without a success before
    - ``place``: the object is where it must be. ``success``: the task is solved
    """
    gap = np.linalg.norm(tracks.effector_m - tracks.object_m, axis=1)
    moved = np.linalg.norm(tracks.object_m - tracks.object_m[0], axis=1) > MOVED_M
    height = tracks.object_m[:, 2] - tracks.object_m[0, 2]
    was_lifted = np.maximum.accumulate(height > LIFTED_M)
    was_solved = np.maximum.accumulate(tracks.success)
    seen = {
        "reach": gap < REACH_M,
        "contact": moved,
        "lift": height > LIFTED_M,
        "place": tracks.distance_m <= 0,
        "drop": was_lifted & (height < DOWN_M) & ~was_solved,
        "success": tracks.success,
    }
    if tracks.opening_m is not None:
        was_open = np.maximum.accumulate(tracks.opening_m > OPEN_M)
        holds = was_open & (tracks.opening_m > CLOSED_M) & (tracks.opening_m < OPEN_M) & (gap < HELD_M)
        seen["grasp"] = holds & np.concatenate([holds[1:], holds[-1:]])  # for two frames: not while they are closing
        is_closed = tracks.opening_m < CLOSED_M
        closes = is_closed & ~np.concatenate([is_closed[:1], is_closed[:-1]])
        seen["miss"] = was_open & closes & (gap < REACH_M)
    return {name: int(np.argmax(seen[name])) for name in EVENTS if name in seen and seen[name].any()}


def follow(episode: Episode, spec: SimulatorSpec) -> Tracks | None:
    """The tracks of ``episode``; ``None`` if 3 coordinates of ``object`` or ``effector`` are unknown."""
    marks = {mark.name: mark for mark in spec.task(episode.meta.task).landmarks}
    positions = {}
    for name in ("object", "effector"):
        if name not in marks or len(marks[name].columns) != 3:
            return None
        mark = marks[name]
        source = episode.sim_state if mark.source == "sim_state" else episode.proprio
        if source.shape[1] <= max(mark.columns) or not np.isfinite(source[:, list(mark.columns)]).all():
            return None
        positions[name] = source[:, list(mark.columns)].astype(np.float64) * mark.metres_per_unit
    fingers = [i for i, name in enumerate(spec.robot.proprio_names) if name.startswith(FINGERS)]
    after = np.concatenate([[np.nan], episode.distances_m[:, -1]])  # the distance after a frame step is at its end
    return Tracks(
        object_m=positions["object"],
        effector_m=positions["effector"],
        opening_m=episode.proprio[:, fingers].sum(1) if fingers else None,
        distance_m=after,
        success=np.concatenate([[False], (episode.success & episode.valid).any(1)]),
    )
