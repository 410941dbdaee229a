"""The uploads of one push of `storage.mirror`: what is read fits its hash, and a checkpoint goes as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from worldloop.storage.object_store import ObjectStore
from worldloop.storage.snapshot import (
    GROWING,
    FileChangedError,
    Files,
    OpenFile,
    Print,
    hash_file,
    list_blocks,
    open_checkpoints,
    take_snapshot,
)

_TRIES = 3


class CancelledError(Exception):
    """The push was given up because its caller asked for it; nothing has changed for readers."""


class Upload:
    """One push's uploads; ``reusable``: the objects that are in the store already, sha256 -> size."""

    def __init__(
        self, store: ObjectStore, run: Path, reusable: dict[str, int], is_cancelled: Callable[[], bool]
    ) -> None:
        self._store, self._run, self._is_cancelled = store, run, is_cancelled
        self._stored = reusable

    def run(self, base: Files, is_between_stages: bool) -> Files:
        """Upload ``base`` and what ``partial/`` holds; returns the files as they were uploaded."""
        files: Files = {}
        with open_checkpoints(self._run) as checkpoints:
            for checkpoint in checkpoints:
                try:
                    for file in checkpoint:
                        self._store_file(file)
                except FileChangedError:  # it is damaged
                    continue
                files |= {file.name: file.print for file in checkpoint}
        moving = list_blocks(self._run, {})
        if is_between_stages:
            moving |= base
        else:
            for name, found in base.items():
                if not name.startswith(GROWING):
                    files[name] = self._store_as_it_was(name, found)
            moving |= take_snapshot(self._run, base, *GROWING)
        for name, found in moving.items():
            if (now := self._store_as_it_is(name, found)) is not None:
                files[name] = now
        return files

    def raise_if_cancelled(self) -> None:
        if self._is_cancelled():
            raise CancelledError

    def _store_as_it_was(self, name: str, found: Print) -> Print:
        if self._stored.get(found.sha256) != found.size:
            try:
                with OpenFile(self._run, name, found.sha256, found.size) as file:
                    self._store_file(file)
            except FileNotFoundError:
                raise FileChangedError(f"{name} was deleted before it was copied") from None
        return found

    def _store_as_it_is(self, name: str, found: Print) -> Print | None:
        """Upload ``name``, also if it changes meanwhile; ``None`` if it is gone."""
        for attempt in range(_TRIES):
            try:
                return self._store_as_it_was(name, found)
            except FileChangedError:
                now = hash_file(self._run / name)
                if now is None:
                    return None
                if attempt == _TRIES - 1:
                    raise
                found = now
        return None

    def _store_file(self, file: OpenFile) -> None:
        self.raise_if_cancelled()
        digest, size = file.print.sha256, file.print.size
        if self._stored.get(digest) != size:
            self._store.write(f"objects/{digest}", size, self._watch(file.blocks()))
            self._stored[digest] = size

    def _watch(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        for block in blocks:
            self.raise_if_cancelled()
            yield block
