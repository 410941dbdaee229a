"""How a critic's value changes when something happens: milestones should raise it, errors should lower it.

ViVa (arXiv:2604.08168) reports the change of the value around milestones and errors, and how often it is noticed. Its
ratio has a pole at value 0; here a change is the difference between the frame after an event and the frame before it.

Successes have more milestones than failures, and their values rise anyway. So a change is compared with the usual one:
the median at the same frame of the other episodes with the same outcome in which the event does not happen then.
A value that knows the outcome and the clock, but no events, is above the usual half of the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from worldloop.core.statistics import Estimate, estimate, mean
from worldloop.evaluation.episode_values import EpisodeFrames
from worldloop.evaluation.events import ERRORS, EVENTS, find_events, follow
from worldloop.evaluation.open_loop import SOURCES


@dataclass(frozen=True)
class EventChange:
    """The value around one kind of event, over the episodes of one source in which it happens.

    - ``change``: the value one frame after the event minus one frame before it
    - ``above_usual``: that change minus the usual one, see the module
    - ``detected``: share of events whose change is above the usual one (for errors: below); chance is .5
    """

    change: Estimate
    above_usual: Estimate
    detected: Estimate

    def to_dict(self) -> dict[str, Any]:
        return {
            "change": self.change.to_dict(with_n=True),
            "above_usual": self.above_usual.to_dict(),
            "detected": self.detected.to_dict(),
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
        changes = {number: _changes(values, frames, number) for number in own}
        found: dict[str, dict[str, EventChange]] = {source: {}}
        for event in EVENTS:
            pairs = []
            for number in own:
                usual = _find_usual(number, event, changes, frames, events)
                if event != "success" and usual is not None:
                    pairs.append((changes[number][events[number][event] - 1], usual))
            if pairs:
                around, expected = np.array(pairs).T
                above = around - expected
                found[source][event] = EventChange(
                    change=estimate(mean, around),
                    above_usual=estimate(mean, above),
                    detected=estimate(mean, (-1 if event in ERRORS else 1) * above > 0),
                )
        judged |= found if found[source] else {}
    return judged


def _find_usual(
    number: int,
    event: str,
    changes: dict[int, np.ndarray],
    frames: EpisodeFrames,
    events: list[dict[str, int]],
) -> float | None:
    """The usual change at the frame of ``event`` in episode ``number``; ``None`` if there is none to compare with."""
    frame = events[number].get(event, 0)
    if not 1 <= frame <= len(changes[number]):
        return None
    won = frames.metas[number].outcome == "success"
    others = [
        change[frame - 1]
        for other, change in changes.items()
        if other != number
        and len(change) >= frame
        and (frames.metas[other].outcome == "success") == won
        and abs(events[other].get(event, -2) - frame) > 1
    ]
    return float(np.median(others)) if others else None


def _changes(values: np.ndarray, frames: EpisodeFrames, number: int) -> np.ndarray:
    """f64: entry i is the value at frame i + 2 minus that at frame i, of the episode with that ``number``."""
    own = values[frames.first[number] : frames.first[number + 1]].astype(np.float64)
    return own[2:] - own[:-2]
