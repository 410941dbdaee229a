"""Open a LeRobot dataset whatever it is used for: its metadata, its cameras, and the rows of its episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldloop.core.errors import WorldloopError, first_line
from worldloop.sans.recorded_features import list_cameras, name_camera
from worldloop.sans.recorded_files import read_meta
from worldloop.sans.recorded_meta import Found, find_episodes
from worldloop.sans.recorded_rows import RecordedEpisodes, RowReader

CAMERAS = "recording.cameras"


@dataclass(frozen=True)
class RecordedDataset:
    """A dataset whose pictures can be read, which is all that labelling needs.

    - ``info``: the content of ``meta/info.json``
    - ``cameras``: name -> feature, only the cameras in use; ``setting``: what chooses them, e.g. ``--camera``
    - ``found``: rows and episodes, and what is doubtful about them
    """

    root: Path
    info: dict[str, Any]
    cameras: dict[str, str]
    setting: str
    found: Found

    @property
    def episodes(self) -> RecordedEpisodes:
        return self.found.episodes

    @property
    def features(self) -> dict[str, dict[str, Any]]:
        return dict(self.info["features"])

    def make_reader(self, tolerance_s: float) -> RowReader:
        return RowReader(self.found.table, self.episodes, tolerance_s, self.setting)


def open_dataset(root: str, cameras: Sequence[str] = (), setting: str = CAMERAS) -> RecordedDataset:
    """Read the metadata, and find the rows of every episode. ``setting`` is what chooses ``cameras``.

    Raises `WorldloopError` that names what is missing or contradictory, and what there is instead.
    """
    path, info = Path(root), read_info(root)
    try:
        chosen = _choose_cameras(path, cameras, list_cameras(info["features"]), setting)
        found = find_episodes(path, info, list(chosen.values()))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise refuse_meta(path, error) from error
    return RecordedDataset(path, info, chosen, setting, found)


def read_info(root: str) -> dict[str, Any]:
    """The content of ``meta/info.json``; raises `WorldloopError` if ``root`` is no dataset of LeRobot's format v3."""
    if not root:
        raise WorldloopError("recording.root is not given: the folder of a LeRobotDataset")
    path = Path(root)
    info = read_meta(path, "info.json")
    version = str(info.get("codebase_version", "unknown"))
    if not version.startswith("v3."):
        raise WorldloopError(
            f"dataset {path} has LeRobot's format {version}, this worldloop reads v3.0: convert it with "
            f"python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=local/{path.resolve().name} "
            f"--root={path} --push-to-hub=false"
        )
    return info


def refuse_meta(root: Path, error: Exception) -> WorldloopError:
    """The `WorldloopError` for metadata that reading them raised ``error`` at."""
    return WorldloopError(
        f"meta/ of the dataset {root} is not what LeRobot writes ({type(error).__name__}: {first_line(error)}): "
        "restore it from a copy"
    )


def _choose_cameras(root: Path, asked: Sequence[str], known: dict[str, str], setting: str) -> dict[str, str]:
    """The cameras that are ``asked`` for, name -> feature, in their order; all of ``known`` if none is."""
    if not known:
        raise WorldloopError(f"dataset {root} has no camera: a world model needs at least one")
    names = [name_camera(camera) for camera in asked]
    require_cameras(root, names, known, setting)
    return {name: known[name] for name in names or known}


def require_cameras(root: Path, names: Sequence[str], known: dict[str, str], setting: str) -> None:
    """Raise `WorldloopError` unless ``names``, the value of ``setting``, are all cameras that are ``known``."""
    for name in names:
        if name not in known:
            raise WorldloopError(
                f"dataset {root} has the cameras {', '.join(known)}: {setting}: {name!r} is none of them"
            )
