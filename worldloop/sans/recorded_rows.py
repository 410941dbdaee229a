"""Read rows and images of a LeRobot dataset that was recorded elsewhere, straight from its parquet and video files.

LeRobot's dataset class decodes every camera of a row, refuses a dataset that lacks the video of a camera which is not
used, and copies all images into a cache in the home folder. Which row belongs to which episode is read from the rows
themselves: an editing tool may leave other numbers in ``meta/episodes``.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldloop.core.errors import WorldloopError, first_line
from worldloop.core.images import resize
from worldloop.sans.recorded_features import name_camera
from worldloop.sans.recorded_files import ParquetFile, explain_file, name_file, require_whole
from worldloop.sans.recorded_video import find_frames

_INDEX = ("episode_index", "frame_index", "timestamp", "task_index")
_DEPTH_MODES = ("I", "F")  # Pillow's images of more than 8 bits


@dataclass(frozen=True)
class VideoPart:
    """Where an episode's video is: the file, and the second in it at which the episode begins."""

    path: Path
    start_s: float


@dataclass(frozen=True)
class RecordedEpisodes:
    """The N episodes of a dataset, in order.

    - ``rows``: N arrays int64 [n]: where the rows of an episode are among all rows of ``data/``, in order of time
    - ``times_s``: N arrays f64 [n], from the episode's beginning
    - ``instructions``: N strings
    - ``videos``: camera feature -> N parts, only for cameras that are stored as video
    """

    rows: tuple[np.ndarray, ...]
    times_s: tuple[np.ndarray, ...]
    instructions: tuple[str, ...]
    videos: dict[str, tuple[VideoPart, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)


class RowTable:
    """All rows below ``data/``, numbered file after file; holds one file's numbers and one block of images at a time.

    ``holds``: file -> its episodes, as far as metadata says so, for errors. Raises `WorldloopError` for a missing or
    broken file, and for a column that is not there.
    """

    def __init__(self, root: Path, holds: Mapping[Path, str]) -> None:
        self.root = root
        paths = sorted((root / "data").rglob("*.parquet"))
        if not paths:
            raise WorldloopError(f"{root} is no whole LeRobotDataset: it has no parquet file below data/; restore it")
        self.files = [ParquetFile(root, path, holds.get(path, "")) for path in paths]
        self._first = np.cumsum([0, *(file.num_rows for file in self.files)])
        self._numbers: tuple[int, dict[str, np.ndarray]] = (-1, {})
        self._images: tuple[int, str, int, Any] = (-1, "", 0, ())

    def __len__(self) -> int:
        return int(self._first[-1])

    def index(self) -> dict[str, np.ndarray]:
        """Of all rows: ``episode_index``, ``frame_index`` and ``task_index`` int64 [R], ``timestamp`` f64 [R].

        ``task_index`` is left out if the dataset has none.
        """
        names = [name for name in _INDEX if name != "task_index" or name in self.files[0].columns]
        found: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for file in self.files:
            table = file.read(names)
            for name in names:
                values = self._to_numpy(file, name, table[name])
                found[name].append(values.astype(np.float64 if name == "timestamp" else np.int64).reshape(-1))
        return {name: np.concatenate(parts) for name, parts in found.items()}

    def numbers(self, key: str, rows: np.ndarray) -> np.ndarray:
        """The values [n, ...] of the feature ``key`` at ``rows`` int64 [n]; raises `WorldloopError` for text."""
        file_of = np.searchsorted(self._first, rows, side="right") - 1
        order = np.argsort(file_of, kind="stable")
        parts = [self._load(int(i), key)[rows[order][file_of[order] == i] - self._first[i]] for i in np.unique(file_of)]
        values = np.concatenate(parts)
        return values[np.argsort(order, kind="stable")]

    def image(self, key: str, row: int) -> tuple[Path, bytes]:
        """The file that holds the image ``key`` of ``row``, and the image as it was encoded."""
        i = int(np.searchsorted(self._first, row, side="right")) - 1
        file, place = self.files[i], row - int(self._first[i])
        at, name, begin, column = self._images
        if (at, name) != (i, key) or not begin <= place < begin + len(column):
            begin, column = file.read_group(place, key)
            self._images = (i, key, begin, column)
        value = column[place - begin].as_py()
        if not isinstance(value, dict) or not (value.get("bytes") or value.get("path")):
            raise WorldloopError(f"{key!r} holds no image in row {place} of {name_file(self.root, file.path)}")
        if value.get("bytes"):
            return file.path, value["bytes"]
        path = self.root / value["path"]  # an absolute path stays as it is
        try:
            return path, path.read_bytes()
        except OSError as error:
            raise WorldloopError(f"{path}, an image of the dataset {self.root}, cannot be read ({error})") from error

    def _load(self, i: int, key: str) -> np.ndarray:
        """All values of ``key`` in file ``i``."""
        at, known = self._numbers
        if at != i:
            at, known = self._numbers = (i, {})
        if key not in known:
            known[key] = self._to_numpy(self.files[i], key, self.files[i].read([key])[key])
        return known[key]

    def _to_numpy(self, file: ParquetFile, key: str, column: Any) -> np.ndarray:
        """A column of numbers, or of lists of them, all of one shape, as an array [rows, ...]."""
        import pyarrow as pa
        import pyarrow.compute as pc

        where = f"{key!r} in {name_file(self.root, file.path)}"
        values, shape = column.combine_chunks(), [len(column)]
        while True:
            if isinstance(values, pa.ChunkedArray):
                values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)
            if isinstance(values.type, pa.BaseExtensionType):
                values = values.storage
            if not (pa.types.is_list(values.type) or _is_other_list(values.type)):
                break
            lengths = np.unique(pc.list_value_length(values).fill_null(-1).to_numpy())
            if len(lengths) > 1 or (lengths < 0).any():
                raise WorldloopError(f"{where} has rows of different lengths: mend the recording")
            shape.append(int(lengths[0]) if len(lengths) else 0)
            values = values.flatten()
        if not (
            pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_boolean(values.type)
        ):
            raise WorldloopError(f"{where} holds {values.type}, not numbers")
        return values.to_numpy(zero_copy_only=False).reshape(shape)


def _is_other_list(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


class RowReader:
    """Reads numbers and images of episodes, counted as in ``episodes``; decodes only the camera that is asked for.

    ``tolerance_s``: largest difference between the time of a row and that of its frame in the video, in seconds.
    ``cameras_setting`` is what chooses the cameras, e.g. ``--camera``. Raises `WorldloopError` that names file and
    episode.
    """

    def __init__(self, table: RowTable, episodes: RecordedEpisodes, tolerance_s: float, cameras_setting: str) -> None:
        self.table, self.episodes, self._tolerance_s = table, episodes, tolerance_s
        self._setting = cameras_setting

    def numbers(self, key: str, episode: int) -> np.ndarray:
        """The values [n, ...] of ``key`` in all rows of the episode."""
        return self.table.numbers(key, self.episodes.rows[episode])

    def pictures(self, camera: str, episode: int, rows: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Images u8 [n, *size, 3] of the feature ``camera`` at ``rows`` int64 [n]; ``size`` is (height, width).

        Rows are counted from the episode's first, and increase.
        """
        read = self._read_video if camera in self.episodes.videos else self._read_images
        return np.concatenate(
            [resize(torch.from_numpy(image[None]), size).numpy() for image in read(camera, episode, rows)]
        )

    def _read_images(self, camera: str, episode: int, rows: np.ndarray) -> Iterator[np.ndarray]:
        from PIL import Image

        for row in rows.tolist():
            path, data = self.table.image(camera, int(self.episodes.rows[episode][row]))
            try:
                with Image.open(io.BytesIO(data)) as image:
                    if image.mode.startswith(_DEPTH_MODES):
                        raise self._refuse_depth(camera, f"of mode {image.mode}")
                    yield np.array(image.convert("RGB"))
            except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises
                raise WorldloopError(
                    f"the image {camera!r} in row {row} of episode {episode} cannot be decoded "
                    f"({first_line(error)}): restore {path} from a copy, or give {self._setting} without it"
                ) from error

    def _read_video(self, camera: str, episode: int, rows: np.ndarray) -> Iterator[np.ndarray]:
        part = self.episodes.videos[camera][episode]
        times_s = part.start_s + self.episodes.times_s[episode][rows]
        frames = find_frames(part.path, times_s.tolist())
        for row, time_s in zip(rows.tolist(), times_s.tolist(), strict=True):
            try:
                image, found_s = next(frames)
            except (OSError, ValueError) as error:
                remedy = f"give {self._setting} without {name_camera(camera)!r} (episode {episode} needs it)"
                raise explain_file(self.table.root, part.path, error, remedy) from error
            gap_s = abs(found_s - time_s)
            if gap_s > self._tolerance_s + np.spacing(np.float32(time_s)):  # rows hold float32
                raise self._refuse_gap(part.path, episode, row, time_s, found_s)
            yield image

    def _refuse_gap(self, path: Path, episode: int, row: int, time_s: float, found_s: float) -> WorldloopError:
        steps_s = np.diff(self.episodes.times_s[episode])
        half_s = float(np.median(steps_s)) / 2 if len(steps_s) else 0.0
        remedy = (
            f"if its timestamps are not exact, raise recording.tolerance_s, now {self._tolerance_s:g}, up to half a "
            f"frame, {half_s:.3g}"
            if abs(found_s - time_s) <= half_s
            else f"frames are missing: restore the video from a copy, or leave out recording.skip_episodes={episode}"
        )
        return WorldloopError(
            f"{name_file(self.table.root, path)} has no frame at {time_s:.4f} s, for row {row} of episode {episode}; "
            f"the nearest is at {found_s:.4f} s: {remedy}"
        )

    def _refuse_depth(self, camera: str, what: str) -> WorldloopError:
        return WorldloopError(
            f"{camera!r} of the dataset {self.table.root} holds depth ({what}), not colours: give "
            f"{self._setting} without it"
        )


def require_videos(root: Path, episodes: RecordedEpisodes, cameras_setting: str) -> None:
    """Raise `WorldloopError` if a video is missing, empty, or only a Git LFS pointer, naming the first."""
    for camera, parts in episodes.videos.items():
        for path in dict.fromkeys(part.path for part in parts):
            require_whole(root, path, f"give {cameras_setting} without {name_camera(camera)!r}")
