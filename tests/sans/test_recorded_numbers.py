"""Bounds come from the rows that are used; what is not finite or far off is named with a way out."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hand_recording import NUM_ROWS, edit_info, edit_table, write_recording

from worldloop.core.errors import WorldloopError
from worldloop.sans.recorded_numbers import choose_part, find_outliers, place_labelled_success
from worldloop.sans.recordings import RecordingConfig, open_recording, recording_spec


def _config(root: Path, **changes: Any) -> RecordingConfig:
    settings = {"image_size": 8, "actions_per_frame": 2, "success_key": "next.success"} | changes
    return RecordingConfig(root=str(root), **settings)


def _set(root: Path, key: str, row: int, dimension: int, value: float) -> None:
    def change(table: pd.DataFrame) -> None:
        values = [np.array(v, dtype=np.float32) for v in table[key]]
        values[row][dimension] = value
        table[key] = values

    edit_table(root, "data", change)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_recording(tmp_path / "arm")


def test_stale_statistics_bound_nothing(root: Path) -> None:
    path = root / "meta/stats.json"
    stats = json.loads(path.read_text())
    stats["action"] |= {"min": [0.5, 0.5], "max": [0.6, 0.6]}
    path.write_text(json.dumps(stats))
    robot = recording_spec(_config(root)).robot
    assert robot.action_low == (0.0, 1.0)
    assert robot.action_high == (34.0, pytest.approx(1.4))  # the last row's action leads nowhere
    path.unlink()
    assert recording_spec(_config(root)).robot == robot


def test_rows_that_are_not_used_bound_nothing(root: Path) -> None:
    _set(root, "action", NUM_ROWS - 1, 0, -500)  # the last row
    _set(root, "action", 2 * NUM_ROWS + 1, 0, -300)  # an episode that is left out
    config = _config(root, skip_episodes="2")
    assert sorted(open_recording(config).used) == [0, 1, 3]
    assert recording_spec(config).robot.action_low[0] == 0.0


def test_what_comes_after_the_end_of_a_success_is_not_used(root: Path) -> None:
    def succeed_early(table: pd.DataFrame) -> None:
        table["next.success"] = table["frame_index"] >= 1

    edit_table(root, "data", succeed_early)
    _set(root, "action", NUM_ROWS - 2, 0, 900)
    config = _config(root, success_hold_frames=0, success_confirm_frames=0)
    assert recording_spec(config).robot.action_high[0] == 31.0
    _set(root, "action", NUM_ROWS - 2, 0, float("nan"))
    assert recording_spec(config).robot.action_high[0] == 31.0


def test_a_value_far_beyond_the_others_is_told(root: Path) -> None:
    assert open_recording(_config(root)).outliers == ()
    _set(root, "action", NUM_ROWS + 3, 1, 1e9)
    (doubt,) = open_recording(_config(root)).outliers
    assert "action 'action_1' is 1e+09 in row 3 of episode 1, but within 1 to 1.4 in 98 % of the rows" in doubt
    assert doubt.endswith("recording.skip_episodes=1")
    assert open_recording(_config(root, skip_episodes="1")).outliers == ()


def test_outliers_below_and_of_dimensions_that_rest() -> None:
    rng = np.random.default_rng(0)
    action = np.stack([rng.normal(size=500), np.zeros(500), np.repeat([0, 1], 250), rng.normal(size=500)], 1)
    actions = {4: action[:300].astype(np.float32), 7: action[300:].astype(np.float32)}
    assert find_outliers(actions, "abcd") == []
    actions[7][5, 0], actions[4][2, 1] = -1e4, 3
    found = find_outliers(actions, "abcd")
    assert [text.split(",")[0] for text in found] == [
        "action 'a' is -10000 in row 5 of episode 7",
        "action 'b' is 3 in row 2 of episode 4",
    ]


@pytest.mark.parametrize(("key", "row"), [("action", NUM_ROWS + 1), ("observation.state", NUM_ROWS + 2)])
def test_what_is_not_finite_is_named_if_it_is_used(root: Path, key: str, row: int) -> None:
    _set(root, key, row, 0, float("inf"))
    with pytest.raises(WorldloopError, match=rf"'{key}' is inf in row {row - NUM_ROWS} of episode 1, .*episodes=1"):
        open_recording(_config(root))
    assert len(open_recording(_config(root, skip_episodes="1")).used) == 3


def test_states_between_stored_frames_are_not_used(root: Path) -> None:
    _set(root, "observation.state", NUM_ROWS + 1, 0, float("nan"))
    assert len(open_recording(_config(root)).used) == 4


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"state_key": "qpos"}, r"recording.state_key asks dataset .* for 'qpos', which it does not have; its features "
         r"of numbers are: observation.state, action, next.success; all: observation.images.front, "),
        ({"action_key": "observation.images.front"}, r"recording.action_key asks .*, which is image, not numbers"),
        ({"success_key": "frame_index"}, r"recording.success_key 'frame_index' holds 2 in episode 0, allowed: true"),
        ({"skip_episodes": "0-9"}, r"'0-9' does not fit a recording of 4 episodes"),
        ({"skip_episodes": "0-3"}, r"no episode of .* can be used: each has a single row, or is in recording.skip_ep"),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(root: Path, changes: dict[str, str], match: str) -> None:
    with pytest.raises(WorldloopError, match=match):
        open_recording(_config(root, **changes))


def test_a_column_of_text_and_a_wrong_shape_are_named(root: Path) -> None:
    edit_info(root, lambda info: info["features"]["action"].update(shape=[3]))
    with pytest.raises(WorldloopError, match=r"'action' of .* has 2 values a row, meta/info\.json says 3"):
        open_recording(_config(root))
    edit_info(root, lambda info: info["features"]["action"].update(shape=[2]))
    edit_table(root, "data", lambda table: table.__setitem__("action", [["a", "b"]] * len(table)))
    with pytest.raises(WorldloopError, match=r"'action' in data/.*parquet of .* holds string, not numbers"):
        open_recording(_config(root))


def test_rows_of_two_actions_are_taken_apart(root: Path) -> None:
    """The two values of a row count as two actions of one value each; a frame comes after every second row."""
    config = _config(root, actions_per_row=2, actions_per_frame=4)
    recording = open_recording(config)
    assert recording.numbers[1].action[:4].tolist() == [[10], [1], [11], [pytest.approx(1.1)]]
    part = recording.used[1]
    assert part.first_success == 2 * (NUM_ROWS - 2) + 1, "the last action of the row that says so"
    assert (part.num_actions, part.num_frame_steps) == (10, 3)
    assert part.stored_rows(4).tolist() == [0, 2, 4, 5]
    robot = recording_spec(config).robot
    assert (robot.action_names, robot.hz) == (("action_0",), 20.0)
    assert recording_spec(replace(config, hz=12.5)).robot.hz == 12.5
    edit_info(root, lambda info: info["features"]["action"].update(names=["grip_0", "grip_1"]))
    assert recording_spec(config).robot.action_names == ("grip",)
    with pytest.raises(WorldloopError, match=r"actions_per_frame 3 is no multiple of recording\.actions_per_row 2"):
        open_recording(replace(config, actions_per_frame=3))
    with pytest.raises(WorldloopError, match=r"'observation\.state' has 2 values a row, allowed: one, or"):
        open_recording(_config(root, success_key="observation.state", actions_per_row=1))


def test_what_the_dataset_does_not_name_can_be_named(root: Path) -> None:
    names = {"camera_names": {"front": "top"}, "state_names": ("x", "y"), "action_names": ("dx", "dy")}
    config = _config(root, **names, image_sizes={"front": 12})
    robot = recording_spec(config).robot
    assert (robot.proprio_names, robot.action_names) == (("x", "y"), ("dx", "dy"))
    assert [(camera.name, camera.height) for camera in robot.cameras] == [("top", 12)]
    with pytest.raises(WorldloopError, match=r"recording\.camera_names: 'side' is none of them"):
        open_recording(replace(config, camera_names={"side": "top"}))
    with pytest.raises(WorldloopError, match=r"recording\.action_names are 3, and recording\.action_key has 2 dim"):
        open_recording(replace(config, action_names=("a", "b", "c")))


def test_every_episode_can_succeed_without_a_label(root: Path) -> None:
    recording = open_recording(_config(root, success_key="", all_succeed=True))
    assert [part.first_success for part in recording.used.values()] == [place_labelled_success(NUM_ROWS, 2, 1)] * 4
    assert recording.doubts == ()


def test_parts() -> None:
    whole = choose_part(12, None, actions_per_frame=3, hold_frames=1)
    assert (whole.num_frame_steps, whole.num_actions) == (4, 11)
    assert whole.stored_rows(3).tolist() == [0, 3, 6, 9, 11]
    ended = choose_part(12, 4, actions_per_frame=3, hold_frames=1)
    assert (ended.num_frame_steps, ended.num_actions) == (3, 9)
    assert place_labelled_success(12, actions_per_frame=3, hold_frames=1) == 8
    assert place_labelled_success(2, actions_per_frame=3, hold_frames=1) == 0
