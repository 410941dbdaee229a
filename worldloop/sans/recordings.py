"""Open a LeRobot dataset that was recorded elsewhere, e.g. on a real robot, as a source of SANS episodes.

A recording has T = (rows - 1) k usable actions, with k = ``actions_per_row``: those of the last row have no frame after
them. After every s-th action there is a stored frame, and so there is at the last row. An episode ends
``success_hold_frames`` stored frames after its success.

Success comes from a boolean column, or from a file of labels (`worldloop.sans.labels`). The column is true on the row
whose action causes the success, like LeRobot's ``next.success``. If it is true only on the last row, the success counts
for the last usable action.

All numbers that the episodes will hold are read and checked before a run starts. The bounds of actions come from the
rows that are used, not from the dataset's own statistics, which may be older than its rows.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from worldloop.core.errors import WorldloopError
from worldloop.core.specs import CameraSpec, RobotSpec, SimulatorSpec, TaskSpec
from worldloop.core.success import require_success_frames
from worldloop.sans.labels import Labels, parse_numbers, read_labels
from worldloop.sans.recorded_dataset import CAMERAS, RecordedDataset, open_dataset, refuse_meta, require_cameras
from worldloop.sans.recorded_features import (
    list_cameras,
    name_actions,
    name_camera,
    name_dimensions,
    require_numeric,
)
from worldloop.sans.recorded_numbers import (
    EpisodeNumbers,
    UsedPart,
    choose_part,
    find_bounds,
    find_outliers,
    place_labelled_success,
    read_numbers,
    require_finite,
)
from worldloop.sans.recorded_rows import RowReader, require_videos

_MIN_SIZE = 8  # pixels
_ENDS = ("done", "terminated", "truncated")  # columns that say that an episode ends, not that it succeeds
_MAX_SLUG = 40  # characters of an instruction that are used in its task's id


@dataclass(frozen=True)
class RecordingConfig:
    """Where a recording is, and how its episodes are read."""

    root: str = ""  # folder of the LeRobotDataset (v3.0)
    task: str = ""  # the task's id, or the first part of several tasks' ids; "": the folder's name
    cameras: tuple[str, ...] = ()  # image features, e.g. top or observation.images.top; (): all
    camera_names: dict[str, str] = field(default_factory=dict)  # camera -> its name in the run, e.g. {top: base_camera}
    state_key: str = "observation.state"  # feature that becomes proprio; elsewhere state, observation.qpos ...
    action_key: str = "action"  # feature that holds the actions; elsewhere actions ...
    control_mode: str = "recorded"  # what actions are: targets to hold, or with delta or vel in its name relative ones
    state_names: tuple[str, ...] = ()  # names of the state's dimensions, in their order; (): the dataset's
    action_names: tuple[str, ...] = ()  # names of an action's dimensions, in their order; (): the dataset's
    actions_per_row: int = 1  # actions side by side in a row; above 1 where `worldloop sans merge` wrote the dataset
    hz: float = 0.0  # actions a second; 0: the dataset's fps times actions_per_row
    success_key: str = ""  # boolean column, e.g. next.success; "": the file `labels` says what succeeds
    labels: str = ""  # file written by `worldloop sans label`; not read if success_key is given
    all_succeed: bool = False  # every episode succeeds at its end; instead of success_key and labels
    skip_episodes: str = ""  # episodes that are left out, e.g. 3,7-9
    tolerance_s: float = 1e-4  # largest difference between the times of a row and of its video frame, in seconds
    image_size: int = 64  # pixels, height and width; the whole image is resized to it
    image_sizes: dict[str, int] = field(default_factory=dict)  # pixels, for single cameras, e.g. {wrist: 48}
    actions_per_frame: int = 5  # actions from one stored frame to the next
    success_hold_frames: int = 1  # stored frames that are kept after the first one that shows success
    success_confirm_frames: int = 1  # further frames that must agree before imagination declares a success
    max_episode_steps: int = 0  # without a simulator: least time limit of a task, in actions; 0: its longest episode
    validation_share: float = 0.15  # held-out share of each task's successes and of its failures, 0 to below 1
    task_of: dict[str, str] = field(default_factory=dict)  # beside a simulator: instruction -> task id
    skip_other_tasks: bool = False  # beside a simulator: leave out episodes of tasks that it does not run
    clip_actions: bool = False  # beside a simulator: clip actions to its bounds, as its controller would

    def __post_init__(self) -> None:
        if min([self.image_size, *self.image_sizes.values()]) < _MIN_SIZE or self.actions_per_frame < 1:
            raise ValueError(
                f"recording.image_size and image_sizes must be >= {_MIN_SIZE} and recording.actions_per_frame >= 1"
            )
        require_success_frames("recording", self.success_hold_frames, self.success_confirm_frames)
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"recording.validation_share must be in [0, 1), got {self.validation_share}")
        if not self.tolerance_s >= 0:
            raise ValueError(f"recording.tolerance_s must be at least 0, got {self.tolerance_s}")
        if self.actions_per_row < 1 or not self.hz >= 0:
            raise ValueError("recording.actions_per_row must be at least 1, and recording.hz at least 0")


@dataclass(frozen=True)
class Recording:
    """A dataset as a source of episodes.

    - ``tasks``: N task ids, one per episode of the dataset
    - ``numbers``, ``used``: number of each episode that is used -> its states and actions, and what is used of them
    - ``action_low``, ``action_high``: the lowest and the highest used value of each dimension of the actions
    - ``doubts``: sentences that the user should read; ``outliers``: of them those about bounds that follow the actions
    - ``fingerprint``: hash of all numbers that a run reads, and of the names and sizes of the dataset's files
    """

    dataset: RecordedDataset
    reader: RowReader
    tasks: tuple[str, ...]
    numbers: dict[int, EpisodeNumbers]
    used: dict[int, UsedPart]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    doubts: tuple[str, ...]
    outliers: tuple[str, ...]
    fingerprint: str


def open_recording(config: RecordingConfig) -> Recording:
    """Read and check all numbers that the episodes will hold; decodes no picture.

    Raises `WorldloopError` that names what is missing, contradictory or not finite, and the setting or the remedy.
    """
    dataset = open_dataset(config.root, config.cameras)
    try:
        return _open(config, _rename_cameras(dataset, config.camera_names))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # of shapes and names
        raise refuse_meta(dataset.root, error) from error


def _open(config: RecordingConfig, dataset: RecordedDataset) -> Recording:
    keys = {"state_key": config.state_key, "action_key": config.action_key, "success_key": config.success_key}
    require_cameras(dataset.root, list(config.image_sizes), list_cameras(dataset.features), "recording.image_sizes")
    for setting, key in keys.items():
        if key:
            require_numeric(dataset.root, dataset.features, setting, key)
    _require_outcomes(config, dataset)
    per_row = config.actions_per_row
    if config.actions_per_frame % per_row:
        raise WorldloopError(
            f"actions_per_frame {config.actions_per_frame} is no multiple of recording.actions_per_row {per_row}, so "
            "that a stored frame would lie between two rows: change one of them"
        )
    reader = dataset.make_reader(config.tolerance_s)
    names = dict(zip((config.state_key, config.action_key), name_numbers(config, dataset.features), strict=True))
    dims = (len(names[config.state_key]), len(names[config.action_key]) * per_row)
    skipped = parse_numbers(config.skip_episodes, len(dataset.episodes))
    numbers = {
        number: read_numbers(reader, number, dims, **keys, actions_per_row=per_row)
        for number in range(len(dataset.episodes))
        if number not in skipped
    }
    labels = _read_labels(config, dataset)
    used = _choose_parts(config, dataset, numbers, labels.success)
    for number, part in used.items():
        require_finite(numbers[number], part, config.actions_per_frame, names, number)
    unsigned = [] if labels.dataset else [f"labels {config.labels} do not say of which dataset they are"]
    actions = {number: numbers[number].action[: part.num_actions] for number, part in used.items()}
    low, high = find_bounds(list(actions.values()))
    task_of = name_tasks(config.task or dataset.root.resolve().name, dataset.episodes.instructions)
    return Recording(
        dataset=dataset,
        reader=reader,
        tasks=tuple(task_of[instruction] for instruction in dataset.episodes.instructions),
        numbers={number: numbers[number] for number in used},
        used=used,
        action_low=tuple(low.tolist()),
        action_high=tuple(high.tolist()),
        doubts=(*dataset.found.doubts, *unsigned),
        outliers=tuple(find_outliers(actions, names[config.action_key], per_row)),
        fingerprint=_hash_recording(dataset, numbers),
    )


def _require_outcomes(config: RecordingConfig, dataset: RecordedDataset) -> None:
    """Raise `WorldloopError` unless one setting, and only one, says what succeeds."""
    given = [key for key in ("success_key", "labels", "all_succeed") if getattr(config, key)]
    if len(given) > 1:
        each = " and ".join(f"recording.{key}={getattr(config, key)}" for key in given)
        raise WorldloopError(f"{each} say what succeeds: give one of them")
    if not given:
        boolean = [
            key for key, feature in dataset.features.items() if feature["dtype"] == "bool" and not key.endswith(_ENDS)
        ]
        raise WorldloopError(
            f"nothing says which episodes of {dataset.root} succeed: give recording.success_key (boolean "
            f"columns: {', '.join(boolean) or 'none'}), or label them: worldloop sans label {dataset.root} LABELS; if "
            "all do, set recording.all_succeed=true"
        )


def _read_labels(config: RecordingConfig, dataset: RecordedDataset) -> Labels:
    """Labels of the dataset; without any if a column tells what succeeds."""
    if config.success_key:
        return Labels({}, dataset.found.fingerprint)
    if config.all_succeed:
        return Labels(dict.fromkeys(range(len(dataset.episodes)), True), dataset.found.fingerprint)
    return read_labels(Path(config.labels), len(dataset.episodes), dataset.found.fingerprint)


def _choose_parts(
    config: RecordingConfig, dataset: RecordedDataset, numbers: dict[int, EpisodeNumbers], labels: dict[int, bool]
) -> dict[int, UsedPart]:
    """Number of each episode in ``numbers`` that has two rows and a known outcome -> what is used of it."""
    s, hold, per_row = config.actions_per_frame, config.success_hold_frames, config.actions_per_row
    used: dict[int, UsedPart] = {}
    for number, own in numbers.items():
        num_rows = len(own.state)
        if num_rows < 2 or (own.success is None and number not in labels):
            continue
        first = None
        if own.success is not None and own.success.any():
            first = min(int(own.success.argmax()), (num_rows - 1) * per_row - 1)
        elif own.success is None and labels[number]:
            first = place_labelled_success(num_rows, s, hold, per_row)
        used[number] = choose_part(num_rows, first, s, hold, per_row)
    if not used:
        remedy = (
            "each has a single row, or is in recording.skip_episodes"
            if config.success_key or labels
            else f"none has a label: worldloop sans label {dataset.root} {config.labels} ..."
        )
        raise WorldloopError(f"no episode of {dataset.root} can be used: {remedy}")
    return used


def _hash_recording(dataset: RecordedDataset, numbers: dict[int, EpisodeNumbers]) -> str:
    described: dict[str, Any] = {"episodes": dataset.found.fingerprint, "cameras": list(dataset.cameras.values())}
    described |= {key: dataset.info[key] for key in ("fps", "features")}
    videos = {part.path for parts in dataset.episodes.videos.values() for part in parts}
    files = [*(file.path for file in dataset.found.table.files), *sorted(videos)]
    described["files"] = [f"{p.name} {p.stat().st_size}" for p in files if p.is_file()]
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for number, own in numbers.items():
        digest.update(f"{number} {dataset.episodes.instructions[number]}".encode())
        for array in (dataset.episodes.times_s[number], own.state, own.action, own.success):
            digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def name_tasks(name: str, instructions: Sequence[str]) -> dict[str, str]:
    """Instruction -> id of its task: ``name`` if all are the same, else ``name/SLUG``, e.g. ``arm/open-the-door``.

    Different instructions get different ids. They are in the order of their first appearance.
    """
    distinct = list(dict.fromkeys(instructions))
    if len(distinct) == 1:
        return {distinct[0]: name}
    tasks: dict[str, str] = {}
    for instruction in distinct:
        slug = re.sub(r"\W+", "-", instruction.lower())[:_MAX_SLUG].strip("-") or "unnamed"
        number, task = 1, f"{name}/{slug}"
        while task in tasks.values():
            number += 1
            task = f"{name}/{slug}-{number}"
        tasks[instruction] = task
    return tasks


def recording_spec(config: RecordingConfig) -> SimulatorSpec:
    """The spec of the recording. Its action bounds are the smallest and the largest used values."""
    return make_spec(config, open_recording(config))


def make_spec(config: RecordingConfig, recording: Recording) -> SimulatorSpec:
    """The spec of ``recording``, which was opened with ``config``."""
    dataset = recording.dataset
    robot_type = str(dataset.info.get("robot_type") or "robot")
    sizes = {name: config.image_sizes.get(name_camera(key), config.image_size) for name, key in dataset.cameras.items()}
    proprio_names, action_names = name_numbers(config, dataset.features)
    return SimulatorSpec(
        robot=RobotSpec(
            name=robot_type,
            proprio_names=proprio_names,
            action_names=action_names,
            action_low=recording.action_low,
            action_high=recording.action_high,
            control_mode=config.control_mode,
            hz=find_hz(config, dataset.info),
            cameras=tuple(CameraSpec(name, size, size) for name, size in sizes.items()),
        ),
        tasks=tuple(_describe_task(recording, task, config) for task in dict.fromkeys(recording.tasks)),
        actions_per_frame=config.actions_per_frame,
        simulator_version=name_version(dataset.info),
        success_hold_frames=config.success_hold_frames,
        success_confirm_frames=config.success_confirm_frames,
    )


def name_version(info: dict[str, Any]) -> str:
    """What stands for the simulator's version, e.g. ``so100, LeRobot v3.0``."""
    return f"{info.get('robot_type') or 'robot'}, LeRobot {info['codebase_version']}"


def find_hz(config: RecordingConfig, info: dict[str, Any]) -> float:
    """The number of actions a second."""
    return config.hz or float(info["fps"]) * config.actions_per_row


def name_numbers(
    config: RecordingConfig, features: dict[str, dict[str, Any]]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the dimensions of state and of one action; raises `WorldloopError` for a wrong number of names."""
    known = (
        name_dimensions(features[config.state_key], "state"),
        name_actions(features[config.action_key], config.actions_per_row),
    )
    for setting, names, own in zip(("state", "action"), (config.state_names, config.action_names), known, strict=True):
        if names and len(names) != len(own):
            raise WorldloopError(
                f"recording.{setting}_names are {len(names)}, and recording.{setting}_key has {len(own)} dimensions: "
                f"{', '.join(own)}"
            )
    return config.state_names or known[0], config.action_names or known[1]


def _rename_cameras(dataset: RecordedDataset, names: dict[str, str]) -> RecordedDataset:
    """``dataset`` with its cameras called as in ``names``, camera -> name; the others keep theirs."""
    setting = "recording.camera_names"
    require_cameras(dataset.root, list(names), list_cameras(dataset.features), setting)
    cameras = {names.get(name, name): key for name, key in dataset.cameras.items()}
    if len(cameras) < len(dataset.cameras):
        raise WorldloopError(
            f"{setting} gives two of {', '.join(dataset.cameras)} one name: leave one out or rename it"
        )
    return replace(dataset, cameras=cameras)


def _describe_task(recording: Recording, task: str, config: RecordingConfig) -> TaskSpec:
    """The spec of ``task``. Its time limit is the length of its longest episode, or ``max_episode_steps`` if more."""
    episodes = recording.dataset.episodes
    numbers = [number for number, name in enumerate(recording.tasks) if name == task]
    longest = max(max(len(episodes.rows[number]) for number in numbers) - 1, 1) * config.actions_per_row
    return TaskSpec(
        id=task,
        instructions=(episodes.instructions[numbers[0]],),
        success_radius_m=0.0,
        max_episode_steps=max(longest, config.max_episode_steps),
    )


def check_recording(config: RecordingConfig) -> Recording:
    """Like `open_recording`; also raises `WorldloopError` if a video is missing."""
    recording = open_recording(config)
    require_videos(recording.dataset.root, recording.dataset.episodes, CAMERAS)
    return recording
