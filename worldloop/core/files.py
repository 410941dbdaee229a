"""Write files that are whole or absent (temporary name, fsync, rename), and turn disk errors into plain words.

Temporary names are the process's own, so two writers never mix a folder. A process that has been replaced, e.g. because
its machine was cut off, may come back late: what it writes into a folder that another has claimed since is refused.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from worldloop.core.errors import WorldloopError, first_line

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_END_BYTES = 2**20  # of each end of a file that `hash_folder` reads
_FULL = (errno.ENOSPC, errno.EDQUOT)
_CLAIM = ".writer"  # in a claimed folder: the token of the process that may write there
_PROCESS = secrets.token_hex(4)  # ends this process's temporary names
_claims: dict[Path, str] = {}  # folder -> this process's token


def check_name(kind: str, name: str) -> None:
    """Raise ``WorldloopError`` unless ``name`` can be a file name on every system."""
    if not _NAME.fullmatch(name):
        raise WorldloopError(f"{kind} name {name!r}: use letters, digits, '.', '_' and '-', starting with no '.'")


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn an ``OSError`` inside the block into one clear ``WorldloopError`` about ``what``."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            text = f"disk full while writing {what}: nothing was kept of it; free space, then run the same command"
        else:
            reason = error.strerror or str(error)
            text = f"cannot write {what}: {reason}; check the directory's permissions and its disk"
        failure = WorldloopError(text)
        failure.exit_code = 1
        raise failure from error


def _sync_path(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_tree(root: Path) -> None:
    for directory, _, files in os.walk(root, topdown=False):
        for file in files:
            _sync_path(Path(directory) / file)
        _sync_path(Path(directory))


def claim_folder(folder: Path) -> None:
    """Let this process write below ``folder``; earlier claimants' writes are refused from now on."""
    folder = folder.resolve()
    token = secrets.token_hex(8)
    write_file(folder / _CLAIM, token.encode(), str(folder))
    _claims[folder] = token


def join_claim(folder: Path) -> None:
    """Write below ``folder`` together with the process that has claimed it last."""
    folder = folder.resolve()
    with disk_errors(str(folder)):
        _claims[folder] = (folder / _CLAIM).read_text()


def _require_claim(final: Path) -> None:
    """Raise ``WorldloopError`` if another process has claimed a folder above ``final`` since this one did."""
    final = final.resolve()
    for folder, token in _claims.items():
        if not final.is_relative_to(folder) or final.name == _CLAIM:
            continue
        try:
            present = (folder / _CLAIM).read_text()
        except FileNotFoundError:  # the run was deleted, and may have been begun anew: nobody has claimed that
            continue
        if present != token:
            raise WorldloopError(
                f"another process has taken over {folder}: {final.name} of this one is dropped, and nothing is lost"
            )


def _temporary(prefix: str, final: Path) -> Path:
    return final.parent / f"{prefix}{final.name}-{_PROCESS}"


def remove_leftovers(final: Path) -> None:
    """Delete what killed writers of ``final`` left beside it."""
    pattern = re.compile(rf"\.(partial|old)-{re.escape(final.name)}(-[0-9a-f]{{8}})?")
    for leftover in [path for path in final.parent.iterdir() if pattern.fullmatch(path.name)]:
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)


@contextmanager
def whole_directory(final: Path, what: str) -> Iterator[Path]:
    """A temporary directory that becomes ``final`` if the block succeeds, and is deleted if it raises.

    An existing ``final`` is replaced. Only one writer per ``final`` may run at a time. Raises `WorldloopError` if this
    process has been replaced, see `claim_folder`.
    """
    partial = _temporary(".partial-", final)
    with disk_errors(what):
        final.parent.mkdir(parents=True, exist_ok=True)
        _require_claim(final)  # before anything of a newer process is removed
        remove_leftovers(final)
        partial.mkdir()
        try:
            yield partial
            _sync_tree(partial)
            _require_claim(final)
            if final.exists():
                final.rename(_temporary(".old-", final))
            partial.rename(final)
            _sync_path(final.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        remove_leftovers(final)


def write_file(path: Path, data: bytes, what: str) -> None:
    """Write ``data`` to ``path`` so that readers see the old file or the whole new one.

    Raises `WorldloopError` if this process has been replaced, see `claim_folder`.
    """
    partial = _temporary(".partial-", path)
    with disk_errors(what):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            _require_claim(path)
            partial.rename(path)
            _sync_path(path.parent)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def to_json(value: Any) -> bytes:
    """Canonical JSON: the same value gives the same bytes."""
    return (json.dumps(value, sort_keys=True, indent=1) + "\n").encode()


def read_json(path: Path, what: str, newest_schema: int, remedy: str) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises `WorldloopError`, with ``what`` in it, for a broken file and for a ``schema_version`` above
    ``newest_schema``; ``PermissionError`` for a file that may not be read.
    """
    try:
        value = json.loads(path.read_bytes())
        schema = int(value["schema_version"])
    except PermissionError:
        raise  # nothing is wrong with the file
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorldloopError(f"{what} is unreadable ({path.name}: {error}); {remedy}") from error
    if schema > newest_schema:
        raise WorldloopError(
            f"{what} has schema_version {schema}, this worldloop reads up to {newest_schema}: install a newer worldloop"
        )
    return value


@contextmanager
def malformed(what: str, remedy: str) -> Iterator[None]:
    """Turn the errors of reading unexpected content inside the block into one ``WorldloopError`` about ``what``."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise WorldloopError(f"{what} is not what worldloop wrote ({reason}); {remedy}") from error


def hash_file(path: Path) -> str:
    """sha256 of the file's bytes, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_folder(path: Path) -> str:
    """sha256 of names, sizes, and first and last MiB of all files below ``path``, as hex; hidden files are left out.

    Weights of several GB that were replaced by others are told apart in milliseconds.
    """
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        name = file.relative_to(path)
        if any(part.startswith(".") for part in name.parts):
            continue
        size = file.stat().st_size
        digest.update(f"{name} {size}\n".encode())
        with open(file, "rb") as content:
            digest.update(content.read(_END_BYTES))
            content.seek(max(size - _END_BYTES, 0))
            digest.update(content.read())
    return digest.hexdigest()
