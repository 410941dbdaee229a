"""One shard: a list of episodes as a LeRobotDataset v3 directory plus ``worldloop.json``, its manifest.

A row is a frame. Row f holds ``frames[f]``, ``proprio[f]`` and the s = ``actions_per_frame`` actions that lead to row
f + 1. The last row of an episode has a hold action (zeros) and ``is_terminal_frame``. Each field of `EpisodeMeta` is a
``worldloop/<field>`` column of ``meta/episodes``. Images are lossless. The same episodes always give the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldloop.core.errors import WorldloopError, first_line
from worldloop.core.files import hash_file, read_json, to_json, whole_directory
from worldloop.core.specs import SimulatorSpec
from worldloop.core.tensors import check_dtype
from worldloop.core.types import EPISODE_SCHEMA_VERSION, Episode, EpisodeMeta
from worldloop.sans.lerobot_format import (
    IMAGE_PREFIX,
    Features,
    LeRobotWriter,
    decode_png,
    image_feature,
    require_data_extra,
    vector_feature,
)

SHARD_SCHEMA_VERSION = 1
MANIFEST = "worldloop.json"
_STEP_DTYPES: dict[str, type] = {
    "valid": np.bool_,
    "rewards": np.float32,
    "success": np.bool_,
    "distances_m": np.float32,
}
_FRAME_KEYS = {"observation.state": "proprio", "sim_state": "sim_state"}
_META_TYPES: dict[str, type] = {
    f.name: {"int": int, "float": float, "float | None": float}.get(str(f.type), str)
    for f in dataclasses.fields(EpisodeMeta)
}
_OPTIONAL = "imagined_success"  # absent in JSON where it is None, and in shards of schema version 1; NaN in a table


@dataclass(frozen=True)
class ShardRef:
    """A version's reference to a shard. ``sha256`` is the hash of its manifest, which lists the hash of every file."""

    name: str
    sha256: str
    num_episodes: int
    num_frames: int


@dataclass(frozen=True)
class ShardLayout:
    """What all episodes of a version share. ``cameras``: name -> (height, width); ``hz``: rate of environment steps."""

    cameras: dict[str, tuple[int, int]]
    proprio_dim: int
    action_dim: int
    sim_state_dim: int
    actions_per_frame: int
    hz: float

    @classmethod
    def of(cls, episode: Episode) -> ShardLayout:
        return cls(
            {name: (images.shape[1], images.shape[2]) for name, images in sorted(episode.frames.items())},
            episode.proprio.shape[1],
            episode.actions.shape[2],
            episode.sim_state.shape[1],
            episode.actions.shape[1],
            float(episode.meta.hz),
        )

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ShardLayout:
        return cls(**(value | {"cameras": {k: (v[0], v[1]) for k, v in value["cameras"].items()}}))


def meta_to_json(meta: EpisodeMeta) -> dict[str, Any]:
    """``meta`` as plain JSON types; a NumPy scalar becomes a Python one."""
    given = {key: getattr(meta, key) for key in _META_TYPES}
    return {key: _META_TYPES[key](value) for key, value in given.items() if value is not None}


def check_episode(episode: Episode, layout: ShardLayout) -> None:
    """Raise ``ValueError`` naming the field unless ``episode`` has the dtypes of a shard and the layout ``layout``."""
    for name in ("proprio", "actions", "sim_state"):
        check_dtype(f"Episode.{name}", getattr(episode, name), np.float32)
    for name, dtype in _STEP_DTYPES.items():
        check_dtype(f"Episode.{name}", getattr(episode, name), dtype)
    if ShardLayout.of(episode) != layout:
        raise ValueError(f"episodes of one shard must share one layout: {ShardLayout.of(episode)} is not {layout}")
    if episode.meta.actions_per_frame != layout.actions_per_frame:
        raise ValueError(f"meta.actions_per_frame {episode.meta.actions_per_frame} is not {layout.actions_per_frame}")


def hash_episodes(episodes: Iterable[Episode]) -> str:
    """sha256 of the episodes' content, independent of the file format."""
    digest = hashlib.sha256()
    for episode in episodes:
        digest.update(to_json([meta_to_json(episode.meta), bool(episode.terminated), bool(episode.truncated)]))
        arrays = {f"frames.{k}": v for k, v in sorted(episode.frames.items())}
        arrays |= {k: getattr(episode, k) for k in ("proprio", "actions", "sim_state", *_STEP_DTYPES)}
        for name, array in arrays.items():
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _names(layout: ShardLayout, meta: EpisodeMeta, spec: SimulatorSpec | None) -> tuple[list[str], list[str]]:
    """(action names over the s stacked steps, proprio names)."""
    if spec is not None:
        actions, proprio = list(spec.robot.action_names), list(spec.robot.proprio_names)
    else:
        is_delta = meta.control_mode == "pd_ee_delta_pos" and layout.action_dim == 4
        actions = ["dx", "dy", "dz", "gripper"] if is_delta else [f"action{i}" for i in range(layout.action_dim)]
        proprio = [f"proprio{i}" for i in range(layout.proprio_dim)]
    if len(actions) != layout.action_dim or len(proprio) != layout.proprio_dim:
        raise ValueError(f"{len(actions)} action and {len(proprio)} proprio names do not fit {layout}")
    return [f"{name}_{i}" for i in range(layout.actions_per_frame) for name in actions], proprio


def _features(layout: ShardLayout, meta: EpisodeMeta, spec: SimulatorSpec | None) -> Features:
    action_names, proprio_names = _names(layout, meta, spec)
    s = layout.actions_per_frame
    features = {IMAGE_PREFIX + name: image_feature(h, w) for name, (h, w) in layout.cameras.items()}
    features["observation.state"] = vector_feature("float32", layout.proprio_dim, proprio_names)
    features["action"] = vector_feature("float32", s * layout.action_dim, action_names)
    for key, dtype in _STEP_DTYPES.items():
        features[key] = vector_feature(np.dtype(dtype).name, s, [f"{key}_{i}" for i in range(s)])
    if layout.sim_state_dim:
        features["sim_state"] = vector_feature("float32", layout.sim_state_dim)
    features["is_terminal_frame"] = vector_feature("bool", 1)
    return features


def _add(writer: LeRobotWriter, episode: Episode, drop_terminal: bool) -> None:
    F = episode.num_frame_steps
    n = F if drop_terminal else F + 1
    # The last row is a hold: zero action, zero reward, not valid. Success and distance keep their last values.
    steps = {"action": episode.actions, **{key: getattr(episode, key) for key in _STEP_DTYPES}}
    vectors = {}
    for key, values in steps.items():
        last = np.zeros_like(values[-1:])
        if key in ("success", "distances_m"):
            last[:] = values[-1, -1]
        vectors[key] = np.concatenate([values, last])[:n].reshape(n, -1)
    frame_values = {key: getattr(episode, name)[:n] for key, name in _FRAME_KEYS.items()}
    vectors |= {key: values for key, values in frame_values.items() if values.shape[1]}
    vectors["is_terminal_frame"] = (np.arange(n) == F)[:, None]
    images = {IMAGE_PREFIX + name: frames[:n] for name, frames in episode.frames.items()}
    meta = {_OPTIONAL: math.nan} | meta_to_json(episode.meta)
    extra = {f"worldloop/{key}": value for key, value in meta.items()}
    extra |= {"worldloop/terminated": bool(episode.terminated), "worldloop/truncated": bool(episode.truncated)}
    writer.add_episode(episode.meta.instruction, images, vectors, extra)


def _write_lerobot(
    root: Path, episodes: Iterable[Episode], features: Features | None, spec: SimulatorSpec | None, drop_terminal: bool
) -> tuple[ShardLayout, int, int]:
    """Write ``episodes`` into the existing directory ``root``; returns (layout, number of episodes, number of rows).

    LeRobot needs an integer fps: hz / s rounded, at least 1. ``worldloop/hz`` keeps the exact rate.
    """
    require_data_extra()
    writer: LeRobotWriter | None = None
    num_episodes = num_rows = 0
    try:
        for episode in episodes:
            if writer is None:
                layout = ShardLayout.of(episode)
                fps = max(1, round(layout.hz / layout.actions_per_frame))
                writer = LeRobotWriter(root, fps, features or _features(layout, episode.meta, spec))
            check_episode(episode, layout)
            _add(writer, episode, drop_terminal)
            num_episodes += 1
            num_rows += episode.num_frame_steps + (0 if drop_terminal else 1)
        if writer is None:
            raise ValueError("a dataset needs at least one episode")
        writer.finish()
    except BaseException:
        if writer is not None:
            writer.abort()
        raise
    return layout, num_episodes, num_rows


def export_for_training(root: Path, episodes: Iterable[Episode], features: Features | None = None) -> None:
    """Write ``episodes`` as a LeRobotDataset v3 into the existing directory ``root``, without terminal rows.

    A terminal row has a frame but no action of its own, so imitation learning outside worldloop must not see it.
    """
    _write_lerobot(root, episodes, features, spec=None, drop_terminal=True)


def write_shard(directory: Path, episodes: list[Episode], spec: SimulatorSpec | None = None) -> ShardRef:
    """Write ``episodes`` as the shard ``directory``, whose name becomes the shard's. It appears whole or not at all."""
    what = f"shard {directory.name!r}"
    with whole_directory(directory, what) as partial:
        layout, num_episodes, num_rows = _write_lerobot(partial, episodes, None, spec, drop_terminal=False)
        files = sorted(p.relative_to(partial).as_posix() for p in partial.rglob("*") if p.is_file())
        manifest = {
            "schema_version": SHARD_SCHEMA_VERSION,
            "name": directory.name,
            "num_episodes": num_episodes,
            "num_frames": num_rows,
            "layout": dataclasses.asdict(layout),
            "content_sha256": hash_episodes(episodes),
            "files": {name: hash_file(partial / name) for name in files},
        }
        (partial / MANIFEST).write_bytes(to_json(manifest))
    return shard_ref(directory)


def read_manifest(directory: Path) -> dict[str, Any]:
    """The shard's manifest; raises ``WorldloopError`` naming the shard where it is missing, broken or too new."""
    remedy = "restore the shard from a copy, or delete its directory and run the stage that made it again"
    return read_json(directory / MANIFEST, f"shard {directory.name!r}", SHARD_SCHEMA_VERSION, remedy)


def read_features(directory: Path) -> Features:
    """The LeRobot features of the shard, with the names of actions and proprio."""
    return dict(json.loads((directory / "meta/info.json").read_bytes())["features"])


def shard_ref(directory: Path) -> ShardRef:
    """What a version stores about the shard in ``directory``."""
    manifest = read_manifest(directory)
    digest = hash_file(directory / MANIFEST)
    return ShardRef(directory.name, digest, manifest["num_episodes"], manifest["num_frames"])


def find_damage(directory: Path, ref: ShardRef | None, hash_of: Callable[[Path], str] = hash_file) -> str | None:
    """Name of the first file of the shard that is missing, changed or not in its manifest; ``None`` if all is well.

    ``hash_of`` gives the sha256 of a file; by default it reads every byte.
    """
    if ref is not None and hash_of(directory / MANIFEST) != ref.sha256:
        return MANIFEST
    files = read_manifest(directory)["files"]
    foreign = sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*.parquet"))
    for name in foreign:
        if name not in files:
            return str(name)
    for name, digest in files.items():
        if not (directory / name).is_file() or hash_of(directory / name) != digest:
            return str(name)
    return None


def verify_shard(directory: Path, ref: ShardRef, hash_of: Callable[[Path], str] = hash_file) -> None:
    """Raise ``WorldloopError`` naming the shard and the remedy unless all its files are as they were written.

    For ``hash_of`` see `find_damage`.
    """
    if not (directory / MANIFEST).is_file():
        damage: str | None = "missing"
    else:
        damage = find_damage(directory, ref, hash_of)
    if damage is not None:
        raise WorldloopError(
            f"shard {directory.name!r} is corrupt ({damage} does not match its hash): restore it from a copy, "
            "or delete its directory and run the stage that made it again"
        )


def read_metas(directory: Path) -> list[tuple[EpisodeMeta, bool, bool]]:
    """(meta, terminated, truncated) of every episode, without reading any frame."""
    require_data_extra()
    import pyarrow.parquet as pq

    columns = [f"worldloop/{key}" for key in (*_META_TYPES, "terminated", "truncated")]
    path = directory / "meta/episodes/chunk-000/file-000.parquet"
    with _damage(directory):
        known = pq.read_schema(path).names
        wanted = [name for name in columns if name in known or name != f"worldloop/{_OPTIONAL}"]
        rows = pq.read_table(path, columns=wanted).to_pylist()
    metas = []
    for row in rows:
        imagined = row.get(f"worldloop/{_OPTIONAL}", math.nan)
        fields = {key: row[f"worldloop/{key}"] for key in _META_TYPES if key != _OPTIONAL}
        fields[_OPTIONAL] = None if math.isnan(imagined) else imagined
        if fields["schema_version"] > EPISODE_SCHEMA_VERSION:
            raise WorldloopError(
                f"shard {directory.name!r} holds episodes of schema_version {fields['schema_version']}, this worldloop "
                f"reads up to {EPISODE_SCHEMA_VERSION}: install a newer worldloop"
            )
        with _damage(directory):
            metas.append((EpisodeMeta(**fields), row["worldloop/terminated"], row["worldloop/truncated"]))
    return metas


@contextmanager
def _damage(directory: Path) -> Iterator[None]:
    """Within this context, an error that a broken file causes becomes one `WorldloopError`."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorldloopError(
            f"shard {directory.name!r} is unreadable ({first_line(error)}): restore it from a copy, or delete its "
            "directory and run the stage that made it again"
        ) from error


def read_shard(directory: Path) -> Iterator[Episode]:
    """The shard's episodes, bit-equal to what was written."""
    require_data_extra()
    import pyarrow.parquet as pq

    layout = ShardLayout.from_json(read_manifest(directory)["layout"])
    metas = iter(read_metas(directory))
    for path in sorted((directory / "data").rglob("*.parquet")):
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            yield _to_episode(file.read_row_group(group), layout, *next(metas))


def _to_episode(table: Any, layout: ShardLayout, meta: EpisodeMeta, terminated: bool, truncated: bool) -> Episode:
    import pyarrow as pa

    def column(key: str) -> np.ndarray:
        if key == "sim_state" and not layout.sim_state_dim:
            return np.zeros((table.num_rows, 0), dtype=np.float32)
        array = table.column(key).combine_chunks()
        if pa.types.is_fixed_size_list(array.type):
            array = array.flatten()
        return array.to_numpy(zero_copy_only=False).reshape(table.num_rows, -1).copy()

    F, s = table.num_rows - 1, layout.actions_per_frame
    images = {k: table.column(IMAGE_PREFIX + k).combine_chunks().field("bytes") for k in layout.cameras}
    return Episode(
        meta=meta,
        frames={k: np.stack([decode_png(png.as_py()) for png in pngs]) for k, pngs in images.items()},
        actions=column("action")[:F].reshape(F, s, layout.action_dim),
        terminated=terminated,
        truncated=truncated,
        **{name: column(key) for key, name in _FRAME_KEYS.items()},
        **{key: column(key)[:F] for key in _STEP_DTYPES},
    )
