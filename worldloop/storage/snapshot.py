"""The files of a run as they belong together at one moment, for its copy.

- Between two stages nothing changes: `take_snapshot` lists all files.
- While a stage runs, files of earlier stages stay as they are. What the stage keeps in ``partial/`` is added by
  `open_checkpoints` and `list_blocks`. A checkpoint goes along as a whole: `training.resume` lists its files and their
  hashes in ``partial.json``.

A file may be replaced while it is read. So it is read through one open handle, and its hash is checked.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from worldloop.core.errors import WorldloopError

PARTIAL = "partial/"
GROWING = ("logs/", "tensorboard/")  # files that a stage appends to, and that no stage reads
_LEFT_OUT = ("sans/cache/", "status.json")
_EPISODES = "partial/episodes"  # finished blocks, each for itself: `rollout.kept_blocks`
_RECORD = "partial.json"
_BLOCK = 2**20
_TRIES = 3


class Print(NamedTuple):
    """A file's size in bytes, the time of its last change in ns (0: unknown), and the sha256 of its contents."""

    size: int
    changed_ns: int
    sha256: str


Files = dict[str, Print]  # by the path relative to the run's folder


class FileChangedError(WorldloopError):
    """A file is no longer what its `Print` says."""

    exit_code = 1


class OpenFile:
    """An open file of a run: what is read stays the same if the file is replaced or deleted.

    Only the first ``size`` bytes are read, so the file may grow. ``sha256`` ``None``: it is computed.
    Raises ``FileNotFoundError`` if the file is not there.
    """

    def __init__(self, run: Path, name: str, sha256: str | None = None, size: int | None = None) -> None:
        self.name = name
        self._file = (run / name).open("rb")
        try:
            stat = os.fstat(self._file.fileno())
            size = stat.st_size if size is None else size
            if sha256 is None:
                digest = hashlib.sha256()
                for block in self._read(size):
                    digest.update(block)
                sha256 = digest.hexdigest()
            self.print = Print(size, stat.st_mtime_ns, sha256)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> OpenFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def blocks(self) -> Iterator[bytes]:
        """The contents in blocks. Raises `FileChangedError` at the end if they do not fit the hash."""
        digest = hashlib.sha256()
        for block in self._read(self.print.size):
            digest.update(block)
            yield block
        if digest.hexdigest() != self.print.sha256:
            raise FileChangedError(f"{self.name} has changed while it was copied")

    def _read(self, size: int) -> Iterator[bytes]:
        self._file.seek(0)
        while size and (block := self._file.read(min(size, _BLOCK))):
            size -= len(block)
            yield block


def take_snapshot(run: Path, known: Mapping[str, Print], *below: str) -> Files:
    """All files of ``run`` except ``partial/`` and what can be made again; with ``below`` only those in these folders.

    The hash of a file in ``known`` counts if size and time of the file are unchanged.
    """
    names = [name for name in _list_files(run) if not name.startswith((PARTIAL, *_LEFT_OUT))]
    return _hash_all(run, [name for name in names if not below or name.startswith(below)], known)


def list_blocks(run: Path, known: Mapping[str, Print]) -> Files:
    """The finished blocks of episodes of the stage that is running."""
    return _hash_all(run, _list_files(run, _EPISODES), known)


@contextmanager
def open_checkpoints(run: Path) -> Iterator[list[list[OpenFile]]]:
    """The checkpoints within the stage that is running, each as its files; those without a file are left out."""
    with ExitStack() as stack:
        records = sorted((run / PARTIAL).rglob(_RECORD))
        yield [files for record in records if (files := _open_checkpoint(run, record.parent, stack))]


def _open_checkpoint(run: Path, folder: Path, stack: ExitStack) -> list[OpenFile]:
    name = str(folder.relative_to(run))
    for _ in range(_TRIES):  # a new checkpoint may take the place of this one
        with ExitStack() as opened:
            try:
                files = [opened.enter_context(OpenFile(run, f"{name}/{_RECORD}"))]
                for file, digest in sorted(json.loads(b"".join(files[0].blocks()))["sha256"].items()):
                    files.append(opened.enter_context(OpenFile(run, f"{name}/{file}", digest)))
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue
            stack.push(opened.pop_all())
            return files
    return []


def hash_file(path: Path, known: Any = None) -> Print | None:
    """The `Print` of ``path``, with the hash of ``known`` if size and time are unchanged; ``None`` if it is gone."""
    try:
        stat = path.stat()
        if known and (stat.st_size, stat.st_mtime_ns) == tuple(known[:2]):
            return Print(*known)
        with OpenFile(path.parent, path.name) as file:
            return file.print
    except FileNotFoundError:
        return None


def _list_files(run: Path, below: str = "") -> list[str]:
    found = sorted(path.relative_to(run) for path in (run / below).rglob("*") if path.is_file())
    return [str(path) for path in found if not any(part.startswith(".") for part in path.parts)]


def _hash_all(run: Path, names: list[str], known: Mapping[str, Print]) -> Files:
    return {name: found for name in names if (found := hash_file(run / name, known.get(name)))}
