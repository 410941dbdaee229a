"""A copy of a run in an object store (S3, GCS, Azure, HDFS, or a folder), in case the run's machine is lost.

    URI/RUN_NAME/manifest.json       the run's files and their hashes, written last: only files listed here count
    URI/RUN_NAME/objects/SHA256      the contents of the files

The run works in a local folder. After every stage `Mirror.push` copies new and changed files to the store. On a machine
that does not have the run, `Mirror.fetch` downloads it. The decoded cache and the checkpoints of an unfinished stage
are not copied, because they can be made again. Every copy has an id, and a generation that counts its pushes. The local
folder stores both, so a folder that is behind its copy cannot overwrite it.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from worldloop.core.errors import WorldloopError, first_line
from worldloop.core.files import disk_errors, malformed, read_json, to_json, write_file

MANIFEST_SCHEMA_VERSION = 1
LOCAL = ".mirror.json"  # in the run's folder: id and generation of its copy, and the hashes of its files
_INCOMING = ".incoming"  # in the run's folder: files that are being downloaded
_LEFT_OUT = ("sans/cache/", "partial/", "status.json")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_BLOCK = 2**20

Print = tuple[int, int, str]  # a file's size in bytes, time of its last change in ns, and sha256


class StoreError(WorldloopError):
    """The store cannot be reached, or refuses an operation."""

    exit_code = 1


@dataclass(frozen=True)
class _Version:
    """A generation of a copy: the manifest in the store, or the note `LOCAL` in the run's folder.

    ``files``: name -> sha256 in a manifest, name -> `Print` in a note. ``token`` names a push. In a note it is the push
    that this folder began last and may have completed, "" if it has noted the end.
    """

    copy: str = ""
    generation: int = 0
    token: str = ""
    files: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> bytes:
        values = {"copy": self.copy, "generation": self.generation, "token": self.token, "files": self.files}
        return to_json({"schema_version": MANIFEST_SCHEMA_VERSION, **values})

    @classmethod
    def of(cls, value: dict[str, Any]) -> _Version:
        return cls(str(value["copy"]), int(value["generation"]), str(value["token"]), dict(value["files"]))


class Mirror:
    """The copy of the run ``run_name`` below ``uri``, e.g. ``s3://bucket/runs``, through `pyarrow.fs`.

    Every method raises `StoreError` if the store cannot be used.
    """

    def __init__(self, uri: str, run_name: str) -> None:
        try:
            from pyarrow import fs
        except ImportError as error:
            raise WorldloopError(
                "mirror needs pyarrow, which is not installed: pip install -e '.[data]' in the clone"
            ) from error
        self.place = f"{uri.partition('?')[0].rstrip('/')}/{run_name}"
        with self._reaching():
            self._store, path = fs.FileSystem.from_uri(uri)
        self._path = f"{path.rstrip('/')}/{run_name}"
        self._file = fs.FileType.File
        self._selector: Any = fs.FileSelector

    @property
    def exists(self) -> bool:
        return self._read_manifest() is not None

    def fetch(self, run: Path) -> bool:
        """Download the copy into the locked folder ``run``, unless a run is there already; returns whether it did.

        Raises `WorldloopError` if the run there is behind its copy because another machine has continued the run, if it
        belongs to another copy, or if the folder holds other files.
        """
        manifest = self._read_manifest()
        if manifest is None:
            return False
        if (run / "config.yaml").is_file():
            self._check_is_current(run, manifest)
            return False
        incoming = run / _INCOMING
        if not incoming.exists() and any(not path.name.startswith(".") for path in run.glob("*")):
            raise WorldloopError(f"{run} holds something that is no run: move it away, {self.place} is to go there")
        shutil.rmtree(incoming, ignore_errors=True)
        files = {name: self._download(digest, incoming / name, name) for name, digest in manifest.files.items()}
        with disk_errors(str(run)):
            # config.yaml is moved last: a folder without it does not count as a run
            for path in sorted(incoming.iterdir(), key=lambda path: path.name == "config.yaml"):
                target = run / path.name
                if target.is_dir():
                    shutil.rmtree(target)
                path.rename(target)
            note = _Version(manifest.copy, manifest.generation, "", files)
            write_file(run / LOCAL, note.to_json(), str(run / LOCAL))
            incoming.rmdir()
        return True

    def push(self, run: Path) -> None:
        """Copy new and changed files to the store, and delete there what the run no longer has.

        Raises `WorldloopError` if another machine has continued the run from the copy.
        """
        manifest = self._read_manifest()
        if manifest is not None:
            self._check_is_current(run, manifest)
        known = _read_note(run).files
        files = {name: found for name in _list_files(run) if (found := _hash(run / name, known.get(name)))}
        digests = {name: digest for name, (_, _, digest) in files.items()}
        if manifest is not None and manifest.files == digests:
            return
        generation = 0 if manifest is None else manifest.generation
        copy, token = secrets.token_hex(8) if manifest is None else manifest.copy, secrets.token_hex(8)
        with self._reaching():
            self._store.create_dir(f"{self._path}/objects", recursive=True)
            infos = self._store.get_file_info(self._selector(f"{self._path}/objects"))
            stored = {info.base_name: info.size for info in infos if info.type == self._file}
            for name, (size, _, digest) in files.items():
                if stored.get(digest) != size:  # an incomplete upload has another size
                    with (run / name).open("rb") as source, self._store.open_output_stream(self._object(digest)) as out:
                        shutil.copyfileobj(source, out, _BLOCK)
                    stored[digest] = size
        # Note the token before the manifest is replaced. If the process is killed in between, this folder still knows
        # that the new generation is its own.
        write_file(run / LOCAL, _Version(copy, generation, token, files).to_json(), str(run / LOCAL))
        with self._reaching():
            with self._store.open_output_stream(f"{self._path}/manifest.partial") as out:
                out.write(_Version(copy, generation + 1, token, digests).to_json())
            self._store.move(f"{self._path}/manifest.partial", f"{self._path}/manifest.json")
        write_file(run / LOCAL, _Version(copy, generation + 1, "", files).to_json(), str(run / LOCAL))
        with self._reaching():
            for digest in stored.keys() - set(digests.values()):
                self._store.delete_file(self._object(digest))

    def _read_manifest(self) -> _Version | None:
        path = f"{self._path}/manifest.json"
        with self._reaching():
            if self._store.get_file_info(path).type != self._file:
                return None
            with self._store.open_input_stream(path) as file:
                data = file.read()
        with malformed(f"the manifest of {self.place}", "restore it, or delete the copy"):
            value = json.loads(data)
            if int(value["schema_version"]) > MANIFEST_SCHEMA_VERSION:
                raise ValueError(f"schema_version {value['schema_version']}")
            manifest = _Version.of(value)
            for name, digest in manifest.files.items():
                relative = PurePosixPath(name)
                if relative.is_absolute() or ".." in relative.parts or not _DIGEST.fullmatch(digest):
                    raise ValueError(f"{name}: {digest}")
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

    def _download(self, digest: str, target: Path, name: str) -> Print:
        """Download one object to ``target``; raises `WorldloopError` if its sha256 is not ``digest``."""
        found = hashlib.sha256()
        with self._reaching():
            source = self._store.open_input_stream(self._object(digest))
        with source, disk_errors(str(target)):
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as out:
                while block := self._read(source):
                    found.update(block)
                    out.write(block)
        if found.hexdigest() != digest:
            raise WorldloopError(f"{name} in {self.place} is damaged: restore the store, or delete the copy")
        return _stat(target, digest)

    def _read(self, source: Any) -> bytes:
        with self._reaching():
            return bytes(source.read(_BLOCK))

    def _object(self, digest: str) -> str:
        return f"{self._path}/objects/{digest}"

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, KeyError, NotImplementedError) as error:  # bases of pyarrow's errors
            raise StoreError(f"the store {self.place} cannot be used: {first_line(error)}; see `mirror`") from error


def _list_files(run: Path) -> list[str]:
    found = sorted(path.relative_to(run) for path in run.rglob("*") if path.is_file())
    visible = [str(path) for path in found if not any(part.startswith(".") for part in path.parts)]
    return [name for name in visible if not name.startswith(_LEFT_OUT)]


def _stat(path: Path, digest: str) -> Print:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, digest


def _hash(path: Path, known: Any) -> Print | None:
    """The `Print` of ``path``, with the hash of ``known`` if size and time are unchanged.

    ``None`` if the file has just been deleted.
    """
    try:
        size, changed, _ = _stat(path, "")
        if known and [size, changed] == list(known[:2]):
            return size, changed, str(known[2])
        with path.open("rb") as file:
            return size, changed, hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _read_note(run: Path) -> _Version:
    path = run / LOCAL
    if not path.is_file():
        return _Version()
    remedy = "delete the folder to go on from the copy, or the copy and this file to go on from the folder"
    value = read_json(path, str(path), MANIFEST_SCHEMA_VERSION, remedy)
    with malformed(str(path), remedy):
        return _Version.of(value)
