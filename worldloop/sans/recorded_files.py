"""Open the files of a LeRobot dataset that was recorded elsewhere, and say what is wrong with one that cannot be read.

A remedy may cost a day: only what is truly lost has to be recorded again. So the kinds of failure are told apart, and
each error names the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from worldloop.core.errors import WorldloopError, first_line
from worldloop.sans.lerobot_format import require_data_extra

_LFS = b"version https://git-lfs.github.com/spec/"
_PARQUET = b"PAR1"  # a parquet file begins and ends with it


def explain_file(root: Path, path: Path, error: BaseException, remedy: str = "", holds: str = "") -> WorldloopError:
    """The `WorldloopError` that says why ``path``, a file of the dataset ``root``, cannot be read, and what to do.

    ``error`` is what reading it raised. ``remedy`` is another way out, if there is one, e.g. to leave a camera out;
    ``holds`` are the episodes that the file holds, e.g. ``0-11``.
    """
    fault = _find_fault(root, path) or f"is damaged ({first_line(error)}): restore it from a copy"
    return _name_fault(root, path, fault, remedy, holds)


def require_whole(root: Path, path: Path, remedy: str = "", holds: str = "") -> None:
    """Raise the `WorldloopError` of `explain_file` if ``path`` is missing, empty, cut off, or a Git LFS pointer."""
    if fault := _find_fault(root, path):
        raise _name_fault(root, path, fault, remedy, holds)


def _name_fault(root: Path, path: Path, fault: str, remedy: str, holds: str) -> WorldloopError:
    name = name_file(root, path) + (f", of episodes {holds}," if holds else "")
    return WorldloopError(f"{name} {fault}" + (f", or {remedy}" if remedy else ""))


def name_file(root: Path, path: Path) -> str:
    """E.g. ``data/chunk-000/file-000.parquet of the dataset DATASET``."""
    return f"{path.relative_to(root)} of the dataset {root}" if path.is_relative_to(root) else str(path)


def _find_fault(root: Path, path: Path) -> str:
    """What is wrong with ``path`` and the remedy, as far as its two ends show; "" if they look right."""
    try:
        with open(path, "rb") as file:
            head = file.read(len(_LFS))
            file.seek(max(path.stat().st_size - len(_PARQUET), 0))
            tail = file.read()
    except FileNotFoundError:
        return "is missing: restore it"
    except OSError as error:
        return f"cannot be read ({error.strerror or error}): make it readable"
    if head == _LFS:
        return f"is a Git LFS pointer, not the file itself: run git lfs pull in {root}"
    if not head:
        return "is empty: restore it from a copy"
    if path.suffix == ".parquet" and head.startswith(_PARQUET) and tail != _PARQUET:
        return (
            "has no end: its copy was cut off, or its recorder ended before finalize(). Copy it again; if there is no "
            "whole copy, the rows in this file are lost, and no others"
        )
    return ""


def read_meta(root: Path, name: str) -> dict[str, Any]:
    """The JSON object in ``meta/name`` of the dataset ``root``; raises `WorldloopError` if it cannot be read."""
    path = root / "meta" / name
    if not path.is_file():
        raise WorldloopError(f"{root} is no LeRobotDataset: it has no meta/{name}")
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise explain_file(root, path, error) from error


class ParquetFile:
    """A parquet file of a dataset, open only while it is read, since a dataset may have thousands.

    ``holds`` are the episodes in it, for errors. Every method raises the `WorldloopError` of `explain_file` for a
    broken file.
    """

    def __init__(self, root: Path, path: Path, holds: str = "") -> None:
        require_data_extra()
        self.root, self.path, self.holds = root, path, holds
        with self._open() as file:
            self._metadata = file.metadata
            self.columns = tuple(file.schema_arrow.names)
        self.num_rows = int(self._metadata.num_rows)

    def read(self, columns: list[str]) -> Any:
        """The `pyarrow.Table` of these columns; raises `WorldloopError` that lists the columns if one is not there."""
        self._require(columns)
        with self._open() as file:
            return file.read(columns=columns)

    def read_group(self, row: int, column: str) -> tuple[int, Any]:
        """The row group that holds ``row``: its first row, and its `pyarrow.ChunkedArray` of ``column``."""
        self._require([column])
        begin = 0
        for group in range(self._metadata.num_row_groups):
            rows = self._metadata.row_group(group).num_rows
            if row < begin + rows:
                break
            begin += rows
        with self._open() as file:
            return begin, file.read_row_group(group, columns=[column])[column]

    @contextmanager
    def _open(self) -> Iterator[Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self.path) as file:
                yield file
        except (pa.ArrowException, OSError) as error:
            raise explain_file(self.root, self.path, error, holds=self.holds) from error

    def _require(self, columns: list[str]) -> None:
        for column in columns:
            if column not in self.columns:
                known = [name for name in self.columns if not name.startswith("stats/")]
                raise WorldloopError(
                    f"{name_file(self.root, self.path)} has no column {column!r}; there are: {', '.join(known)}"
                )
