"""The versioned store: ``shards/`` that never change, ``versions/`` that name them, ``cache/`` that can be deleted."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import batched
from pathlib import Path
from typing import Any

from worldloop.core.errors import WorldloopError
from worldloop.core.files import check_name, malformed, read_json, to_json, whole_directory, write_file
from worldloop.core.specs import SimulatorSpec
from worldloop.core.types import Episode, EpisodeMeta, Normalisation
from worldloop.sans.cache import CachePart, VersionCache, ensure_part, open_part, part_directory
from worldloop.sans.hashes import KnownHashes
from worldloop.sans.normalisation import compute_normalisation, normalisation_from_json, normalisation_to_json
from worldloop.sans.shard import (
    ShardLayout,
    ShardRef,
    export_for_training,
    find_damage,
    hash_episodes,
    read_features,
    read_manifest,
    read_metas,
    read_shard,
    shard_ref,
    verify_shard,
    write_shard,
)

VERSION_SCHEMA_VERSION = 1
_SUMMARY_KEYS = ("task", "source", "variant", "outcome", "split", "iteration")
_SUMMARY_KEYS_OF_TASK = ("source", "outcome", "split")


@dataclass(frozen=True)
class SansVersion:
    """A named list of shards. ``normalisation`` is that of its oldest ancestor."""

    name: str
    parent: str | None
    shards: tuple[ShardRef, ...]
    actions_per_frame: int
    normalisation: Normalisation

    @property
    def num_episodes(self) -> int:
        return sum(shard.num_episodes for shard in self.shards)

    @property
    def num_frames(self) -> int:
        """Stored frames, terminal ones included."""
        return sum(shard.num_frames for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """sha256 of the version's JSON: equal fingerprints mean equal data."""
        return hashlib.sha256(to_json(self.to_json())).hexdigest()

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": VERSION_SCHEMA_VERSION,
            "name": self.name,
            "parent": self.parent,
            "shards": [asdict(shard) for shard in self.shards],
            "actions_per_frame": self.actions_per_frame,
            "normalisation": normalisation_to_json(self.normalisation),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> SansVersion:
        return cls(
            name=value["name"],
            parent=value["parent"],
            shards=tuple(ShardRef(**shard) for shard in value["shards"]),
            actions_per_frame=value["actions_per_frame"],
            normalisation=normalisation_from_json(value["normalisation"]),
        )


class SansStore:
    """A SANS dataset in the directory ``root``. Nothing is ever edited in place.

    Only one process at a time may append a shard of a given name. ``write_cache`` builds the decoded cache of a shard
    while its episodes are still in memory.
    """

    def __init__(self, root: Path, write_cache: bool = True) -> None:
        self.root = Path(root)
        self.write_cache = write_cache
        self.cache_root = self.root / "cache"

    def shard_path(self, name: str) -> Path:
        """The LeRobotDataset v3 directory of a shard."""
        return self.root / "shards" / name

    def append(self, episodes: Sequence[Episode], name: str, spec: SimulatorSpec | None = None) -> ShardRef:
        """Store ``episodes`` as the shard ``name``; ``spec`` supplies the action and proprio names.

        Appending the same episodes again gives the same shard. A shard that exists is written again if it is damaged,
        or if it has other episodes and no version contains it. Raises ``WorldloopError`` for an empty list, for
        evaluation episodes, and for other episodes under the name of a shard that a version contains.
        """
        check_name("shard", name)
        episodes = list(episodes)
        if not episodes:
            raise WorldloopError(f"shard {name!r} would hold no episode: collect at least one")
        for episode in episodes:
            if episode.meta.split == "evaluation":
                raise WorldloopError(
                    f"shard {name!r}: episode from {episode.meta.initial_state_id!r} is of the evaluation split, which "
                    "never enters the dataset: collect on 'train' or 'validation' states"
                )
        directory = self.shard_path(name)
        ref = self._reusable(directory, episodes) if directory.exists() else None
        if ref is None:
            ref = write_shard(directory, episodes, spec)
        if self.write_cache:
            hashes = self._hashes(ref)
            ensure_part(self.cache_root, ref, lambda: episodes, hashes)
            hashes.keep()
        return ref

    def append_in_blocks(
        self, episodes: Iterable[Episode], name: str, block_size: int, spec: SimulatorSpec | None = None
    ) -> list[ShardRef]:
        """Store ``episodes`` as the shards ``name-000``, ``name-001``, ... of ``block_size``; see `append`.

        One block is in memory at a time.
        """
        blocks = enumerate(batched(episodes, block_size))
        return [self.append(block, f"{name}-{number:03d}", spec) for number, block in blocks]

    def _reusable(self, directory: Path, episodes: list[Episode]) -> ShardRef | None:
        if read_manifest(directory)["content_sha256"] != hash_episodes(episodes):
            known = ((name, self.version(name).shards) for name in self.list_versions())
            using = [name for name, refs in known if directory.name in {ref.name for ref in refs}]
            if not using:  # left by a stage that was killed; a simulator on a GPU may not repeat itself bit by bit
                return None
            raise WorldloopError(
                f"shard {directory.name!r} already exists with other episodes, in version {using[0]}, and shards never "
                "change: use another name"
            )
        return shard_ref(directory) if find_damage(directory, None) is None else None

    def snapshot(
        self,
        name: str,
        shards: Sequence[ShardRef],
        parent: SansVersion | None = None,
        normalisation: Normalisation | None = None,
    ) -> SansVersion:
        """Write the version ``name``: the parent's shards, then those of ``shards`` that it does not have yet.

        The version's normalisation is the parent's. Without a parent it is ``normalisation``, or else computed from
        the training episodes. Repeating a snapshot changes nothing. A different one under the same name raises
        ``WorldloopError``.
        """
        check_name("version", name)
        known = parent.shards if parent is not None else ()
        refs = tuple(dict.fromkeys((*known, *shards)))
        if not refs or len({ref.name for ref in refs}) != len(refs):
            raise WorldloopError(f"version {name!r} needs at least one shard and every shard once")
        layout = self._check_layouts(name, refs)
        if parent is not None:
            if normalisation is not None:
                raise ValueError("normalisation is frozen with version 1: give a parent or a normalisation, not both")
            normalisation = parent.normalisation
        elif normalisation is None:
            cache = VersionCache([self.open_shard(ref) for ref in refs])
            train = cache.select(split="train")
            normalisation = compute_normalisation(cache.proprio(int(i)) for i in train)
        if len(normalisation.proprio_mean) != layout.proprio_dim:
            raise WorldloopError(
                f"version {name!r}: normalisation has {len(normalisation.proprio_mean)} dimensions, the shards' "
                f"proprio {layout.proprio_dim}: start a new dataset for a new proprio"
            )
        parent_name = parent.name if parent is not None else None
        version = SansVersion(name, parent_name, refs, layout.actions_per_frame, normalisation)
        path = self._version_path(name)
        if path.exists():
            if self.version(name).fingerprint != version.fingerprint:
                raise WorldloopError(f"version {name!r} already exists with other contents: use another name")
            return version
        write_file(path, to_json(version.to_json()), f"version {name!r}")
        return version

    def _check_layouts(self, name: str, refs: tuple[ShardRef, ...]) -> ShardLayout:
        layouts = [ShardLayout.from_json(read_manifest(self.shard_path(ref.name))["layout"]) for ref in refs]
        for ref, layout in zip(refs, layouts, strict=True):
            if layout != layouts[0]:
                raise WorldloopError(
                    f"version {name!r}: shard {ref.name!r} has the layout {layout}, others {layouts[0]}: cameras, "
                    "dimensions, rate and actions_per_frame must agree within a dataset"
                )
        return layouts[0]

    def _version_path(self, name: str) -> Path:
        return self.root / "versions" / f"{name}.json"

    def list_versions(self) -> list[str]:
        """Names of all versions, sorted."""
        return sorted(path.stem for path in (self.root / "versions").glob("[!.]*.json"))

    def version(self, name: str) -> SansVersion:
        """Read a version; raises ``WorldloopError`` if it does not exist, is broken, or a newer worldloop wrote it."""
        path = self._version_path(name)
        if not path.is_file():
            known = ", ".join(self.list_versions()) or "none"
            raise WorldloopError(f"no version {name!r} in {self.root} (there are: {known})")
        what, remedy = f"version {name!r}", "restore it from a copy, or run the stage that made it again"
        value = read_json(path, what, VERSION_SCHEMA_VERSION, remedy)
        with malformed(what, remedy):
            return SansVersion.from_json(value)

    def verify(self, version: SansVersion) -> list[str]:
        """Read every file of every shard and of its cache, and compare it with its hash.

        The first shard that differs raises ``WorldloopError``. A damaged cache part is deleted, as it can be built
        again: returns the names of such shards.
        """
        mended = []
        for ref in version.shards:
            hashes = self._hashes(ref, trusts=False)
            verify_shard(self.shard_path(ref.name), ref, hashes.hash)
            part = part_directory(self.cache_root, ref)
            if part.is_dir() and open_part(self.cache_root, ref, hashes) is None:
                shutil.rmtree(part)
                mended.append(ref.name)
            hashes.keep()
        return mended

    def list_cache_parts(self, also_used: bool) -> list[Path]:
        """Folders of the cache that no version needs, and with ``also_used`` all others: they can be built again."""
        refs = {ref for name in self.list_versions() for ref in self.version(name).shards}
        used = set() if also_used else {part_directory(self.cache_root, ref) for ref in refs}
        return sorted(path for path in self.cache_root.glob("[!.]*") if path.is_dir() and path not in used)

    def _hashes(self, ref: ShardRef, trusts: bool = True) -> KnownHashes:
        part = part_directory(self.cache_root, ref)
        return KnownHashes(self.root, part.with_name(f"{part.name}.hashes.json"), trusts)

    def episodes(self, version: SansVersion) -> Iterator[Episode]:
        """All episodes, decoded from the shards one at a time."""
        for ref in version.shards:
            yield from read_shard(self.shard_path(ref.name))

    def metas(self, version: SansVersion) -> list[EpisodeMeta]:
        """The meta of every episode, in order, without reading any frame."""
        return [meta for ref in version.shards for meta, _, _ in read_metas(self.shard_path(ref.name))]

    def open_cache(self, version: SansVersion, on_shard: Callable[[], None] = lambda: None) -> VersionCache:
        """The decoded cache of ``version``. Missing parts are built.

        Every file is compared with its hash, but read for that only if it is new or has changed (`KnownHashes`). A
        corrupt shard raises ``WorldloopError``, a damaged part is built again. ``on_shard`` is called after each shard:
        the first opening of a large dataset takes long.
        """
        parts = []
        for ref in version.shards:
            parts.append(self.open_shard(ref))
            on_shard()
        return VersionCache(parts)

    def open_shard(self, ref: ShardRef) -> CachePart:
        """The decoded cache of one shard, built if it is missing; raises ``WorldloopError`` for a corrupt shard."""
        directory, hashes = self.shard_path(ref.name), self._hashes(ref)
        verify_shard(directory, ref, hashes.hash)
        part = ensure_part(self.cache_root, ref, partial(read_shard, directory), hashes)
        hashes.keep()
        return part

    def merge(self, version: SansVersion, out_dir: Path, outcome: str = "") -> None:
        """Write the version as one LeRobotDataset v3 for training elsewhere, without terminal rows.

        ``outcome``: only episodes that end so; "": all. Feature names are those of the first shard. Raises
        ``WorldloopError`` if ``out_dir`` exists, or if no episode ends so.
        """
        out_dir = Path(out_dir)
        if out_dir.exists():
            raise WorldloopError(f"{out_dir} exists: merge into a directory that does not exist yet")
        self.verify(version)
        if outcome and not any(meta.outcome == outcome for meta in self.metas(version)):
            raise WorldloopError(f"version {version.name!r} has no episode with the outcome {outcome}")
        episodes = (episode for episode in self.episodes(version) if outcome in ("", episode.meta.outcome))
        features = read_features(self.shard_path(version.shards[0].name))
        with whole_directory(out_dir, f"the merged version {version.name!r}") as directory:
            export_for_training(directory, episodes, features)

    def summary(self, version: SansVersion) -> dict[str, Any]:
        """Counts of episodes by task, source, variant, outcome, split and iteration; the sizes of the cameras.

        ``by_task``: task -> its own counts by source, outcome and split.
        """
        metas = self.metas(version)
        tasks = sorted({meta.task for meta in metas})
        layout = self._check_layouts(version.name, version.shards)
        summary = {"name": version.name, "num_episodes": len(metas), "num_frames": version.num_frames}
        return {
            **summary,
            **_count(metas, _SUMMARY_KEYS),
            "by_task": {t: _count([m for m in metas if m.task == t], _SUMMARY_KEYS_OF_TASK) for t in tasks},
            "cameras": dict(layout.cameras),
        }


def _count(metas: Sequence[EpisodeMeta], keys: tuple[str, ...]) -> dict[str, dict[Any, int]]:
    """Field -> value -> how many of ``metas`` have it."""
    return {key: dict(sorted(Counter(getattr(m, key) for m in metas).items())) for key in keys}
