"""Hash a file of the dataset once: afterwards its size and times say that it is the same.

    cache/NAME-HASH.hashes.json     size, times and digest of the files of one shard, and of its cache part

The time at which the file system changed the file's entry counts too. A copy may keep a file's size and modification
time, but not that one. So whoever copies a dataset hashes it once more.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from worldloop.core.errors import WorldloopError
from worldloop.core.files import hash_file, to_json, write_file

# A file that was changed a moment ago may change again without another time: file systems count in steps of up to 2 s.
SETTLED_NS = 2 * 10**9


class KnownHashes:
    """sha256 of files below ``root``, as kept in the file ``path``.

    A file is read if it is not known, or if its size or times are others than when it was hashed. Call `keep` once
    everything has been compared: `is_known` then says of a file that it has not changed since. Without ``trusts``
    nothing is known before.
    """

    def __init__(self, root: Path, path: Path, trusts: bool = True) -> None:
        self.root, self.path = root, path
        self._kept: dict[str, list[Any]] = {}
        self._now: dict[str, list[Any]] = {}
        if trusts:
            with suppress(OSError, ValueError):
                kept = json.loads(path.read_bytes())
                self._kept = kept if isinstance(kept, dict) else {}

    def hash(self, file: Path) -> str:
        """sha256 of ``file`` as hex; raises ``OSError`` if it cannot be read."""
        if self.is_known(file):
            return str(self._now[self._name(file)][-1])
        before = _describe(file)
        digest = hash_file(file)
        if before == _describe(file) and time.time_ns() - max(before[1:]) > SETTLED_NS:
            self._now[self._name(file)] = [*before, digest]
        return digest

    def is_known(self, file: Path) -> bool:
        """Whether ``file`` was hashed before and has not changed since."""
        name = self._name(file)
        entry = self._now.get(name) or self._kept.get(name)
        with suppress(OSError):
            if isinstance(entry, list) and entry[:-1] == _describe(file):
                self._now[name] = entry
                return True
        return False

    def keep(self) -> None:
        """Remember the files that were hashed or known. In a folder that takes no file they are hashed again."""
        if self._now != self._kept:
            with suppress(WorldloopError):
                write_file(self.path, to_json(self._now), self.path.name)
                self._kept = dict(self._now)

    def _name(self, file: Path) -> str:
        return file.relative_to(self.root).as_posix()


def _describe(file: Path) -> list[int]:
    """Size, and times of modification and of the entry's change, in ns."""
    found = file.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]
