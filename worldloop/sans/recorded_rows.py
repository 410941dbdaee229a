"""Read the metadata, rows and images of a LeRobot dataset that was recorded elsewhere.

Rows and images are read with LeRobot's functions, but not with its dataset class. That class decodes every camera of a
row, and refuses a dataset that lacks the video of a camera which is not used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldloop.core.errors import WorldloopError, first_line
from worldloop.core.images import resize
from worldloop.sans.lerobot_format import IMAGE_PREFIX, require_data_extra

_TOLERANCE_S = 1e-4  # largest difference between the time of a row and the time of its video frame
_PICTURES_AT_ONCE = 32  # images decoded before they are resized; bounds the memory


@dataclass(frozen=True)
class VideoPart:
    """Where an episode's video is: the file, and the second in it at which the episode begins."""

    path: Path
    start_s: float


@dataclass(frozen=True)
class RecordedEpisodes:
    """The N episodes of a dataset, in order.

    - ``rows`` int64 [N, 2]: the first row of each episode, and the row after its last
    - ``instructions``: N strings
    - ``videos``: camera feature -> N parts, only for cameras that are stored as video
    """

    rows: np.ndarray
    instructions: tuple[str, ...]
    videos: dict[str, tuple[VideoPart, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)


@contextmanager
def naming_damage(root: Path) -> Iterator[None]:
    """Within this context, an error that a broken LeRobot dataset causes becomes one `WorldloopError`."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise WorldloopError(
            f"dataset {root} is damaged, or was not finalized ({type(error).__name__}: {first_line(error)}): "
            "restore it from a copy, or record it again"
        ) from error


def read_meta(root: Path, name: str) -> dict[str, Any]:
    """The JSON file ``meta/name`` of the dataset ``root``; raises `WorldloopError` if it cannot be read."""
    try:
        value = json.loads((root / "meta" / name).read_bytes())
    except (OSError, ValueError) as error:
        raise WorldloopError(f"{root} is no LeRobotDataset: its meta/{name} cannot be read ({error})") from error
    return dict(value)


def list_cameras(features: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Camera name, e.g. ``top`` -> its feature, e.g. ``observation.images.top``, in the dataset's order.

    Depth maps are left out.
    """
    cameras = [
        key
        for key, feature in features.items()
        if feature["dtype"] in ("image", "video") and not _is_depth(feature.get("info") or {})
    ]
    return {name_camera(key): key for key in cameras}


def name_camera(feature: str) -> str:
    """``observation.images.top`` -> ``top``."""
    return feature.removeprefix(IMAGE_PREFIX)


def _is_depth(info: dict[str, Any]) -> bool:
    return bool(info.get("is_depth_map") or info.get("video.is_depth_map"))


def name_dimensions(feature: dict[str, Any], kind: str) -> tuple[str, ...]:
    """Names of the dimensions of a vector feature. LeRobot stores a list, a mapping to lists, or nothing.

    If there is not one name per dimension, the names are ``kind_0``, ``kind_1``, ...
    """
    names, size = feature.get("names"), int(np.prod(feature["shape"]))
    if isinstance(names, dict):
        names = [name for values in names.values() for name in (values if isinstance(values, list) else [values])]
    if not names or len(names) != size:
        names = [f"{kind}_{i}" for i in range(size)]
    return tuple(str(name) for name in names)


def read_episodes(root: Path, info: dict[str, Any], cameras: Sequence[str]) -> RecordedEpisodes:
    """Read the table of episodes, and where the videos of the camera features ``cameras`` are.

    ``info`` is the content of ``meta/info.json``. Raises `WorldloopError` if ``meta/episodes`` is missing or broken.
    """
    require_data_extra()
    import pyarrow as pa
    import pyarrow.parquet as pq

    in_video = [key for key in cameras if info["features"][key]["dtype"] == "video"]
    columns = ["episode_index", "dataset_from_index", "dataset_to_index", "tasks"]
    columns += [f"videos/{key}/{name}" for key in in_video for name in ("chunk_index", "file_index", "from_timestamp")]
    files = sorted((root / "meta/episodes").rglob("*.parquet"))
    if not files:
        raise WorldloopError(f"{root} is no whole LeRobotDataset: it has no meta/episodes; finalize the recording")
    try:
        table = pa.concat_tables([pq.read_table(file, columns=columns) for file in files])
    except (pa.ArrowException, KeyError) as error:
        raise WorldloopError(f"the meta/episodes of {root} cannot be read ({error}): was it finalized?") from error
    rows = sorted(table.to_pylist(), key=lambda row: row["episode_index"])

    def find_video(row: dict[str, Any], key: str) -> VideoPart:
        chunk, file = (row[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index"))
        path = root / info["video_path"].format(video_key=key, chunk_index=chunk, file_index=file)
        return VideoPart(path, float(row[f"videos/{key}/from_timestamp"]))

    return RecordedEpisodes(
        rows=np.array([[row["dataset_from_index"], row["dataset_to_index"]] for row in rows], dtype=np.int64),
        instructions=tuple(str(row["tasks"][0]) if row["tasks"] else "" for row in rows),
        videos={key: tuple(find_video(row, key) for row in rows) for key in in_video},
    )


def find_bounds(root: Path, key: str, episodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and highest finite value of each dimension of ``key``, f64 [A] each, in the rows that lead somewhere.

    ``episodes`` int64 [N, 2] are the rows of `RecordedEpisodes`; the last row of each does not count.
    """
    import pyarrow.parquet as pq

    low, high = [], []
    for file in sorted((root / "data").rglob("*.parquet")):
        table = pq.read_table(file, columns=["index", key])
        values = np.array(table[key].to_pylist(), dtype=float).reshape(len(table), -1)
        used = values[~np.isin(table["index"].to_numpy(), episodes[:, 1] - 1)]
        used[~np.isfinite(used)] = np.nan
        low.append(np.fmin.reduce(used, initial=np.inf))
        high.append(np.fmax.reduce(used, initial=-np.inf))
    return np.min(low, axis=0), np.max(high, axis=0)


def require_videos(root: Path, episodes: RecordedEpisodes) -> None:
    """Raise `WorldloopError` if a video is missing, naming the first."""
    for key, parts in episodes.videos.items():
        for path in dict.fromkeys(part.path for part in parts):
            if not path.is_file():
                raise WorldloopError(
                    f"dataset {root} lacks {path.relative_to(root)}, a video of the camera {name_camera(key)}: restore "
                    "it, or leave that camera out of recording.cameras"
                )


class RowReader:
    """Reads rows of a dataset, and images of only the camera that is asked for.

    Raises `WorldloopError` if LeRobot is not installed or cannot open the dataset.
    """

    def __init__(self, root: Path, episodes: RecordedEpisodes) -> None:
        self.episodes = episodes
        self._table = _open_table(root)

    def numbers(self, keys: Sequence[str], begin: int, end: int) -> dict[str, np.ndarray]:
        """Feature -> its values [end - begin, ...] in the rows ``begin`` to ``end - 1``."""
        rows = self._table.with_format("numpy", columns=list(keys))[begin:end]
        return {key: np.stack(list(rows[key])) for key in keys}

    def pictures(self, camera: str, episode: int, rows: np.ndarray, size: int) -> np.ndarray:
        """Images u8 [n, size, size, 3] of the feature ``camera`` at ``rows`` int64 [n].

        Rows are counted from the episode's first.
        """
        begin = int(self.episodes.rows[episode, 0])
        blocks = np.split(rows, range(_PICTURES_AT_ONCE, len(rows), _PICTURES_AT_ONCE))
        return np.concatenate([self._read_block(camera, episode, begin + block, size) for block in blocks])

    def _read_block(self, camera: str, episode: int, rows: np.ndarray, size: int) -> np.ndarray:
        if camera not in self.episodes.videos:
            table = self._table.with_format(None, columns=[camera])
            images = [np.asarray(table[int(row)][camera].convert("RGB")) for row in rows]
            return resize(torch.from_numpy(np.stack(images)), size).numpy()
        from lerobot.datasets.video_utils import decode_video_frames

        part = self.episodes.videos[camera][episode]
        table = self._table.with_format(None, columns=["timestamp"])
        times = [part.start_s + float(np.ravel(table[int(row)]["timestamp"])[0]) for row in rows]
        frames = decode_video_frames(part.path, times, _TOLERANCE_S, return_uint8=True)
        return resize(frames.movedim(1, -1), size).numpy()


def _open_table(root: Path) -> Any:
    """The `datasets.Dataset` of all rows."""
    try:
        from lerobot.datasets.feature_utils import get_hf_features_from_features
        from lerobot.datasets.io_utils import load_info, load_nested_dataset
    except ImportError as error:
        raise WorldloopError(
            "reading a recording needs lerobot, which is not installed: pip install -e '.[data]' in the clone"
        ) from error
    try:
        features = get_hf_features_from_features(load_info(root).features)
        return load_nested_dataset(root / "data", features=features)
    except Exception as error:  # LeRobot and datasets raise many kinds
        raise WorldloopError(
            f"LeRobot cannot open the dataset {root} ({first_line(error)}): it must be a LeRobot v3 dataset"
        ) from error
