"""What a recording of LeRobot's own writer becomes: rows, successes, splits; labels; and what is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recording import record

from worldloop.__main__ import main
from worldloop.core.errors import WorldloopError
from worldloop.core.specs import CameraSpec
from worldloop.core.types import Episode
from worldloop.sans.labels import Labels, format_numbers, parse_numbers, read_labels, update_labels, write_labels
from worldloop.sans.recorded_dataset import open_dataset
from worldloop.sans.recorded_episodes import read_previews, read_recording
from worldloop.sans.recordings import (
    RecordingConfig,
    check_recording,
    name_tasks,
    open_recording,
    recording_spec,
)

S = 3
NUM_ROWS = (12, 12, 12, 11, 1)


def _success(number: int, rows: int) -> np.ndarray:
    """0 fails, 1 succeeds in row 4 and stays there, 2 in its last row alone, 3 in row 0, 4 has no action at all."""
    first = {0: rows, 1: 4, 2: rows - 1, 3: 0, 4: 0}[number]
    return np.arange(rows) >= first


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five episodes of one task: in row r of episode e all pixels are (10 * e, r, 0), the state is (e, r), the action
    (100 * e + r, 7, -r).
    """
    pytest.importorskip("lerobot.datasets.lerobot_dataset")
    episodes = []
    for e, n in enumerate(NUM_ROWS):
        row = np.arange(n, dtype=np.float32)
        images = np.zeros((n, 12, 20, 3), dtype=np.uint8)
        images[..., 0], images[..., 1] = 10 * e, np.arange(n)[:, None, None]
        episodes.append(
            {
                "images": images,
                "state": np.stack([np.full(n, e), row], axis=1).astype(np.float32),
                "action": np.stack([100 * e + row, np.full(n, 7), -row], axis=1).astype(np.float32),
                "success": _success(e, n),
                "task": "task 0",
            }
        )
    return record(tmp_path_factory.mktemp("recordings") / "pick", episodes, use_videos=False)


def _config(root: Path, **changes: object) -> RecordingConfig:
    config = RecordingConfig(root=str(root), image_size=8, actions_per_frame=S, success_key="next.success")
    return replace(config, **changes)  # type: ignore[arg-type]


def _read(config: RecordingConfig) -> list[Episode]:
    return list(read_recording(config, recording_spec(config)))


def _fingerprint(root: Path) -> str:
    return open_dataset(str(root)).found.fingerprint


def _preview(config: RecordingConfig) -> list[np.ndarray]:
    return list(read_previews(open_dataset(config.root, config.cameras), 16))


def test_spec(recording: Path) -> None:
    spec = recording_spec(_config(recording))
    robot, (task,) = spec.robot, spec.tasks
    assert (task.id, task.instructions, task.max_episode_steps, task.landmarks) == ("pick", ("task 0",), 11, ())
    assert robot.proprio_names == ("joint_0.pos", "joint_1.pos")
    assert robot.action_names == ("action_0", "action_1", "action_2")
    assert robot.action_low == pytest.approx(
        (0.0, 6.9995, -10.0)
    )  # one action never moved: bounds with room to divide by
    assert robot.action_high == pytest.approx((305.0, 7.0005, 0.0))  # episode 3 ends soon after its success, 4 is empty
    assert robot.cameras == (CameraSpec("front", 8, 8),)
    assert (robot.name, robot.control_mode, robot.hz) == ("so101_follower", "recorded", 30.0)


def test_rows_of_a_failure(recording: Path) -> None:
    episode = _read(_config(recording))[0]
    assert episode.meta.outcome == "failure"
    assert np.isnan(episode.meta.margin_m)
    assert np.isnan(episode.distances_m).all()
    assert (episode.terminated, episode.truncated) == (False, True)
    assert episode.frames["front"][:, 0, 0, 1].tolist() == [0, 3, 6, 9, 11]
    assert episode.frames["front"].shape == (5, 8, 8, 3)
    assert episode.proprio[:, 1].tolist() == [0, 3, 6, 9, 11]
    assert episode.actions[:, :, 0].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 10]]  # row 11's leads nowhere
    assert episode.valid.tolist() == [[True] * 3] * 3 + [[True, True, False]]
    assert not episode.success.any()
    assert not episode.rewards.any()
    assert episode.sim_state.shape == (5, 0)


def test_success_ends_the_episode_some_frames_later(recording: Path) -> None:
    episode = _read(_config(recording, success_hold_frames=1))[1]
    assert episode.meta.outcome == "success"
    assert episode.meta.margin_m == 0
    assert episode.frames["front"][:, 0, 0, 1].tolist() == [0, 3, 6, 9]
    assert episode.success.tolist() == [[False] * 3, [False, True, True], [True] * 3]
    assert episode.rewards.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert episode.valid.tolist() == [[True] * 3, [True, True, False], [False] * 3]
    assert episode.actions[2, :, 0].tolist() == [106, 107, 108]  # executed, though it counts no more
    assert (episode.terminated, episode.truncated) == (True, False)
    assert np.isnan(episode.distances_m[0]).all()
    assert episode.distances_m[2].tolist() == [0, 0, 0]
    without = _read(_config(recording, success_hold_frames=0, success_confirm_frames=0))[1]
    assert without.frames["front"][:, 0, 0, 1].tolist() == [0, 3, 6]


def test_success_at_the_ends_of_an_episode(recording: Path) -> None:
    _, _, last, first = _read(_config(recording))
    assert np.argwhere(last.rewards).tolist() == [[3, 1]]  # row 11 leads nowhere: the action of row 10 gets it
    assert np.argwhere(first.rewards).tolist() == [[0, 0]]
    assert first.num_frame_steps == 2


def test_labels_put_success_where_enough_frames_show_it(recording: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    write_labels(path, {0: True, 3: False, 4: True}, len(NUM_ROWS), _fingerprint(recording))
    episodes = _read(_config(recording, success_key="", labels=str(path), success_hold_frames=1))
    assert [e.meta.initial_state_id for e in episodes] == ["pick/recorded/000000", "pick/recorded/000003"]
    assert episodes[0].success.any(axis=1).tolist() == [False, False, True, True]  # steps: frames 3 and 4 show it
    assert np.argwhere(episodes[0].rewards).tolist() == [[2, 2]]
    assert episodes[0].num_frame_steps == 4
    assert episodes[1].meta.outcome == "failure"
    assert episodes[1].valid.tolist() == [[True] * 3] * 3 + [[True, False, False]]


def test_split_takes_a_share_of_each_outcome(recording: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    write_labels(path, {0: True, 1: True, 2: False, 3: False}, len(NUM_ROWS), _fingerprint(recording))
    episodes = _read(_config(recording, success_key="", labels=str(path), validation_share=0.5))
    held_out = [e.meta.outcome for e in episodes if e.meta.split == "validation"]
    assert sorted(held_out) == ["failure", "success"]


def test_store_round_trip(recording: Path, store, assert_same) -> None:
    config = _config(recording)
    episodes, spec = _read(config), recording_spec(config)
    ref = store.append(episodes, "000-recorded-000", spec)
    assert store.append(_read(config), "000-recorded-000", spec) == ref  # what an interrupted import does again
    assert "NaN" not in (store.shard_path(ref.name) / "meta/stats.json").read_text()
    version = store.snapshot("v000", [ref])
    cache = store.open_cache(version)
    for i, (stored, episode) in enumerate(zip(store.episodes(version), episodes, strict=True)):
        for actual in (stored, cache.episode(i)):
            assert np.isnan(actual.meta.margin_m) == np.isnan(episode.meta.margin_m)
            known = replace(actual, meta=replace(actual.meta, margin_m=0.0))
            assert_same(known, replace(episode, meta=replace(episode.meta, margin_m=0.0)))


def test_a_video_survives_scaling(tmp_path: Path) -> None:
    """A grey ramp over time, through LeRobot's video codec and our scaling."""
    n = 16
    images = np.broadcast_to((np.arange(n) * 14 + 20)[:, None, None, None], (n, 96, 128, 3)).astype(np.uint8)
    ramp = np.linspace(0, 1, n, dtype=np.float32)[:, None]
    episode = {"images": images, "state": ramp, "action": ramp, "success": np.arange(n) == n - 1, "task": "t"}
    config = _config(
        record(tmp_path / "ramp", [episode]), image_size=32, success_hold_frames=0, success_confirm_frames=0
    )
    (read,) = _read(config)
    assert read.frames["front"].shape == (6, 32, 32, 3)
    expected = np.array([0, 3, 6, 9, 12, 15])[:, None, None, None] * 14 + 20
    assert np.abs(read.frames["front"] - expected.astype(float)).max() < 8
    (preview,) = _preview(config)
    assert np.abs(preview.mean((1, 2, 3)) - np.array([20, 7 * 14 + 20, 15 * 14 + 20])).max() < 8


@pytest.fixture(scope="module")
def three_cameras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight episodes of 7 rows in video, of two tasks in turn, four of them successes; each of three cameras is of one
    grey, and a size, of its own.
    """
    pytest.importorskip("lerobot.datasets.lerobot_dataset")
    sizes = {"wrist": (32, 40, 60), "front": (48, 32, 120), "top": (32, 32, 180)}  # height, width, grey
    state = np.arange(7, dtype=np.float32)[:, None]
    episodes = [
        {
            "images": {name: np.full((7, h, w, 3), grey, dtype=np.uint8) for name, (h, w, grey) in sizes.items()},
            "state": state,
            "action": state,
            "success": np.arange(7) >= (6 if e < 4 else 7),
            "task": ("Open the door!", "close it")[e % 2],
        }
        for e in range(8)
    ]
    return record(tmp_path_factory.mktemp("recordings") / "arm", episodes)


def test_every_camera_is_read_at_a_size_of_its_own(three_cameras: Path) -> None:
    config = _config(three_cameras, image_sizes={"wrist": 12})
    assert recording_spec(config).robot.cameras == (
        CameraSpec("wrist", 12, 12),
        CameraSpec("front", 8, 8),
        CameraSpec("top", 8, 8),
    )
    for episode in _read(config):
        assert {name: images.shape for name, images in episode.frames.items()} == {
            "wrist": (3, 12, 12, 3),
            "front": (3, 8, 8, 3),
            "top": (3, 8, 8, 3),
        }
        for name, grey in (("wrist", 60), ("front", 120), ("top", 180)):
            assert np.abs(episode.frames[name].astype(float) - grey).max() < 8
    previews = np.stack(_preview(config))
    assert previews.shape == (8, 9, 16, 16, 3)
    assert np.abs(previews.mean((2, 3, 4)) - np.repeat([60, 120, 180], 3)).max() < 8


def test_a_missing_video_matters_where_its_camera_is_used(three_cameras: Path, tmp_path: Path) -> None:
    root = shutil.copytree(three_cameras, tmp_path / "arm")
    shutil.rmtree(root / "videos/observation.images.wrist")
    config = _config(root, cameras=("top", "observation.images.front"))
    assert recording_spec(config).robot.camera_names == ("top", "front")
    assert [list(episode.frames) for episode in _read(config)] == [["top", "front"]] * 8
    assert _preview(config)[0].shape == (6, 16, 16, 3)
    everything = _config(root)
    for read in (check_recording, _read, lambda c: _preview(c)):
        with pytest.raises(
            WorldloopError, match=r"videos/observation\.images\.wrist/.*mp4 of .* is missing: restore it, or give r"
        ):
            read(everything)


def test_each_instruction_is_a_task(three_cameras: Path) -> None:
    config = _config(three_cameras, cameras=("top",), validation_share=0.5)
    spec = recording_spec(config)
    assert [(t.id, t.instructions, t.max_episode_steps) for t in spec.tasks] == [
        ("arm/open-the-door", ("Open the door!",), 6),
        ("arm/close-it", ("close it",), 6),
    ]
    metas = [episode.meta for episode in _read(config)]
    assert [meta.task for meta in metas] == ["arm/open-the-door", "arm/close-it"] * 4
    assert [meta.instruction for meta in metas] == ["Open the door!", "close it"] * 4
    held_out = [(meta.task, meta.outcome) for meta in metas if meta.split == "validation"]
    assert sorted(held_out) == [(task, o) for task in sorted(spec.task_ids) for o in ("failure", "success")]
    assert metas[2].initial_state_id == "arm/open-the-door/recorded/000002"
    assert recording_spec(replace(config, task="kitchen")).task_ids == ("kitchen/open-the-door", "kitchen/close-it")


def test_tasks_have_ids_of_their_own() -> None:
    assert name_tasks("arm", ["go", "go"]) == {"go": "arm"}
    texts = ["Go!", "go", "\N{ROBOT FACE}", "", "x" * 50, "x" * 60]
    ids = ["go", "go-2", "unnamed", "unnamed-2", "x" * 40, "x" * 40 + "-2"]
    assert name_tasks("arm", texts) == {text: f"arm/{name}" for text, name in zip(texts, ids, strict=True)}


def test_wrong_recordings_are_refused_by_name(recording: Path, tmp_path: Path) -> None:
    def refuse(match: str, **changes: object) -> None:
        with pytest.raises(WorldloopError, match=match):
            _read(replace(_config(recording), **changes))  # type: ignore[arg-type]

    refuse("recording.state_key asks dataset .* for 'joints', which it does not have", state_key="joints")
    refuse("has the cameras front: recording.cameras: 'top' is none of them", cameras=("top",))
    refuse("has the cameras front: recording.image_sizes: 'top' is none of them", image_sizes={"top": 8})
    refuse(r"success_key \(boolean columns: next.success\), or label them: worldloop sans label", success_key="")
    refuse("there are no labels", success_key="", labels=str(tmp_path / "none.json"))
    refuse("root is not given", root="")
    refuse("is no LeRobotDataset: it has no meta/info.json", root=str(tmp_path))
    write_labels(tmp_path / "labels.json", {}, 99, _fingerprint(recording))
    refuse("of a recording of 99 episodes, not 5", success_key="", labels=str(tmp_path / "labels.json"))

    old = tmp_path / "old/meta"
    old.mkdir(parents=True)
    info = json.loads((recording / "meta/info.json").read_text())
    (old / "info.json").write_text(json.dumps(info | {"codebase_version": "v2.1"}))
    refuse("has LeRobot's format v2.1, this worldloop reads v3.0: convert it", root=str(tmp_path / "old"))
    (old / "info.json").write_text(json.dumps(info))
    refuse("no meta/episodes; restore it, or finalize the recording", root=str(tmp_path / "old"))


def _patch(recording: Path, tmp_path: Path, column: str, change: Callable[[list[Any]], None]) -> Path:
    """A copy whose rows of ``column`` were changed, and whose statistics of it are as LeRobot would write them."""
    copy = shutil.copytree(recording, tmp_path / "patched")
    (file,) = (copy / "data").rglob("*.parquet")
    table = pq.read_table(file)
    values = table[column].to_pylist()
    change(values)
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, table.field(column), pa.array(values, table.field(column).type)), file)
    stats = json.loads((copy / "meta/stats.json").read_text())
    rows = np.array(values, dtype=float).reshape(len(values), -1)
    stats[column] |= {"min": rows.min(0).tolist(), "max": rows.max(0).tolist()}
    (copy / "meta/stats.json").write_text(json.dumps(stats))
    return copy


@pytest.mark.parametrize(
    ("column", "row", "dimension", "name"),
    [("action", 15, 2, "'action_2'"), ("observation.state", 15, 0, "'joint_0.pos'")],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_named(
    recording: Path, tmp_path: Path, column: str, row: int, dimension: int, name: str, value: float
) -> None:
    copy = _patch(recording, tmp_path, column, lambda rows: rows[row].__setitem__(dimension, value))
    with pytest.raises(WorldloopError, match=rf"'{column}' is {value} in row 3 of episode 1, dimension {name}: mend"):
        _read(_config(copy))


def test_an_action_that_leads_nowhere_may_be_anything(recording: Path, tmp_path: Path) -> None:
    copy = _patch(recording, tmp_path, "action", lambda rows: rows[23].__setitem__(0, float("nan")))
    spec = recording_spec(_config(copy))
    assert (spec.robot.action_low[0], spec.robot.action_high[0]) == (0.0, 305.0)  # of the rows that are used
    for episode, before in zip(_read(_config(copy)), _read(_config(recording)), strict=True):
        assert np.array_equal(episode.actions, before.actions)


def test_success_is_a_column_of_yes_and_no_from_one_source(recording: Path, tmp_path: Path) -> None:
    copy = _patch(recording, tmp_path, "timestamp", lambda rows: None)
    with pytest.raises(
        WorldloopError, match=r"success_key 'timestamp' holds 0\.03\d* in episode 0, allowed: true and f"
    ):
        _read(_config(copy, success_key="timestamp"))
    with pytest.raises(
        WorldloopError, match=r"success_key=next\.success and recording\.labels=.* say what succeeds: give one"
    ):
        check_recording(_config(recording, labels="/nowhere.json"))
    info = json.loads((copy / "meta/info.json").read_text())
    info["features"]["next.done"] = info["features"]["next.success"]
    (copy / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(WorldloopError, match=r"boolean columns: next\.success\)"):
        check_recording(_config(copy, success_key=""))


def test_a_recording_without_its_frames_is_refused(recording: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(recording, broken)
    for file in (broken / "data").rglob("*.parquet"):
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WorldloopError, match=r"file-000\.parquet of .*, of episodes 0-4, has no end"):
        open_recording(_config(broken))


def test_label_lists() -> None:
    assert parse_numbers("0, 3,5-7", 8) == [0, 3, 5, 6, 7]
    assert format_numbers([0, 3, 5, 6, 7]) == "0, 3, 5-7"
    assert format_numbers([]) == ""
    for text in ("8", "5-8", "7-5", "x", "-1", "1..3"):
        with pytest.raises(WorldloopError, match=r"no episode number|does not fit"):
            parse_numbers(text, 8)
    assert update_labels({0: True, 1: True}, 4, "", "1") == {0: True, 1: False}
    assert update_labels({0: True}, 4, "2", "rest") == {0: True, 1: False, 2: True, 3: False}
    with pytest.raises(WorldloopError, match="episodes 1, 2 cannot be both"):
        update_labels({}, 4, "0-2", "1-3")
    with pytest.raises(WorldloopError, match="the rest cannot be both"):
        update_labels({}, 4, "rest", "rest")


def test_label_files(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    write_labels(path, {2: True, 0: False}, 3, "f1")
    assert read_labels(path, 3, "f1") == Labels({0: False, 2: True}, "f1")
    stored = json.loads(path.read_text())
    for changed in ({"labels": {"0": "maybe"}}, {"labels": {"3": "success"}}, {"labels": [1]}, {"schema_version": 3}):
        path.write_text(json.dumps(stored | changed))
        with pytest.raises(WorldloopError, match=r"labels\.json"):
            read_labels(path, 3, "f1")


def test_labels_remember_their_dataset(recording: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    write_labels(path, {0: True, 1: False}, len(NUM_ROWS), _fingerprint(recording))
    config = _config(recording, success_key="", labels=str(path))
    assert len(_read(config)) == 2
    assert open_recording(config).doubts == ()

    other = _change_mean(recording, tmp_path / "other")
    refused = r"labels\.json are of another dataset, .*: label this one in a file of its own\. .* set \"dataset\" in"
    with pytest.raises(WorldloopError, match=refused):
        open_recording(replace(config, root=str(other)))
    assert main(["sans", "label", str(other), str(path), "--success", "2"]) == 2

    old = {k: v for k, v in json.loads(path.read_text()).items() if k != "dataset"} | {"schema_version": 1}
    path.write_text(json.dumps(old))
    assert open_recording(config).doubts == (f"labels {path} do not say of which dataset they are",)
    assert main(["sans", "label", str(recording), str(path), "--success", "2"]) == 0
    assert open_recording(config).doubts == ()


def test_a_dataset_is_the_same_however_its_files_are_arranged(recording: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(recording, tmp_path / "copy")
    (file,) = (copy / "meta/episodes").rglob("*.parquet")
    rows = pq.read_table(file)
    pq.write_table(rows.slice(0, 2), file)
    pq.write_table(rows.slice(2), file.with_name("file-001.parquet"), compression="none")
    assert _fingerprint(copy) == _fingerprint(recording)
    assert _fingerprint(_change_mean(recording, tmp_path / "other")) != _fingerprint(recording)


def _change_mean(recording: Path, copy: Path) -> Path:
    """A copy of the same sizes whose episodes hold something else, as their statistics say."""
    shutil.copytree(recording, copy)
    (file,) = (copy / "meta/episodes").rglob("*.parquet")
    table = pq.read_table(file).to_pandas()
    table["stats/action/mean"] = [mean + 1 for mean in table["stats/action/mean"]]
    pq.write_table(pa.Table.from_pandas(table, preserve_index=False), file)
    return copy
