"""Events of an episode, on tracks drawn by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from worldloop.config.loading import load_config
from worldloop.evaluation.events import EVENTS, Tracks, find_events, follow
from worldloop.factory.build import build_spec
from worldloop.sans.store import SansStore

NUM_FRAMES = 8


def make_tracks(**changes: list[float]) -> Tracks:
    """A cube that nobody touches, 20 cm from an open hand; ``changes``: distance from hand to cube, height, opening."""
    gap = np.array(changes.get("gap", [0.2] * NUM_FRAMES))
    height = np.array(changes.get("height", [0.0] * NUM_FRAMES))
    aside = np.array(changes.get("aside", [0.0] * NUM_FRAMES))
    cube = np.stack([0.1 + aside, np.zeros_like(gap), 0.02 + height], axis=1)
    return Tracks(
        object_m=cube,
        effector_m=cube + np.stack([np.zeros_like(gap), gap, np.zeros_like(gap)], axis=1),
        opening_m=np.array(changes.get("opening", [0.08] * NUM_FRAMES)),
        distance_m=np.array(changes.get("distance", [0.1] * NUM_FRAMES)),
        success=np.array(changes.get("success", [0.0] * NUM_FRAMES)) > 0,
    )


def test_nothing_happens_to_a_cube_that_nobody_touches() -> None:
    assert find_events(make_tracks()) == {}


def test_a_cube_is_picked_up_and_brought_to_its_place() -> None:
    events = find_events(
        make_tracks(
            gap=[0.2, 0.1, 0.05, 0.01, 0.01, 0.01, 0.01, 0.01],
            opening=[0.08, 0.08, 0.08, 0.04, 0.04, 0.04, 0.04, 0.04],
            height=[0, 0, 0, 0, 0.03, 0.06, 0.09, 0.09],
            distance=[np.nan, 0.1, 0.1, 0.1, 0.08, 0.04, 0.0, 0.0],
            success=[0, 0, 0, 0, 0, 0, 0, 1],
        )
    )
    assert events == {"reach": 2, "grasp": 3, "contact": 4, "lift": 4, "place": 6, "success": 7}
    assert list(events) == [name for name in EVENTS if name in events], "always in the same order"


def test_a_cube_that_falls_is_a_drop_but_not_after_the_success() -> None:
    height = [0, 0, 0.05, 0.05, 0.03, 0.0, 0.0, 0.0]
    assert find_events(make_tracks(height=height))["drop"] == 5
    assert "drop" not in find_events(make_tracks(height=height, success=[0, 0, 0, 1, 1, 1, 1, 1]))
    assert "drop" not in find_events(make_tracks(height=[0.0] * NUM_FRAMES)), "it was never up"


def test_fingers_that_close_on_nothing_beside_the_cube_miss_it() -> None:
    near, far = [0.05] * NUM_FRAMES, [0.2] * NUM_FRAMES
    closing = [0.08, 0.08, 0.04, 0.0, 0.0, 0.0, 0.0, 0.0]
    events = find_events(make_tracks(gap=near, opening=closing))
    assert events == {"reach": 0, "miss": 3}, "half way down the fingers hold nothing: one frame is no grasp"
    assert "miss" not in find_events(make_tracks(gap=far, opening=closing))
    late = [0.2, 0.2, 0.2, 0.2, 0.05, 0.05, 0.05, 0.05]
    assert "miss" not in find_events(make_tracks(gap=late, opening=closing)), "they were closed before they came near"
    assert "miss" not in find_events(make_tracks(gap=near, opening=[0.0] * NUM_FRAMES)), "they have never been open"


def test_a_grasp_that_slips_is_a_grasp_and_a_miss() -> None:
    slips = [0.08, 0.04, 0.04, 0.04, 0.0, 0.0, 0.0, 0.0]
    events = find_events(make_tracks(gap=[0.01] * NUM_FRAMES, opening=slips))
    assert (events["grasp"], events["miss"]) == (1, 4)


def test_a_push_is_contact_and_needs_no_fingers() -> None:
    tracks = make_tracks(
        gap=[0.1, 0.05, 0.03, 0.03, 0.03, 0.03, 0.03, 0.03], aside=[0, 0, 0.004, 0.02, 0.05, 0.1, 0.1, 0.1]
    )
    assert find_events(replace(tracks, opening_m=None)) == {"reach": 1, "contact": 3}


def test_tracks_come_from_the_landmarks_of_the_task(debug_run: Path) -> None:
    """The toy has two dimensions, where no height tells a lift: no tracks. With a third column there would be some."""
    config = load_config(debug_run / "config.yaml")
    store = SansStore(debug_run / "sans")
    cache = store.open_cache(store.version("v001"))
    spec = build_spec(config.source, config.simulator, config.recording)
    episode = cache.episode(0)
    assert follow(episode, spec) is None
    task = spec.tasks[0]
    marks = tuple(replace(mark, columns=(*mark.columns, mark.columns[0])) for mark in task.landmarks)
    solid = replace(spec, tasks=(replace(task, landmarks=marks),))
    unknown = np.full_like(episode.sim_state, np.nan)  # as in a demonstration that was recorded elsewhere
    assert follow(replace(episode, sim_state=unknown), solid) is None
    tracks = follow(episode, solid)
    assert tracks is not None
    num_frames = episode.num_frame_steps + 1
    assert tracks.object_m.shape == tracks.effector_m.shape == (num_frames, 3)
    object_mark = next(mark for mark in marks if mark.name == "object")
    expected = episode.sim_state[:, list(object_mark.columns)] * object_mark.metres_per_unit
    np.testing.assert_allclose(tracks.object_m, expected, rtol=1e-6)
    assert tracks.opening_m is None
    assert np.isnan(tracks.distance_m[0])
    assert tracks.distance_m[1:].tolist() == pytest.approx(episode.distances_m[:, -1].tolist(), nan_ok=True)
    assert tracks.success.any() == episode.is_success
