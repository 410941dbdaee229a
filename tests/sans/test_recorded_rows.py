"""Reading rows and pictures from the files: nothing is copied, and each kind of failure has a remedy of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hand_recording import FRONT, NUM_ROWS, edit_info, edit_table, encode, grey, write_recording

from worldloop.core.errors import WorldloopError
from worldloop.sans.recorded_dataset import open_dataset
from worldloop.sans.recorded_episodes import read_previews, read_recording
from worldloop.sans.recordings import RecordingConfig, check_recording, recording_spec

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
VIDEO = f"videos/{FRONT}/chunk-000/file-000.mp4"
DATA, EPISODES = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"


def _read(root: Path, **changes: Any) -> list[np.ndarray]:
    """The frames of every episode."""
    settings = {"image_size": 16, "actions_per_frame": 2, "success_key": "next.success"} | changes
    config = RecordingConfig(root=str(root), **settings)
    check_recording(config)
    return [
        episode.frames[name] for episode in read_recording(config, recording_spec(config)) for name in episode.frames
    ]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _scramble(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:4] + b"\x00" * (len(data) - 8) + data[-4:])


@pytest.mark.parametrize(
    ("name", "damage", "match"),
    [
        (VIDEO, lambda p: p.write_bytes(LFS), r"file-000\.mp4 of .* is a Git LFS pointer, .*: run git lfs pull in "),
        (VIDEO, Path.unlink, r"file-000\.mp4 of .* is missing: restore it, or give recording.cameras without 'front'"),
        (VIDEO, lambda p: p.write_bytes(b""), r"file-000\.mp4 of .* is empty: restore it from a copy, or give rec"),
        (VIDEO, _scramble, r"file-000\.mp4 of .* is damaged \(Invalid data .*: restore .* \(episode 0 needs it\)"),
        (DATA, lambda p: p.write_bytes(LFS), r"file-000\.parquet of .*, of episodes 0-3, is a Git LFS pointer"),
        (DATA, _cut, r"file-000\.parquet of .*, of episodes 0-3, has no end: .* finalize\(\)\. Copy it again"),
        (DATA, _scramble, r"data/.*file-000\.parquet of .*, of episodes 0-3, is damaged \(.*\): restore it from a"),
        (DATA, Path.unlink, r"has no parquet file below data/; restore it"),
        (EPISODES, _cut, r"meta/episodes/.*file-000\.parquet of .* has no end"),
        (EPISODES, Path.unlink, r"has no meta/episodes"),
        ("meta/info.json", lambda p: p.write_bytes(LFS), r"meta/info\.json of .* is a Git LFS pointer"),
        ("meta/info.json", lambda p: p.write_bytes(b"{"), r"meta/info\.json of .* is damaged"),
        ("meta/info.json", Path.unlink, r"is no LeRobotDataset: it has no meta/info\.json"),
    ],
)  # fmt: skip
def test_broken_files_are_told_apart(tmp_path: Path, name: str, damage: Callable[[Path], Any], match: str) -> None:
    root = write_recording(tmp_path / "arm", video=True)
    damage(root / name)
    with pytest.raises(WorldloopError, match=match) as caught:
        _read(root)
    assert "record it again" not in str(caught.value)


def _jitter(table: Any) -> None:
    table["timestamp"] = table["timestamp"] + np.where(table["frame_index"] == 2, 0.004, 0)


def test_timestamps_may_differ_as_much_as_is_allowed(tmp_path: Path) -> None:
    root = write_recording(tmp_path / "arm", video=True)
    edit_table(root, "data", _jitter)
    with pytest.raises(
        WorldloopError,
        match=r"file-000\.mp4 of .* has no frame at 0\.2040 s, for row 2 of episode 0; the nearest is at 0\.2000 s: .* "
        r"raise recording\.tolerance_s, now 0\.0001, up to half a frame, 0\.05",
    ):
        _read(root)
    for number, shown in enumerate(_read(root, tolerance_s=0.01)):
        expected = [grey(number, row) for row in (0, 2, 4, 5)][: len(shown)]
        assert np.abs(shown.mean((1, 2, 3)) - expected).max() < 3


def test_a_video_that_ends_too_early_is_no_question_of_tolerance(tmp_path: Path) -> None:
    root = write_recording(tmp_path / "arm", video=True)
    edit_table(root, "meta/episodes", lambda t: t.__setitem__(f"videos/{FRONT}/from_timestamp", [0.0, 0.6, 1.2, 2.1]))
    with pytest.raises(WorldloopError, match=r"for row 4 of episode 3; .* frames are missing: .*=3"):
        _read(root)
    assert len(list(read_previews(open_dataset(str(root)), 8))) == 4, "to judge by eye, the nearest frame will do"


def test_long_videos_are_found_by_seeking(tmp_path: Path) -> None:
    """The last episode begins after 2.4 s: alone, and after all others, it shows the same."""
    root = write_recording(tmp_path / "arm", num_episodes=5, video=True)
    dataset = open_dataset(str(root))
    rows = np.arange(NUM_ROWS)
    last = dataset.make_reader(1e-4).pictures(FRONT, 4, rows, (16, 16))
    reader = dataset.make_reader(1e-4)
    assert np.array_equal([reader.pictures(FRONT, e, rows, (16, 16)) for e in range(5)][4], last)
    assert np.abs(last.mean((1, 2, 3)) - [grey(4, row) for row in rows]).max() < 3
    jump = reader.pictures(FRONT, 0, np.array([0, 5]), (16, 16))
    assert np.abs(jump.mean((1, 2, 3)) - [grey(0, 0), grey(0, 5)]).max() < 3


def _images(root: Path, change: Callable[[list[Any]], None]) -> None:
    def edit(table: Any) -> None:
        images = list(table[FRONT])
        change(images)
        table[FRONT] = images

    edit_table(root, "data", edit)


DEPTH = {"bytes": encode(np.full((16, 16), 4000, np.uint16)), "path": None}


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (DEPTH, r"'observation\.images\.front' of .* holds depth \(of mode I;16\).*: give recording.cameras with"),
        ({"bytes": b"no picture", "path": None}, r"the image .* in row 2 of episode 1 cannot be decoded .*: rest"),
        ({"bytes": None, "path": None}, r"holds no image in row 8 of data/chunk-000/file-000\.parquet"),
        ({"bytes": None, "path": "images/lost.png"}, r"arm/images/lost\.png, an image of the dataset .*, cannot be"),
    ],
)  # fmt: skip
def test_images_that_are_none_are_told_apart(tmp_path: Path, image: dict[str, Any], match: str) -> None:
    root = write_recording(tmp_path / "arm")
    _images(root, lambda images: images.__setitem__(NUM_ROWS + 2, image))
    with pytest.raises(WorldloopError, match=match):
        _read(root)


def test_images_may_lie_beside_the_table(tmp_path: Path) -> None:
    root = write_recording(tmp_path / "arm")
    (root / "images").mkdir()

    def take_out(images: list[Any]) -> None:
        for number, image in enumerate(images):
            (root / f"images/{number}.png").write_bytes(image["bytes"])
            images[number] = {"bytes": None, "path": f"images/{number}.png"}

    before = _read(root)
    _images(root, take_out)
    assert all(np.array_equal(a, b) for a, b in zip(before, _read(root), strict=True))


def test_row_groups_of_any_size_give_the_same_images(tmp_path: Path) -> None:
    root = write_recording(tmp_path / "arm")
    before = _read(root)
    table = pq.read_table(root / DATA)
    for size in (1, 5, 100):
        pq.write_table(table, root / DATA, row_group_size=size)
        assert all(np.array_equal(a, b) for a, b in zip(before, _read(root), strict=True))


def test_a_camera_that_the_rows_lack_is_named(tmp_path: Path) -> None:
    root = write_recording(tmp_path / "arm")
    edit_info(root, lambda info: info["features"].update({"observation.images.top": info["features"][FRONT]}))
    with pytest.raises(WorldloopError, match=r"has no column 'observation\.images\.top'; there are: observation\.imag"):
        _read(root)
    assert len(_read(root, cameras=("front",))) == 4


def test_vectors_of_several_axes_and_rows_of_unequal_length(tmp_path: Path) -> None:
    root = write_recording(tmp_path / "arm")
    edit_info(root, lambda info: info["features"]["observation.state"].update(shape=[2, 2]))
    edit_table(root, "data", lambda t: t.__setitem__("observation.state", [[[e, 1], [r, 2]] for e, r in t["action"]]))
    config = RecordingConfig(root=str(root), success_key="next.success")
    assert check_recording(config).numbers[1].state[2].tolist() == [12, 1, pytest.approx(1.2), 2]
    edit_table(
        root, "data", lambda t: t.__setitem__("observation.state", [[[1.0]] * (1 + i % 3) for i in range(len(t))])
    )
    with pytest.raises(WorldloopError, match=r"'observation\.state' in data/.* has rows of different lengths"):
        check_recording(config)


def test_nothing_is_written_and_lerobot_is_not_needed(tmp_path: Path) -> None:
    """A home folder that cannot be written, no network, and neither `datasets` nor `lerobot` imported."""
    root = write_recording(tmp_path / "arm", video=True)
    code = (
        "import sys; sys.path[:0] = ['tests', 'tests/sans']\n"
        "from pathlib import Path\n"
        "from test_recorded_rows import _read\n"
        "assert len(_read(Path(sys.argv[1]))) == 4\n"
        "assert not {'datasets', 'lerobot', 'huggingface_hub'} & set(sys.modules)\n"
    )
    before = sorted(p for p in tmp_path.rglob("*"))
    environment = os.environ | {"HOME": "/dev/null/nowhere", "PYTHONPATH": os.pathsep.join(sys.path), "HF_HOME": ""}
    done = subprocess.run([sys.executable, "-c", code, str(root)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(p for p in tmp_path.rglob("*")) == before
