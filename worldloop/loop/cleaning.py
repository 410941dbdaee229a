"""What can be freed in a run's folder, and freeing it.

- checkpoints and labels of past iterations that nothing reads any more (`storage.retention`)
- videos of past iterations in TensorBoard; curves and pictures stay, and the report shows the latest videos
- the decoded cache of the dataset: parts that no version needs, and once the run has ended all of it. It is built again
  when it is next needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from worldloop.core.errors import WorldloopError
from worldloop.reporting.event_files import list_event_files, measure_videos, remove_videos
from worldloop.sans.store import SansStore
from worldloop.storage.retention import Removable, RetentionConfig, list_old_models, measure, remove_folder
from worldloop.storage.run_directory import RunDirectory
from worldloop.storage.run_state import LoopState

VIDEOS, CACHE = "videos", "cache"


def read_retention(directory: RunDirectory, num_iterations: int | None = None) -> RetentionConfig:
    """The settings of the run in ``directory``, with another ``num_iterations`` if one is given."""
    stored: Any = OmegaConf.create(directory.read_config())
    settings = dict(stored.get("retention", {}))
    if num_iterations is not None:
        settings["num_iterations"] = num_iterations
    try:
        return RetentionConfig(**settings)
    except (TypeError, ValueError) as error:
        raise WorldloopError(f"{directory.path / 'config.yaml'}: {error}") from error


def find_removable(run_dir: Path, state: LoopState, retention: RetentionConfig) -> list[Removable]:
    """All that can be freed in the run, in the order of its folders."""
    return [
        *list_old_models(run_dir, state, retention),
        *_list_caches(run_dir, has_ended=not state.next_stage),
        *_list_videos(run_dir, state.iteration - retention.num_iterations + 1),
    ]


def remove(run_dir: Path, found: Iterable[Removable]) -> None:
    """Free what `find_removable` has found. No process may write to the run meanwhile."""
    for item in found:
        if item.what == VIDEOS:
            remove_videos(run_dir / item.path, item.before)
        else:
            remove_folder(run_dir, item)


def clean_after_iteration(
    directory: RunDirectory, state: LoopState, retention: RetentionConfig, log: Callable[[str], None]
) -> None:
    """Free what can be freed, and ``log`` how much; a disk that refuses ends no run."""
    try:
        found = find_removable(directory.path, state, retention)
        remove(directory.path, found)
    except WorldloopError as error:
        log(f"  could not free what is no longer needed: {error}")
        return
    if size := sum(item.num_bytes for item in found):
        log(f"  freed {format_bytes(size)} that the run no longer needs")


def describe_removable(found: Sequence[Removable]) -> list[str]:
    """A line for each of ``found``, and one for the sum."""
    lines = [f"{format_bytes(item.num_bytes):>9}  {item.what:<17} {item.path}" for item in found]
    return [*lines, f"{format_bytes(sum(item.num_bytes for item in found)):>9}  in all"]


def format_bytes(count: int) -> str:
    """E.g. ``12.3 MB``; a MB has 10^6 bytes."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


def _list_caches(run_dir: Path, has_ended: bool) -> list[Removable]:
    parts = SansStore(run_dir / "sans").list_cache_parts(also_used=has_ended)
    return [Removable(str(path.relative_to(run_dir)), CACHE, measure(path)) for path in parts]


def _list_videos(run_dir: Path, before: int) -> list[Removable]:
    """Event files with videos of iterations below ``before``, without a stage's latest; none without TensorBoard."""
    if find_spec("tensorboard") is None:
        return []
    found = []
    for folder in sorted(path for path in (run_dir / "tensorboard").rglob("*") if path.is_dir()):
        sizes = {path: measure_videos(path) for path in list_event_files(folder)}
        latest = max((step for steps in sizes.values() for step in steps), default=0)
        limit = min(before, latest)
        for path, steps in sizes.items():
            if size := sum(count for step, count in steps.items() if step < limit):
                found.append(Removable(str(path.relative_to(run_dir)), VIDEOS, size, limit))
    return found
