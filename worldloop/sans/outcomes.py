"""The outcome rule, the same for every task: success, near-success or failure.

World-VLA-Loop trains its reward on failures that almost succeed, but gives no number. Ours: an episode is a
near-success when it failed and its smallest distance to the goal's *centre* was at most twice the success radius r,
that is, its distance to the success *region* was at most r.

Provision (a deviation from that plain rule): in some tasks the object starts this close (PushCube starts at exactly
2r), so an episode that touches nothing would count. A near-success must also have come at least
``MIN_PROGRESS_M`` closer than where it started.
"""

from __future__ import annotations

import numpy as np

from worldloop.types import Outcome

MIN_PROGRESS_M = 0.01


def classify_outcome(
    success: bool, distances_m: np.ndarray, start_distance_m: float, success_radius_m: float
) -> tuple[Outcome, float]:
    """(outcome, margin_m) of an episode.

    ``distances_m`` f32 [T] is the distance to the success region after each executed step (0 = inside),
    ``start_distance_m`` the same before the first step. ``margin_m`` is the smallest of them all, 0 on success.
    Raises ``ValueError`` for an empty or non-finite list of distances and for a radius that is not positive.

    Worked example, r = 0.1: starting at 0.1, ``[0.08, 0.05, 0.06]`` is a near-success with margin 0.05;
    ``[0.1, 0.095, 0.1]`` is a failure (5 mm of progress); ``[0.15, 0.12]`` is a failure (too far).
    """
    distances = np.asarray(distances_m, dtype=np.float64).reshape(-1)
    if distances.size == 0 or not np.isfinite(distances).all() or not np.isfinite(start_distance_m):
        raise ValueError("distances_m and start_distance_m must be finite and distances_m must not be empty")
    if not success_radius_m > 0:
        raise ValueError(f"success_radius_m is {success_radius_m}, allowed: > 0")
    if success:
        return "success", 0.0
    smallest = float(distances.min())
    margin_m = max(min(smallest, float(start_distance_m)), 0.0)
    # Distances are stored as f32: without the tolerance, 0.1 -> 0.09 would fail 10 mm of progress by rounding.
    tolerance = 1e-6
    is_close = smallest <= success_radius_m + tolerance
    has_progressed = start_distance_m - smallest >= MIN_PROGRESS_M - tolerance
    return ("near_success" if is_close and has_progressed else "failure"), margin_m
