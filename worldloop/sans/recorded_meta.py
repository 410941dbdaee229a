"""Read the metadata of a LeRobot dataset that was recorded elsewhere, and compare it with the rows.

Editing tools and people change one and forget the other. The rows win wherever they can say the same thing: which rows
are an episode, how many, and what its instruction is. Each such difference becomes a *doubt*, a sentence that the user
is told. Where only metadata could say it (the rate, the place in a video) a contradiction is an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from worldloop.core.errors import WorldloopError
from worldloop.sans.labels import format_numbers
from worldloop.sans.recorded_files import ParquetFile
from worldloop.sans.recorded_rows import RecordedEpisodes, RowTable, VideoPart

_RATE_TOLERANCE = 0.1  # relative; a real recorder's clock drifts by less
_VIDEO_COLUMNS = ("chunk_index", "file_index", "from_timestamp")


@dataclass(frozen=True)
class Found:
    """The rows and episodes of a dataset, what is doubtful about its metadata, and a hash of what its episodes hold."""

    table: RowTable
    episodes: RecordedEpisodes
    doubts: tuple[str, ...]
    fingerprint: str


def find_episodes(root: Path, info: dict[str, Any], cameras: Sequence[str]) -> Found:
    """The episodes of the dataset ``root``, their rows, and where the videos of the features ``cameras`` are.

    ``info`` is the content of ``meta/info.json``. Raises `WorldloopError` if a file is missing or broken, if there are
    no rows of an episode, or if rows, rate and places in videos contradict each other.
    """
    fps, in_video = float(info["fps"]), [key for key in cameras if info["features"][key]["dtype"] == "video"]
    stored = _read_stored(root, in_video)
    table = RowTable(root, _list_files(root, info, stored))
    index = table.index()
    rows, doubts = _find_rows(root, index, stored)
    times_s = tuple(index["timestamp"][own] - index["timestamp"][own[0]] for own in rows)
    _check_times(root, fps, times_s, bool(in_video))
    starts_s = [float(index["timestamp"][own[0]]) for own in rows]  # not 0 if the first rows were cut off
    videos = {
        key: tuple(_find_video(root, info, key, row, s) for row, s in zip(stored, starts_s, strict=True))
        for key in in_video
    }
    for parts in videos.values():
        _check_places(root, parts, times_s, fps)
    instructions = _find_instructions(root, index, rows, stored, doubts)
    episodes = RecordedEpisodes(rows, times_s, instructions, videos)
    return Found(table, episodes, tuple(doubts), _hash_episodes(stored))


def _list_files(root: Path, info: dict[str, Any], stored: list[dict[str, Any]]) -> dict[Path, str]:
    """File below ``data/`` -> the episodes that it holds according to ``stored``, e.g. ``0-11``."""
    held: dict[Path, list[int]] = {}
    for row in stored:
        place = {name: row.get(f"data/{name}") for name in ("chunk_index", "file_index")}
        if info.get("data_path") and None not in place.values():
            held.setdefault(root / str(info["data_path"]).format(**place), []).append(int(row["episode_index"]))
    return {path: format_numbers(numbers) for path, numbers in held.items()}


def _read_stored(root: Path, in_video: list[str]) -> list[dict[str, Any]]:
    """The table of episodes, in their order."""
    paths = sorted((root / "meta/episodes").rglob("*.parquet"))
    if not paths:
        raise WorldloopError(
            f"{root} is no whole LeRobotDataset: it has no meta/episodes; restore it, or finalize the recording"
        )
    needed = ["episode_index", *(f"videos/{key}/{name}" for key in in_video for name in _VIDEO_COLUMNS)]
    stored: list[dict[str, Any]] = []
    for path in paths:
        file = ParquetFile(root, path)
        own = ("length", "tasks", "dataset_from_index", "dataset_to_index", "data/chunk_index", "data/file_index")
        others = [name for name in file.columns if name in own or name.startswith("stats/")]
        stored += file.read([*needed, *others]).to_pylist()
    stored.sort(key=lambda row: int(row["episode_index"]))
    numbers = [int(row["episode_index"]) for row in stored]
    if twice := sorted({a for a, b in pairwise(numbers) if a == b}):
        raise WorldloopError(f"meta/episodes of {root} describes episodes twice: {format_numbers(twice)}; mend it")
    return stored


def _find_rows(
    root: Path, index: dict[str, np.ndarray], stored: list[dict[str, Any]]
) -> tuple[tuple[np.ndarray, ...], list[str]]:
    """The rows of each episode in ``stored``, in order of time, and where ``stored`` says otherwise."""
    order = np.lexsort((index["frame_index"], index["episode_index"]))
    present, begins = np.unique(index["episode_index"][order], return_index=True)
    rows_of = dict(zip(present.tolist(), np.split(order, begins[1:]), strict=True))
    numbers = [int(row["episode_index"]) for row in stored]
    if missing := [number for number in numbers if number not in rows_of]:
        raise WorldloopError(
            f"data/ of the dataset {root} has no rows of episodes {format_numbers(missing)}, which meta/episodes "
            "describes: restore the missing parquet files"
        )
    doubts = []
    if unknown := sorted(set(rows_of) - set(numbers)):
        doubts.append(f"episodes {format_numbers(unknown)} have rows, but meta/episodes lacks them: they are left out")
    moved, gaps = [], []
    for number, row in zip(numbers, stored, strict=True):
        own = rows_of[number]
        steps = np.diff(index["frame_index"][own])
        if (steps == 0).any():
            frame = int(index["frame_index"][own][int((steps == 0).argmax())])
            raise WorldloopError(
                f"data/ of the dataset {root} holds row {frame} of episode {number} twice: a parquet file below "
                "data/ may be a copy of another one; remove it"
            )
        if (steps > 1).any():
            gaps.append(number)
        begin, end = row.get("dataset_from_index"), row.get("dataset_to_index")
        place = (int(own[0]), int(own[-1]) + 1)
        if begin is not None and end is not None and (begin, end) != place:
            moved.append((number, f"rows {begin} to {end - 1}, data/ has rows {place[0]} to {place[1] - 1}"))
        elif row.get("length") not in (None, len(own)):
            moved.append((number, f"{row['length']} rows, data/ has {len(own)}"))
    if moved:
        number, what = moved[0]
        more = f" (and {len(moved) - 1} others)" if len(moved) > 1 else ""
        doubts.append(f"meta/episodes says that episode {number} is {what}{more}: data/ is believed")
    if gaps:
        doubts.append(f"rows are missing within episodes {format_numbers(gaps)}: their frame_index jumps")
    return tuple(rows_of[number] for number in numbers), doubts


def _check_times(root: Path, fps: float, times_s: Sequence[np.ndarray], has_video: bool) -> None:
    """Raise `WorldloopError` if the rows are not 1/fps apart, or if time stands still where a video needs it."""
    if not 0 < fps < float("inf"):
        raise WorldloopError(
            f"meta/info.json of the dataset {root} says fps {fps:g}, allowed: above 0; correct it there"
        )
    steps = [np.diff(times) for times in times_s]
    if has_video:
        for number, step in enumerate(steps):
            if (step <= 0).any():
                raise WorldloopError(
                    f"the timestamps of episode {number} of the dataset {root} do not grow after row "
                    f"{int((step <= 0).argmax())}: without them its frames cannot be found in the video; mend them"
                )
    every = np.concatenate([*steps, np.zeros(0)])
    step_s = float(np.median(every)) if len(every) else 0.0
    if step_s > 0 and abs(1 / (step_s * fps) - 1) > _RATE_TOLERANCE:
        raise WorldloopError(
            f"meta/info.json of the dataset {root} says fps {fps:g}, but the timestamps of its rows are {step_s:.4g} s "
            f"apart: correct fps there to {1 / step_s:.4g}, or the timestamps"
        )


def _find_video(root: Path, info: dict[str, Any], key: str, row: dict[str, Any], first_s: float) -> VideoPart:
    """Where the video of an episode is; ``first_s`` is the timestamp of its first row."""
    chunk, file, start_s = (row[f"videos/{key}/{name}"] for name in _VIDEO_COLUMNS)
    if None in (chunk, file, start_s):
        raise WorldloopError(
            f"meta/episodes of the dataset {root} does not say where the video {key!r} of episode "
            f"{row['episode_index']} is: restore meta/episodes, or leave that camera out"
        )
    path = root / str(info["video_path"]).format(video_key=key, chunk_index=chunk, file_index=file)
    return VideoPart(path, float(start_s) + first_s)


def _check_places(root: Path, parts: Sequence[VideoPart], times_s: Sequence[np.ndarray], fps: float) -> None:
    """Raise `WorldloopError` if two episodes share frames of a video."""
    places = sorted((str(part.path), part.start_s, number) for number, part in enumerate(parts))
    for (path, start_s, number), (other, other_start_s, next_number) in pairwise(places):
        if path == other and other_start_s < start_s + times_s[number][-1] + 0.5 / fps:
            raise WorldloopError(
                f"meta/episodes of the dataset {root} puts episodes {number} and {next_number} at the same frames of "
                f"{Path(path).name} (from_timestamp {start_s:.4g} and {other_start_s:.4g} s): restore meta/episodes"
            )


def _find_instructions(
    root: Path,
    index: dict[str, np.ndarray],
    rows: Sequence[np.ndarray],
    stored: list[dict[str, Any]],
    doubts: list[str],
) -> tuple[str, ...]:
    """The instruction of each episode's first row; the one in ``stored`` if rows or ``meta/tasks`` do not say."""
    told = [[str(task) for task in row.get("tasks") or []] for row in stored]
    path = root / "meta/tasks.parquet"
    names: dict[int, str] = {}
    if "task_index" in index and path.is_file():
        file = ParquetFile(root, path)
        text = next((name for name in file.columns if name != "task_index"), None)
        if text is not None:
            names = {int(row["task_index"]): str(row[text]) for row in file.read(["task_index", text]).to_pylist()}
    found = []
    for own, tasks in zip(rows, told, strict=True):
        first = names.get(int(index["task_index"][own[0]])) if names else None
        found.append(first if first is not None else tasks[0] if tasks else "")
    if differ := [i for i, (name, tasks) in enumerate(zip(found, told, strict=True)) if tasks and name not in tasks]:
        doubts.append(
            f"episodes {format_numbers(differ)} have another instruction in data/ than in meta/episodes: data/ is "
            "believed"
        )
    return tuple(found)


def _hash_episodes(stored: list[dict[str, Any]]) -> str:
    """sha256 of what the episodes hold: lengths, instructions, statistics. Files may be arranged in another way."""
    kept = [
        {
            key: sorted(value) if key == "tasks" and value else value
            for key, value in row.items()
            if key in ("episode_index", "length", "tasks") or key.startswith("stats/")
        }
        for row in stored
    ]
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()
