"""A copy of a run in an object store (S3, GCS, Azure, HDFS; or a folder), which outlives the machine the run is on.

    URI/RUN_NAME/manifest.json       the run's files and their hashes: it alone says what counts, and is written last
    URI/RUN_NAME/objects/SHA256      their contents

A run is worked on in a folder. After every stage `Mirror.push` copies what is new; on a machine that does not have the
run `Mirror.fetch` brings it. What can be made again stays behind: the decoded cache, and what a stage has half done.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from worldloop.errors import WorldloopError, first_line
from worldloop.files import malformed, read_json, to_json, whole_directory, write_file

MANIFEST_SCHEMA_VERSION = 1
LOCAL = ".mirror.json"  # in the run: which generation of the copy it is, and the hashes of its files
_LEFT_OUT = ("sans/cache/", "partial/", "status.json")
_BLOCK = 2**20


class Mirror:
    """The copy of the run ``run_name`` below ``uri``, e.g. ``s3://bucket/runs``, through `pyarrow.fs`.

    Raises `WorldloopError` where the store cannot be reached, from every method.
    """

    def __init__(self, uri: str, run_name: str) -> None:
        try:
            from pyarrow import fs
        except ImportError as error:
            raise WorldloopError(
                "mirror needs pyarrow, which is not installed: pip install 'worldloop[data]'"
            ) from error
        self.place = f"{uri.rstrip('/')}/{run_name}"
        with self._reaching():
            self._store, path = fs.FileSystem.from_uri(uri)
        self._path = f"{path.rstrip('/')}/{run_name}"
        self._file = fs.FileType.File
        self._selector: Any = fs.FileSelector

    def fetch(self, run: Path) -> bool:
        """Bring the copy to the folder ``run`` where there is no run yet; returns whether it did.

        Raises `WorldloopError` where the run there is older than its copy, which another machine has gone on with.
        """
        manifest = self._read_manifest()
        if manifest is None:
            return False
        if (run / "config.yaml").is_file():
            self._check_generation(run, manifest)
            return False
        with whole_directory(run, f"the copy of {self.place}") as folder:
            known = {}
            for name, digest in manifest["files"].items():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with self._reaching(), self._store.open_input_stream(self._object(digest)) as source:
                    found = _copy(source, target)
                if found != digest:
                    raise WorldloopError(
                        f"{name} in {self.place} is damaged: restore the store, or delete {self.place}"
                    )
                known[name] = _fingerprint(target, digest)
            (folder / LOCAL).write_bytes(_describe(manifest["generation"], known))
        return True

    def push(self, run: Path) -> None:
        """Copy what is new or has changed since the last time, and forget what is gone."""
        manifest = self._read_manifest()
        generation = 0 if manifest is None else int(manifest["generation"])
        if manifest is not None:
            self._check_generation(run, manifest)
        local, token = _read_local(run), secrets.token_hex(8)
        files = {name: _hash(run / name, local["files"].get(name)) for name in _list_files(run)}
        with self._reaching():
            self._store.create_dir(f"{self._path}/objects", recursive=True)
            infos = self._store.get_file_info(self._selector(f"{self._path}/objects"))
            stored = {info.base_name: info.size for info in infos if info.type == self._file}
            for name, (size, _, digest) in files.items():
                if stored.get(digest) != size:  # one that was cut short has another size
                    with (run / name).open("rb") as source, self._store.open_output_stream(self._object(digest)) as out:
                        shutil.copyfileobj(source, out, _BLOCK)
                    stored[digest] = size
            # written down before it is done: cut in between, the new generation is known to be this folder's
            write_file(run / LOCAL, _describe(local["generation"], files, token), str(run / LOCAL))
            value: dict[str, Any] = {
                "schema_version": MANIFEST_SCHEMA_VERSION,
                "generation": generation + 1,
                "token": token,
                "files": {name: digest for name, (_, _, digest) in files.items()},
            }
            with self._store.open_output_stream(f"{self._path}/manifest.partial") as out:
                out.write(to_json(value))
            self._store.move(f"{self._path}/manifest.partial", f"{self._path}/manifest.json")
            for digest in stored.keys() - set(value["files"].values()):
                self._store.delete_file(self._object(digest))
        write_file(run / LOCAL, _describe(generation + 1, files), str(run / LOCAL))

    def _read_manifest(self) -> dict[str, Any] | None:
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
            files = {str(name): str(digest) for name, digest in value["files"].items()}
            return {"generation": int(value["generation"]), "token": str(value["token"]), "files": files}

    def _check_generation(self, run: Path, manifest: dict[str, Any]) -> None:
        local = _read_local(run)
        if local["generation"] < manifest["generation"] and local["token"] != manifest["token"]:
            raise WorldloopError(
                f"{run} is behind its copy {self.place}, with which another machine has gone on: delete the folder to "
                "go on from the copy, or give another run_name"
            )

    def _object(self, digest: str) -> str:
        return f"{self._path}/objects/{digest}"

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, KeyError, NotImplementedError) as error:  # pyarrow's derive from these
            failure = WorldloopError(f"the store {self.place} cannot be used: {first_line(error)}; see `mirror`")
            failure.exit_code = 1
            raise failure from error


def _list_files(run: Path) -> list[str]:
    found = sorted(path.relative_to(run) for path in run.rglob("*") if path.is_file())
    visible = [str(path) for path in found if not any(part.startswith(".") for part in path.parts)]
    return [name for name in visible if not name.startswith(_LEFT_OUT)]


def _copy(source: Any, target: Path) -> str:
    """The hash of what was copied."""
    digest = hashlib.sha256()
    with target.open("wb") as out:
        while block := source.read(_BLOCK):
            digest.update(block)
            out.write(block)
    return digest.hexdigest()


def _fingerprint(path: Path, digest: str) -> tuple[int, int, str]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, digest


def _hash(path: Path, known: Any) -> tuple[int, int, str]:
    """Size, time of change and hash; the hash is ``known`` where the others are."""
    size, changed, _ = _fingerprint(path, "")
    if known and [size, changed] == list(known[:2]):
        return size, changed, str(known[2])
    with path.open("rb") as file:
        return size, changed, hashlib.file_digest(file, "sha256").hexdigest()


def _describe(generation: int, files: dict[str, tuple[int, int, str]], token: str = "") -> bytes:
    """``token`` is that of a generation which may or may not have been written."""
    value = {"schema_version": MANIFEST_SCHEMA_VERSION, "generation": generation, "token": token, "files": files}
    return to_json(value)


def _read_local(run: Path) -> dict[str, Any]:
    path = run / LOCAL
    if not path.is_file():
        return {"generation": 0, "token": "", "files": {}}
    remedy = "delete it if this folder is as new as the copy"
    value = read_json(path, f"{path}", MANIFEST_SCHEMA_VERSION, remedy)
    with malformed(str(path), remedy):
        return {"generation": int(value["generation"]), "token": str(value["token"]), "files": dict(value["files"])}
