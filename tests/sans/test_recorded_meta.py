"""Metadata that contradicts the rows: the rows win, or the contradiction is named; nothing is shifted in silence."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hand_recording import FRONT, NUM_ROWS, edit_info, edit_table, grey, write_recording

from worldloop.core.errors import WorldloopError
from worldloop.sans.recorded_dataset import open_dataset
from worldloop.sans.recorded_episodes import read_recording
from worldloop.sans.recordings import RecordingConfig, open_recording, recording_spec


def _config(root: Path, **changes: Any) -> RecordingConfig:
    settings = {"image_size": 8, "actions_per_frame": 1, "success_key": "next.success"} | changes
    return RecordingConfig(root=str(root), **settings)


def _assert_right(root: Path) -> tuple[str, ...]:
    """Every episode has its own rows, pictures and outcome; returns the doubts."""
    config = _config(root)
    recording = open_recording(config)
    for number, episode in enumerate(read_recording(config, recording_spec(config), recording)):
        assert set(episode.proprio[:, 0]) == {number}
        assert episode.actions[0, 0, 0] == 10 * number
        shown = episode.frames["front"].mean((1, 2, 3))
        expected = [grey(number, row) for row in range(len(shown))]
        assert np.abs(shown - expected).max() < 3
        assert episode.meta.outcome == ("success" if number % 2 else "failure")
    return recording.doubts


@pytest.mark.parametrize("video", [False, True])
def test_right_metadata_leaves_no_doubt(tmp_path: Path, video: bool) -> None:
    assert _assert_right(write_recording(tmp_path / "arm", video=video)) == ()


def _shift(table: pd.DataFrame) -> None:
    table["dataset_from_index"] = (table["dataset_from_index"] - NUM_ROWS).clip(lower=0)
    table["dataset_to_index"] = table["dataset_from_index"] + NUM_ROWS


def _lengthen(table: pd.DataFrame) -> None:
    table["length"] = NUM_ROWS + 3


@pytest.mark.parametrize(
    ("change", "doubt"),
    [
        (_shift, "says that episode 1 is rows 0 to 5, data/ has rows 6 to 11 (and 2 others): data/ is believed"),
        (_lengthen, "says that episode 0 is 9 rows, data/ has 6 (and 3 others): data/ is believed"),
    ],
)
def test_rows_say_which_episode_they_are_of(tmp_path: Path, change: Callable[[Any], None], doubt: str) -> None:
    root = write_recording(tmp_path / "arm")
    edit_table(root, "meta/episodes", change)
    (found,) = _assert_right(root)
    assert doubt in found


def test_rows_in_any_order_and_in_several_files(tmp_path: Path) -> None:
    root = write_recording(tmp_path / "arm")
    (first,) = (root / "data").rglob("*.parquet")
    second = first.with_name("file-001.parquet")
    shutil.copy(first, second)
    rows = pd.read_parquet(first)
    rows[rows.index % 2 == 0][::-1].to_parquet(first)
    rows[rows.index % 2 == 1].to_parquet(second)
    (doubt,) = _assert_right(root)
    assert "data/ is believed" in doubt


def test_the_instruction_is_that_of_the_rows(tmp_path: Path) -> None:
    """LeRobot's writer stores an episode's instructions as a set, so their order there says nothing."""
    root = write_recording(tmp_path / "arm")

    def rename(table: pd.DataFrame) -> None:
        table["tasks"] = [["pull it", "push the cube"], ["push the cube"], ["push the cube"], ["pull it"]]

    edit_table(root, "meta/episodes", rename)
    dataset = open_dataset(str(root))
    assert set(dataset.episodes.instructions) == {"push the cube"}
    (doubt,) = dataset.found.doubts
    assert "episodes 3 have another instruction in data/ than in meta/episodes" in doubt


def _drop(rows: list[int]) -> Callable[[pd.DataFrame], None]:
    return lambda table: table.drop(index=rows, inplace=True)


def test_rows_that_are_missing_are_told(tmp_path: Path) -> None:
    root = write_recording(tmp_path / "arm")
    edit_table(root, "data", _drop([NUM_ROWS + 2]))
    doubts = open_recording(_config(root)).doubts
    assert any("rows are missing within episodes 1: their frame_index jumps" in doubt for doubt in doubts)


def test_a_cut_beginning_keeps_frames_beside_their_rows(tmp_path: Path) -> None:
    root = write_recording(tmp_path / "arm", video=True)
    edit_table(root, "data", _drop([NUM_ROWS, NUM_ROWS + 1]))
    config = _config(root)
    episode = list(read_recording(config, recording_spec(config)))[1]
    shown = episode.frames["front"].mean((1, 2, 3))
    assert np.abs(shown - [grey(1, row) for row in range(2, 2 + len(shown))]).max() < 3


def _double(table: pd.DataFrame) -> None:
    table.loc[NUM_ROWS + 1, "frame_index"] = 0


def _stop_clock(table: pd.DataFrame) -> None:
    table.loc[NUM_ROWS + 3, "timestamp"] = table.loc[NUM_ROWS + 2, "timestamp"]


def _same_place(table: pd.DataFrame) -> None:
    table.loc[2, f"videos/{FRONT}/from_timestamp"] = table.loc[1, f"videos/{FRONT}/from_timestamp"]


def _forget_place(table: pd.DataFrame) -> None:
    table[f"videos/{FRONT}/from_timestamp"] = [0.0, None, 1.2, 1.8]


@pytest.mark.parametrize(
    ("folder", "change", "match"),
    [
        ("data", _drop(list(range(12, 18))), r"has no rows of episodes 2, which meta/episodes describes: restore"),
        ("data", _double, r"holds row 0 of episode 1 twice"),
        ("data", _stop_clock, r"timestamps of episode 1 of .* do not grow after row 2"),
        ("meta/episodes", _same_place, r"puts episodes 1 and 2 at the same frames of file-000\.mp4"),
        ("meta/episodes", _forget_place, r"does not say where the video .* of episode 1 is"),
        ("meta/episodes", lambda t: t.drop(columns="episode_index", inplace=True), r"has no column 'episode_index'"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, folder: str, change: Callable[[Any], None], match: str) -> None:
    root = write_recording(tmp_path / "arm", video=True)
    edit_table(root, folder, change)
    with pytest.raises(WorldloopError, match=match):
        open_dataset(str(root))


@pytest.mark.parametrize(
    ("fps", "match"),
    [(30, "says fps 30, but the timestamps of its rows are 0.1 s apart: correct fps there to 10"), (0, "fps 0, allow")],
)
def test_the_rate_is_that_of_the_timestamps(tmp_path: Path, fps: float, match: str) -> None:
    root = write_recording(tmp_path / "arm")
    edit_info(root, lambda info: info.update(fps=fps))
    with pytest.raises(WorldloopError, match=match):
        open_dataset(str(root))


def test_a_recorder_s_clock_may_drift_a_little(tmp_path: Path) -> None:
    root = write_recording(tmp_path / "arm")
    edit_info(root, lambda info: info.update(fps=9.7))
    assert recording_spec(_config(root)).robot.hz == 9.7


@pytest.mark.parametrize("key", ["features", "fps", "video_path"])
def test_metadata_that_lacks_a_key_is_named(tmp_path: Path, key: str) -> None:
    root = write_recording(tmp_path / "arm", video=True)
    edit_info(root, lambda info: info.pop(key))
    with pytest.raises(
        WorldloopError, match=rf"meta/ of the dataset .* is not what LeRobot writes \(KeyError: '{key}'"
    ):
        open_dataset(str(root))
