"""The decoded, memory-mapped form of a version. Training reads it.

Each shard has one directory, a part, named by the shard's hash. So a new shard needs only its own decoding, and
versions share parts. An array holds all episodes end to end: a frame array has F + 1 rows per episode, a step array F.
A cache can be deleted at any time. Missing parts, and parts that do not match their hashes, are built again. A file is
hashed once, see `KnownHashes`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import tokenize
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from worldloop.core.errors import WorldloopError
from worldloop.core.files import disk_errors, hash_file, to_json, whole_directory
from worldloop.core.types import Episode, EpisodeMeta
from worldloop.sans.hashes import KnownHashes
from worldloop.sans.shard import ShardRef, meta_to_json

CACHE_SCHEMA_VERSION = 3
_FRAME_ARRAYS = ("proprio", "sim_state")
_STEP_ARRAYS = ("actions", "valid", "rewards", "success", "distances_m")
_HEADER_BYTES = 128  # header of an .npy file that `_open_npy` writes
_LOOP_BYTES = 2048  # rows at least this large are copied one by one, straight from the map into the batch


def part_directory(cache_root: Path, ref: ShardRef) -> Path:
    """Where the part of a shard lives."""
    return cache_root / f"{ref.name}-{ref.sha256[:16]}"


def _image_motion(frames: np.ndarray) -> np.ndarray:
    """f32 [F]: mean absolute difference between consecutive frames u8 [F+1, h, w, 3], in grey levels."""
    difference = frames[1:].astype(np.int16) - frames[:-1]
    return np.abs(difference).reshape(len(difference), -1).mean(axis=1, dtype=np.float64).astype(np.float32)


def _arrays(episode: Episode) -> dict[str, np.ndarray]:
    arrays = {f"frames.{name}": frames for name, frames in episode.frames.items()}
    arrays |= {f"motion.{name}": _image_motion(frames) for name, frames in episode.frames.items()}
    arrays |= {name: getattr(episode, name) for name in (*_FRAME_ARRAYS, *_STEP_ARRAYS)}
    succeeded = np.logical_or.accumulate((episode.success & episode.valid).any(axis=1))
    # Inside a frame step a success may come and go: the frame at its end shows only what holds then.
    return arrays | {"succeeded": succeeded, "holds": episode.success[:, -1]}


def build_part(cache_root: Path, ref: ShardRef, episodes: Iterable[Episode]) -> None:
    """Write the part of ``ref`` from its episodes, read from the shard or still in memory.

    Files are written sequentially, not through a memory map: on a full disk a write raises, a map kills the process.
    """
    directory = part_directory(cache_root, ref)
    with whole_directory(directory, f"the cache of shard {ref.name!r}") as partial:
        files: dict[str, BinaryIO] = {}
        records: list[dict[str, Any]] = []
        try:
            for episode in episodes:
                for name, array in _arrays(episode).items():
                    is_frame = name in _FRAME_ARRAYS or name.startswith("frames.")
                    rows = ref.num_frames - (0 if is_frame else ref.num_episodes)
                    if name not in files:
                        files[name] = _open_npy(partial / f"{name}.npy", array, rows)
                    files[name].write(np.ascontiguousarray(array).data)
                ends = {"terminated": bool(episode.terminated), "truncated": bool(episode.truncated)}
                records.append({"meta": meta_to_json(episode.meta), "num_steps": episode.num_frame_steps} | ends)
        finally:
            for file in files.values():
                file.close()
        index = {"schema_version": CACHE_SCHEMA_VERSION, "shard_sha256": ref.sha256, "episodes": records}
        index |= {"arrays": {name: hash_file(partial / f"{name}.npy") for name in sorted(files)}}
        (partial / "cache.json").write_bytes(to_json(index | {"sha256": _hash_index(index)}))


def _hash_index(index: dict[str, Any]) -> str:
    return hashlib.sha256(to_json({k: v for k, v in index.items() if k != "sha256"})).hexdigest()


def _open_npy(path: Path, like: np.ndarray, rows: int) -> BinaryIO:
    file = open(path, "wb")  # noqa: SIM115 (closed by build_part)
    header = {
        "descr": np.lib.format.dtype_to_descr(like.dtype),
        "fortran_order": False,
        "shape": (rows, *like.shape[1:]),
    }
    np.lib.format.write_array_header_1_0(file, header)
    return file


@dataclass(frozen=True)
class CachePart:
    """The mapped arrays of one shard by name, and what its E episodes are.

    ``num_steps`` int64 [E]: frame steps; ``ends`` bool [E, 2]: terminated, truncated
    """

    arrays: dict[str, np.ndarray]
    metas: tuple[EpisodeMeta, ...]
    num_steps: np.ndarray
    ends: np.ndarray


def open_part(cache_root: Path, ref: ShardRef, hashes: KnownHashes) -> CachePart | None:
    """Map the part of ``ref``; ``None`` if it is absent, damaged or of another schema, and must be built."""
    directory = part_directory(cache_root, ref)
    try:
        index = json.loads((directory / "cache.json").read_bytes())
        if index["schema_version"] != CACHE_SCHEMA_VERSION or index["shard_sha256"] != ref.sha256:
            return None
        if not hashes.is_known(directory / "cache.json"):  # hashing an index of many episodes takes seconds
            if index["sha256"] != _hash_index(index):
                return None
            hashes.hash(directory / "cache.json")
        if any(hashes.hash(directory / f"{name}.npy") != known for name, known in index["arrays"].items()):
            return None
        arrays = {name: _map_npy(directory / f"{name}.npy") for name in index["arrays"]}
        records = index["episodes"]
        return CachePart(
            arrays,
            metas=tuple(EpisodeMeta(**record["meta"]) for record in records),
            num_steps=np.array([record["num_steps"] for record in records], dtype=np.int64),
            ends=np.array([[record["terminated"], record["truncated"]] for record in records], dtype=bool),
        )
    except (OSError, EOFError, ValueError, KeyError, TypeError, tokenize.TokenError):  # numpy: bad header
        return None


def _map_npy(path: Path) -> np.ndarray:
    """A plain array over the map: indexing np.memmap itself costs three times as much per row."""
    array = np.load(path, mmap_mode=None if path.stat().st_size <= _HEADER_BYTES else "r")  # empty: not mappable
    return array.view(np.ndarray)


def ensure_part(
    cache_root: Path, ref: ShardRef, read_episodes: Callable[[], Iterable[Episode]], hashes: KnownHashes
) -> CachePart:
    """The part of ``ref``, built from ``read_episodes()`` if absent or damaged. Safe in several processes at once.

    ``hashes`` of its files are looked up, and added.
    """
    part = open_part(cache_root, ref, hashes)
    if part is not None:
        return part
    with disk_errors(f"the cache of shard {ref.name!r}"):
        cache_root.mkdir(parents=True, exist_ok=True)
        lock = open(cache_root / ".lock", "wb")  # noqa: SIM115 (closed below, which releases the lock)
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        part = open_part(cache_root, ref, hashes)  # another process may have built it meanwhile
        if part is None:
            build_part(cache_root, ref, read_episodes())
            part = open_part(cache_root, ref, hashes)
    if part is None:
        raise WorldloopError(f"the cache of shard {ref.name!r} cannot be read back: check the disk")
    return part


class VersionCache:
    """All parts of a version, with one numbering of the episodes (shards in the version's order).

    - ``metas``: E `EpisodeMeta`; ``num_steps`` int64 [E]: F of each episode; ``first_step`` int64 [E]: the number of
      its first frame step among those of the whole version
    - ``cameras`` by name, sorted; ``actions_per_frame``, ``proprio_dim``, ``action_dim``
    """

    def __init__(self, parts: list[CachePart]) -> None:
        if not parts:
            raise ValueError("a version cache needs at least one shard")
        self._parts = parts
        self.metas = tuple(meta for part in parts for meta in part.metas)
        self.num_steps = np.concatenate([part.num_steps for part in parts])
        self._ends = np.concatenate([part.ends for part in parts])
        self.first_step = np.cumsum(self.num_steps) - self.num_steps
        self._part = np.repeat(np.arange(len(parts)), [len(part.metas) for part in parts])
        self._step_start = np.concatenate([np.cumsum(part.num_steps) - part.num_steps for part in parts])
        local = np.concatenate([np.arange(len(part.metas)) for part in parts])
        self._frame_start = self._step_start + local  # one more row per episode than in step arrays
        first = parts[0].arrays
        self.cameras = tuple(sorted(name.removeprefix("frames.") for name in first if name.startswith("frames.")))
        self.actions_per_frame, self.action_dim = (int(n) for n in first["actions"].shape[1:])
        self.proprio_dim = int(first["proprio"].shape[1])

    def __len__(self) -> int:
        return len(self.metas)

    @cached_property
    def knows_state(self) -> np.ndarray:
        """bool [E]: whether the simulator's state is stored; it is not in demonstrations recorded elsewhere."""
        first = self.frames("sim_state", np.arange(len(self)), np.zeros(len(self), dtype=np.int64))
        return np.asarray(np.isfinite(first).all(axis=1) & (first.shape[1] > 0))

    def check_cameras(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return ``names``; raises ``ValueError`` if it is empty or names a camera that the dataset does not have."""
        for name in names:
            if name not in self.cameras:
                raise ValueError(f"camera {name!r} is not in the dataset, allowed: {', '.join(self.cameras)}")
        if not names:
            raise ValueError(f"no camera is given, allowed: {', '.join(self.cameras)}")
        return tuple(names)

    def image_shape(self, camera: str) -> tuple[int, int, int]:
        """(height, width, 3)."""
        height, width, channels = self._parts[0].arrays[f"frames.{camera}"].shape[1:]
        return height, width, channels

    def images(self, cameras: Sequence[str], episode: np.ndarray, row: np.ndarray) -> dict[str, Tensor]:
        """Camera name -> images u8 [*row.shape, h, w, 3], in the order of ``cameras``; see `frames`."""
        return {name: torch.from_numpy(self.frames(f"frames.{name}", episode, row)) for name in cameras}

    def frames(self, name: str, episode: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Rows of a frame array (``frames.<camera>``, ``proprio``, ``sim_state``) at ``row`` in 0..F, any shape."""
        return self._gather(name, episode, self._frame_start[episode] + row)

    def steps(self, name: str, episode: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Rows of a step array (``actions``, ``valid``, ``holds``, ``motion.<camera>``...) at ``row`` in 0..F-1."""
        return self._gather(name, episode, self._step_start[episode] + row)

    def _gather(self, name: str, episode: np.ndarray, row: np.ndarray) -> np.ndarray:
        parts = np.broadcast_to(self._part[episode], row.shape).reshape(-1)
        like = self._parts[0].arrays[name]
        out = np.empty((row.size, *like.shape[1:]), dtype=like.dtype)
        flat = row.reshape(-1)
        if like.dtype.itemsize * int(np.prod(like.shape[1:])) >= _LOOP_BYTES:
            sources = [part.arrays[name] for part in self._parts]
            for i, (p, r) in enumerate(zip(parts.tolist(), flat.tolist(), strict=True)):
                out[i] = sources[p][r]
        else:
            for p in np.unique(parts):
                chosen = parts == p
                out[chosen] = self._parts[p].arrays[name][flat[chosen]]
        return out.reshape(*row.shape, *like.shape[1:])

    def all_steps(self, name: str) -> np.ndarray:
        """A whole step array of the version, episodes end to end."""
        return np.concatenate([part.arrays[name] for part in self._parts])

    def proprio(self, i: int) -> np.ndarray:
        """f32 [F+1, S]: that of episode ``i``, without reading its frames."""
        rows = np.arange(self.num_steps[i] + 1)
        return self.frames("proprio", np.full_like(rows, i), rows)

    def episode(self, i: int) -> Episode:
        """Episode ``i``, bit-equal to what was appended."""
        part, F = self._parts[self._part[i]].arrays, int(self.num_steps[i])
        terminated, truncated = self._ends[i].tolist()
        frame = slice(self._frame_start[i], self._frame_start[i] + F + 1)
        step = slice(self._step_start[i], self._step_start[i] + F)
        return Episode(
            meta=self.metas[i],
            frames={name: part[f"frames.{name}"][frame].copy() for name in self.cameras},
            terminated=terminated,
            truncated=truncated,
            **{name: part[name][frame].copy() for name in _FRAME_ARRAYS},
            **{name: part[name][step].copy() for name in _STEP_ARRAYS},
        )

    def select(self, **wanted: Any) -> np.ndarray:
        """int64 episode numbers whose meta fields equal ``wanted`` (a tuple allows several values), in order.

        Example: ``select(split="train", source=("expert", "perturbed"))``.
        """
        allowed = {key: value if isinstance(value, tuple) else (value,) for key, value in wanted.items()}
        hits = [i for i, m in enumerate(self.metas) if all(getattr(m, key) in v for key, v in allowed.items())]
        return np.array(hits, dtype=np.int64)
