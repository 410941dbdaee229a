"""A copy of a run in an object store (S3, Google Cloud Storage, Azure, or a folder), in case its machine is lost.

    URI/RUN_NAME/manifests/000000012.json    generation 12: the run's files and their hashes; the highest number counts
    URI/RUN_NAME/objects/SHA256              the contents of the files

The run works in a local folder. `Mirror.push` copies new and changed files to the store, `Mirror.fetch` downloads the
copy on a machine that does not have the run.

Of several machines only one can write a generation, since the store writes a manifest only if it is not there. The
local folder stores the id and the generation of its copy, so a folder that is behind its copy cannot continue it.

Nothing that another machine may be reading or about to name is deleted. The last two manifests and their objects stay,
and so does every object that is younger than `KEEP`. A push relies on an object that is already there only if the
newest manifest names it, or if it is younger than half of that.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any

from worldloop.core.errors import WorldloopError
from worldloop.core.files import disk_errors, malformed, read_json, to_json, write_file
from worldloop.storage.mirror_upload import Upload
from worldloop.storage.object_store import Entry, ObjectStore, StoreError
from worldloop.storage.snapshot import Files, Print, hash_file, take_snapshot

MANIFEST_SCHEMA_VERSION = 2
LOCAL = ".mirror.json"  # in the run's folder: id and generation of its copy, and the hashes of its files
KEEP = timedelta(hours=1)  # by the store's own clock
_INCOMING = ".incoming"  # in the run's folder: files that are being downloaded
_CLOCK = "clock/now"  # written to learn the store's time
_FIRST_FORMAT = "manifest.json"  # the only manifest of an earlier worldloop
_TOMBSTONE = to_json({"schema_version": MANIFEST_SCHEMA_VERSION, "see": "manifests/"})  # makes it refuse the copy
_MANIFEST = re.compile(r"manifests/(\d{9})\.json")
_OBJECT = re.compile(r"objects/([0-9a-f]{64})")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_TRIES = 3


@dataclass(frozen=True)
class _Version:
    """A generation of a copy: the manifest in the store, or the note `LOCAL` in the run's folder.

    ``token`` names a push. In a note it is the push that this folder began last and may have completed, "" if it has
    noted the end.
    """

    copy: str = ""
    generation: int = 0
    token: str = ""
    files: Files = field(default_factory=dict)

    @property
    def digests(self) -> dict[str, str]:
        return {name: found.sha256 for name, found in self.files.items()}

    def to_json(self) -> bytes:
        values = {"copy": self.copy, "generation": self.generation, "token": self.token, "files": self.files}
        return to_json({"schema_version": MANIFEST_SCHEMA_VERSION, **values})

    @classmethod
    def of(cls, value: dict[str, Any]) -> _Version:
        files = {name: _read_print(found) for name, found in value["files"].items()}
        return cls(str(value["copy"]), int(value["generation"]), str(value["token"]), files)


class Mirror:
    """The copy of the run ``run_name`` below ``uri``, e.g. ``s3://bucket/runs``.

    Every method raises `StoreError` if the store cannot be used. Pushes of several threads wait for each other.
    """

    def __init__(self, uri: str, run_name: str) -> None:
        self._store = ObjectStore(uri, run_name)
        self.place = self._store.place
        self._lock = threading.Lock()
        self._known: Files = {}  # hashes of files that have not been pushed yet
        self._is_exclusive = False  # whether the store has been seen to refuse to create a file a second time

    @property
    def exists(self) -> bool:
        return self._read_newest() is not None

    def snapshot(self, run: Path) -> Files:
        """The files of ``run`` now, for `push` later. Call it while no stage runs."""
        files = take_snapshot(run, self._known or _read_note(run).files)
        self._known = files
        return files

    def push(self, run: Path, base: Files | None = None, is_cancelled: Callable[[], bool] = lambda: False) -> None:
        """Copy new and changed files to the store, and delete there what no machine needs any more.

        ``base``: what `snapshot` returned before the stage that is running; ``None``: none is running. Then files of
        earlier stages are copied as they were there, with what the stage keeps in ``partial/``.

        Raises `WorldloopError` if another machine has continued the run from the copy, or if a file of ``base`` is no
        longer there, and `CancelledError` soon after ``is_cancelled()`` has become true.
        """
        with self._lock:
            entries = self._store.entries()
            newest = self._read_newest(entries)
            if newest is not None:
                self._check_is_current(run, newest)
            upload = Upload(self._store, run, self._list_reusable(entries, newest), is_cancelled)
            files = upload.run(self.snapshot(run) if base is None else base, is_between_stages=base is None)
            if newest is not None and newest.digests == {name: found.sha256 for name, found in files.items()}:
                return
            generation, copy = (0, secrets.token_hex(8)) if newest is None else (newest.generation, newest.copy)
            mine = _Version(copy, generation + 1, secrets.token_hex(8), files)
            upload.raise_if_cancelled()
            # Note the token before the manifest is written. If the process is killed in between, this folder still
            # knows that the new generation is its own.
            _write_note(run, _Version(copy, generation, mine.token, files))
            self._write_manifest(run, mine)
            self._clean_up(run, mine, newest)
            _write_note(run, _Version(copy, mine.generation, "", files))

    def fetch(self, run: Path) -> bool:
        """Download the copy into the locked folder ``run``, unless a run is there already; returns whether it did.

        Raises `WorldloopError` if the run there is behind its copy because another machine has continued the run, if it
        belongs to another copy, or if the folder holds other files.
        """
        newest = self._read_newest()
        if newest is None:
            return False
        if (run / "config.yaml").is_file():
            self._check_is_current(run, newest)
            return False
        incoming = run / _INCOMING
        if not incoming.exists() and any(not path.name.startswith(".") for path in run.glob("*")):
            raise WorldloopError(f"{run} holds something that is no run: move it away, {self.place} is to go there")
        newest = self._download_all(newest, incoming)
        with disk_errors(str(run)):
            # config.yaml is moved last: a folder without it does not count as a run
            for path in sorted(incoming.iterdir(), key=lambda path: path.name == "config.yaml"):
                target = run / path.name
                if target.is_dir():
                    shutil.rmtree(target)
                path.rename(target)
            files = {name: found for name in newest.files if (found := hash_file(run / name, newest.files[name]))}
            _write_note(run, _Version(newest.copy, newest.generation, "", files))
            incoming.rmdir()
        return True

    def _read_newest(self, entries: dict[str, Entry] | None = None) -> _Version | None:
        """The newest manifest of a store that holds ``entries``; ``None``: list them."""
        for _ in range(_TRIES):
            entries = self._store.entries() if entries is None else entries
            generations = _list_generations(entries)
            try:
                if generations:
                    return self._read_manifest(generations[-1])
                return self._parse(self._store.read(_FIRST_FORMAT), None) if _FIRST_FORMAT in entries else None
            except FileNotFoundError:  # another machine has written two newer ones
                entries = None
        raise WorldloopError(f"{self.place} is being written all the time: try again")

    def _read_manifest(self, generation: int) -> _Version:
        return self._parse(self._store.read(_name_manifest(generation)), generation)

    def _parse(self, data: bytes, generation: int | None) -> _Version:
        with malformed(f"the manifest of {self.place}", "restore it, or delete the copy"):
            value = json.loads(data)
            if int(value["schema_version"]) != (1 if generation is None else MANIFEST_SCHEMA_VERSION):
                raise ValueError(f"schema_version {value['schema_version']}")
            manifest = _Version.of(value)
            if generation not in (None, manifest.generation):
                raise ValueError(f"generation {manifest.generation} in {_name_manifest(generation or 0)}")
            for name, found in manifest.files.items():
                relative = PurePosixPath(name)
                if relative.is_absolute() or ".." in relative.parts or not _DIGEST.fullmatch(found.sha256):
                    raise ValueError(f"{name}: {found.sha256}")
            return manifest

    def _check_is_current(self, run: Path, manifest: _Version) -> None:
        note = _read_note(run)
        if note.copy not in ("", manifest.copy):
            raise WorldloopError(f"{self.place} is the copy of another run than {run}: give another run_name or mirror")
        if note.generation < manifest.generation and note.token != manifest.token:
            raise WorldloopError(
                f"{run} is behind its copy {self.place}, with which another machine has gone on: delete the folder to "
                "go on from the copy, or the copy to go on from the folder"
            )

    def _list_reusable(self, entries: dict[str, Entry], newest: _Version | None) -> dict[str, int]:
        """The objects that a push need not upload: sha256 -> size in bytes."""
        found = _list_objects(entries)
        named = set() if newest is None else set(newest.digests.values())
        if not found.keys() - named:
            return {digest: entry.size for digest, entry in found.items()}
        self._store.write(_CLOCK, 0, [])
        now = self._store.entries("clock")[_CLOCK].modified
        return {d: entry.size for d, entry in found.items() if d in named or now - entry.modified < KEEP / 2}

    def _write_manifest(self, run: Path, mine: _Version) -> None:
        """Write ``mine`` unless another machine has; then raise `WorldloopError`."""
        path, data = _name_manifest(mine.generation), mine.to_json()
        if not self._store.create(path, data):
            self._require_current(run)  # it may be there because an answer of the store was lost
        elif not self._is_exclusive:
            if self._store.create(path, data):
                raise StoreError(
                    f"the store {self.place} cannot be used: it overwrites files that should only be created, so two "
                    "machines could destroy the copy; see `mirror`"
                )
            self._is_exclusive = True

    def _require_current(self, run: Path) -> None:
        if (newest := self._read_newest()) is not None:
            self._check_is_current(run, newest)

    def _clean_up(self, run: Path, mine: _Version, before: _Version | None) -> None:
        """Delete what neither ``mine``, the newest manifest, nor the one ``before`` it needs.

        Raises `WorldloopError` if another machine has written a newer manifest.
        """
        entries = self._store.entries()
        generations = _list_generations(entries)
        if mine.generation not in generations or generations[-1] != mine.generation:
            self._require_current(run)
            return
        now = entries[_name_manifest(mine.generation)].modified
        named = {digest for version in (mine, before) if version is not None for digest in version.digests.values()}
        old = {d for d, entry in _list_objects(entries).items() if d not in named and now - entry.modified > KEEP}
        garbage = [f"objects/{digest}" for digest in old]
        self._store.delete(garbage + [_name_manifest(number) for number in generations if number < mine.generation - 1])
        if _FIRST_FORMAT in entries and entries[_FIRST_FORMAT].size != len(_TOMBSTONE):
            self._store.write(_FIRST_FORMAT, len(_TOMBSTONE), [_TOMBSTONE])

    def _download_all(self, manifest: _Version, incoming: Path) -> _Version:
        """Download the files of ``manifest``, or of a newer one if objects have gone with it; returns that."""
        for _ in range(_TRIES):
            _remove_others(incoming, manifest.files)
            try:
                for name, found in manifest.files.items():
                    self._download(name, found, incoming / name)
                return manifest
            except FileNotFoundError as error:
                newest = self._read_newest()
                if newest is None or newest.generation == manifest.generation:
                    raise WorldloopError(
                        f"{error.args[0]} is missing in {self.place}: restore the store, or delete "
                        f"{_name_manifest(manifest.generation)} there to go back by one generation"
                    ) from None
                manifest = newest
        raise WorldloopError(f"{self.place} is being written all the time: try again")

    def _download(self, name: str, wanted: Print, target: Path) -> None:
        """Download one file to ``target``, unless it is there. Raises `WorldloopError` if its sha256 is not ``wanted``.

        Raises ``FileNotFoundError(name)`` if the store does not have it.
        """
        found = hash_file(target)
        if found is None or found.sha256 != wanted.sha256:
            with disk_errors(str(target)):
                target.parent.mkdir(parents=True, exist_ok=True)
                out = target.open("wb")
            with out:
                blocks = self._store.read_blocks(f"objects/{wanted.sha256}")
                while block := _next(blocks, name):
                    with disk_errors(str(target)):
                        out.write(block)
                with disk_errors(str(target)):
                    out.flush()
            found = hash_file(target)
        if found is None or found.sha256 != wanted.sha256:
            raise WorldloopError(f"{name} in {self.place} is damaged: restore the store, or delete the copy")
        if wanted.changed_ns:  # kept blocks of episodes name their checkpoints by this time
            os.utime(target, ns=(wanted.changed_ns, wanted.changed_ns))


def _name_manifest(generation: int) -> str:
    return f"manifests/{generation:09d}.json"


def _list_generations(entries: dict[str, Entry]) -> list[int]:
    return sorted(int(found[1]) for path in entries if (found := _MANIFEST.fullmatch(path)))


def _list_objects(entries: dict[str, Entry]) -> dict[str, Entry]:
    return {found[1]: entry for path, entry in entries.items() if (found := _OBJECT.fullmatch(path))}


def _read_print(value: Any) -> Print:
    if isinstance(value, str):  # a manifest of an earlier worldloop
        return Print(0, 0, value)
    size, changed_ns, sha256 = value
    return Print(int(size), int(changed_ns), str(sha256))


def _remove_others(folder: Path, files: Files) -> None:
    """Delete what an earlier fetch has left in ``folder`` and ``files`` does not have."""
    for path in folder.rglob("*"):
        if path.is_file() and str(path.relative_to(folder)) not in files:
            path.unlink()


def _next(blocks: Iterator[bytes], name: str) -> bytes:
    try:
        return next(blocks, b"")
    except FileNotFoundError:
        raise FileNotFoundError(name) from None


def _read_note(run: Path) -> _Version:
    path = run / LOCAL
    if not path.is_file():
        return _Version()
    remedy = "delete the folder to go on from the copy, or the copy and this file to go on from the folder"
    value = read_json(path, str(path), MANIFEST_SCHEMA_VERSION, remedy)
    with malformed(str(path), remedy):
        return _Version.of(value)


def _write_note(run: Path, note: _Version) -> None:
    write_file(run / LOCAL, note.to_json(), str(run / LOCAL))
