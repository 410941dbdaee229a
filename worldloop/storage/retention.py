"""Which files of a run may go: models of past iterations that nothing reads any more."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldloop.core.files import disk_errors
from worldloop.storage.run_state import LoopState


@dataclass(frozen=True)
class RetentionConfig:
    """What `worldloop clean` leaves. What the run needs to go on, to be played or to be exported stays in any case."""

    num_iterations: int = 2  # latest iterations, the running one included, of which all models and videos stay
    policies: bool = True  # true: the policies of all iterations stay; false: only those of the latest ones
    automatic: bool = False  # true: clean at the end of every iteration, without asking

    def __post_init__(self) -> None:
        if self.num_iterations < 1:
            raise ValueError(f"retention.num_iterations is {self.num_iterations}, allowed: >= 1")


@dataclass(frozen=True)
class Removable:
    """``path``, relative to the run, and what it is. ``num_bytes`` are freed with it.

    ``before``: of an event file, the iteration from which on videos stay.
    """

    path: str
    what: str
    num_bytes: int
    before: int = 0


def list_old_models(run_dir: Path, state: LoopState, retention: RetentionConfig) -> list[Removable]:
    """Checkpoints and labels of past iterations that neither ``state`` names nor ``retention`` keeps."""
    needed = {path.rstrip("/") for path in _list_paths({**state.to_dict(), "records": []})}
    found = []
    for folder in sorted([*run_dir.glob("checkpoints/iteration_*/*"), *run_dir.glob("labels/iteration_*")]):
        path = folder.relative_to(run_dir)
        number = next(part for part in path.parts if part.startswith("iteration_")).removeprefix("iteration_")
        if not folder.is_dir() or not number.isdigit() or int(number) > state.iteration - retention.num_iterations:
            continue
        kind = _read_kind(folder) if path.parts[0] == "checkpoints" else "labels"
        if str(path) in needed or not kind or (kind == "policy" and retention.policies):
            continue
        found.append(Removable(str(path), kind.replace("_", " "), measure(folder)))
    return found


def remove_folder(run_dir: Path, found: Removable) -> None:
    """Delete the folder ``found``, at once for every reader."""
    folder = run_dir / found.path
    with disk_errors(f"{folder}, to delete it"):
        going = folder.with_name(f".old-{folder.name}")
        shutil.rmtree(going, ignore_errors=True)
        folder.rename(going)
        shutil.rmtree(going)


def measure(path: Path) -> int:
    """The size in bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())


def _list_paths(value: Any) -> Iterator[str]:
    """All texts in ``value``: paths are among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _list_paths(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _list_paths(item)


def _read_kind(folder: Path) -> str:
    """The kind of the checkpoint in ``folder``; "" if it is none, or is damaged."""
    try:
        return str(json.loads((folder / "checkpoint.json").read_bytes())["kind"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
