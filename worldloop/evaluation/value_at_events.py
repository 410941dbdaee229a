"""How a critic's value changes when something happens: milestones should raise it, errors should lower it.

ViVa (arXiv:2604.08168) reports the change of the value around milestones and errors, and how often it is noticed. Here
a change is the difference between the frame after an event and the frame before it. ViVa's ratio has a pole at value 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from worldloop.core.statistics import Estimate, estimate
from worldloop.evaluation.episode_values import EpisodeFrames
from worldloop.evaluation.events import ERRORS, EVENTS, find_events, follow
from worldloop.evaluation.open_loop import SOURCES


@dataclass(frozen=True)
class EventChange:
    """The value around one kind of event, over the episodes of one source in which it happens; ``n`` is their number.

    - ``change``: the value one frame after the event minus one frame before it
    - ``detected``: share of events whose change is above that of a usual frame (for errors: below)
    - ``floor``: the same share over all frames, events or not: what a value that knows no events has
    """

    change: Estimate
    detected: Estimate
    floor: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "change": self.change.to_dict(with_n=True),
            "detected": self.detected.to_dict(),
            "floor": self.floor,
        }


def find_all_events(frames: EpisodeFrames) -> list[dict[str, int]]:
    """Of every episode in ``frames`` its events, see `find_events`; none where positions are unknown."""
    found = []
    for number in frames.episodes.tolist():
        tracks = follow(frames.cache.episode(number), frames.spec)
        found.append({} if tracks is None else find_events(tracks))
    return found


def judge_at_events(
    frames: EpisodeFrames, values: np.ndarray, events: list[dict[str, int]]
) -> dict[str, dict[str, EventChange]]:
    """Source -> event -> how ``values`` f32 [N] change around it; see `EventChange`.

    Events that never happen are left out. ``success`` is no event here: critics learn no value of a frame after it.
    """
    judged: dict[str, dict[str, EventChange]] = {}
    for source, names in SOURCES.items():
        own = [number for number, meta in enumerate(frames.metas) if meta.source in names]
        changes = [_changes(values, frames, number) for number in own]
        usual = np.concatenate([np.zeros(0), *changes])
        if len(usual) == 0:
            continue
        typical = float(np.median(usual))
        judged[source] = {}
        for event in EVENTS:
            at = [
                change[events[number][event] - 1]
                for number, change in zip(own, changes, strict=True)
                if event != "success" and 1 <= events[number].get(event, 0) <= len(change)
            ]
            if at:
                sign = -1 if event in ERRORS else 1
                around = np.array(at)
                judged[source][event] = EventChange(
                    change=estimate(lambda x: float(x.mean()), around),
                    detected=estimate(lambda x: float(x.mean()), sign * (around - typical) > 0),
                    floor=round(float((sign * (usual - typical) > 0).mean()), 4),
                )
    return judged


def _changes(values: np.ndarray, frames: EpisodeFrames, number: int) -> np.ndarray:
    """f64: entry i is the value at frame i + 2 minus that at frame i, of the episode with that ``number``."""
    own = values[frames.first[number] : frames.first[number + 1]].astype(np.float64)
    return own[2:] - own[:-2]
