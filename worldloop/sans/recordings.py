"""Turn a LeRobot dataset that was recorded elsewhere, e.g. on a real robot, into SANS episodes.

A recording has T = (rows - 1) usable actions: the last row's action has no frame after it. Every s-th row becomes a
stored frame, and so does the last row. An episode ends ``success_hold_frames`` stored frames after its success.
``sim_state`` has no columns. ``distances_m`` is NaN before success, ``margin_m`` is NaN in a failure, and no episode is
a near-success, because a recording does not contain distances.

Success comes from a boolean column, or from a file of labels (`worldloop.sans.labels`). The column is true on the row
whose action causes the success, like LeRobot's ``next.success``. If it is true only on the last row, the success counts
for the last usable action.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from worldloop.core.errors import WorldloopError
from worldloop.core.randomness import derive_seed
from worldloop.core.specs import CameraSpec, RobotSpec, SimulatorSpec, TaskSpec
from worldloop.core.success import require_success_frames
from worldloop.core.types import Episode, EpisodeMeta, Split
from worldloop.sans.labels import read_labels
from worldloop.sans.recorded_rows import (
    RecordedEpisodes,
    RowReader,
    find_bounds,
    list_cameras,
    name_camera,
    name_dimensions,
    naming_damage,
    read_episodes,
    read_meta,
    require_videos,
)

VARIANT = "recorded"
_MIN_WIDTH = 1e-3  # smallest range of an action, in its unit: one that never moved can still be normalised
_MIN_SIZE = 8  # pixels
_ENDS = ("done", "terminated", "truncated")  # columns that say that an episode ends, not that it succeeds
_MAX_SLUG = 40  # characters of an instruction that are used in its task's id


@dataclass(frozen=True)
class RecordingConfig:
    """Where a recording is, and how its episodes are read."""

    root: str = ""  # folder of the LeRobotDataset (v3.0)
    task: str = ""  # the task's id, or the first part of several tasks' ids; "": the folder's name
    cameras: tuple[str, ...] = ()  # image features, e.g. top or observation.images.top; (): all
    state_key: str = "observation.state"  # feature that becomes proprio
    action_key: str = "action"  # feature that holds the actions
    success_key: str = ""  # boolean column, e.g. next.success; "": the file `labels` says what succeeds
    labels: str = ""  # file written by `worldloop sans label`; not read if success_key is given
    image_size: int = 64  # pixels, height and width; the whole image is resized to it
    image_sizes: dict[str, int] = field(default_factory=dict)  # pixels, for single cameras, e.g. {wrist: 48}
    actions_per_frame: int = 5  # rows from one stored frame to the next
    success_hold_frames: int = 1  # stored frames that are kept after the first one that shows success
    success_confirm_frames: int = 1  # further frames that must agree before imagination declares a success
    validation_share: float = 0.15  # held-out share of each task's successes and of its failures, 0 to below 1

    def __post_init__(self) -> None:
        if min([self.image_size, *self.image_sizes.values()]) < _MIN_SIZE or self.actions_per_frame < 1:
            raise ValueError(
                f"recording.image_size and image_sizes must be >= {_MIN_SIZE} and recording.actions_per_frame >= 1"
            )
        require_success_frames("recording", self.success_hold_frames, self.success_confirm_frames)
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"recording.validation_share must be in [0, 1), got {self.validation_share}")


@dataclass(frozen=True)
class Recording:
    """The metadata of a recording of N episodes.

    ``cameras``: name -> feature, only the cameras in use; ``tasks``: N task ids, one per episode.
    """

    root: Path
    fps: float
    robot_type: str
    features: dict[str, dict[str, Any]]
    episodes: RecordedEpisodes
    tasks: tuple[str, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    cameras: dict[str, str]
    codebase_version: str


def open_recording(config: RecordingConfig) -> Recording:
    """Read the metadata only. Raises `WorldloopError` that names what is missing, and what there is instead."""
    if not config.root:
        raise WorldloopError("recording.root is not given: the folder of a LeRobotDataset")
    root = Path(config.root)
    with naming_damage(root):
        info, stats = (read_meta(root, name) for name in ("info.json", "stats.json"))
        version = str(info.get("codebase_version", "unknown"))
        if not version.startswith("v3."):
            raise WorldloopError(
                f"dataset {root} has LeRobot's format {version}, this worldloop reads v3.0: convert it with "
                f"python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=local/{root.resolve().name} "
                f"--root={root} --push-to-hub=false"
            )
        features = info["features"]
        for key in filter(None, (config.state_key, config.action_key, config.success_key)):
            if key not in features:
                raise WorldloopError(f"dataset {root} has no feature {key!r}; there are: {', '.join(sorted(features))}")
        if not {"min", "max"} <= set(stats.get(config.action_key, {})):
            raise WorldloopError(
                f"dataset {root} has no stats of {config.action_key!r} in meta/stats.json, which bound the actions"
            )
        cameras = _choose_cameras(config, list_cameras(features))
        episodes = read_episodes(root, info, tuple(cameras.values()))
        low, high = (np.ravel(stats[config.action_key][name]).astype(float) for name in ("min", "max"))
        if not np.isfinite([low, high]).all():  # an episode's last action leads nowhere, and is often nan
            low, high = find_bounds(root, config.action_key, episodes.rows)
        slack = np.maximum(_MIN_WIDTH - (high - low), 0) / 2
        task_of = name_tasks(config.task or root.resolve().name, episodes.instructions)
        return Recording(
            root=root,
            fps=float(info["fps"]),
            robot_type=str(info.get("robot_type") or "robot"),
            features=features,
            episodes=episodes,
            tasks=tuple(task_of[instruction] for instruction in episodes.instructions),
            action_low=tuple((low - slack).tolist()),
            action_high=tuple((high + slack).tolist()),
            cameras=cameras,
            codebase_version=version,
        )


def _choose_cameras(config: RecordingConfig, known: dict[str, str]) -> dict[str, str]:
    """The cameras that ``config`` uses, name -> feature, in its order; all of ``known`` if it names none."""
    chosen = [name_camera(camera) for camera in config.cameras] or list(known)
    for key, names in (("cameras", chosen), ("image_sizes", list(config.image_sizes))):
        for name in names:
            if name not in known:
                raise WorldloopError(
                    f"dataset {config.root} has the cameras {', '.join(known) or 'none'}: recording.{key}: {name!r} is "
                    "none of them"
                )
    if not chosen:
        raise WorldloopError(f"dataset {config.root} has no camera: a world model needs at least one")
    return {name: known[name] for name in chosen}


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
    """The spec of the recording. Its action bounds are the smallest and the largest recorded values."""
    recording = open_recording(config)
    with naming_damage(recording.root):
        sizes = {name: config.image_sizes.get(name, config.image_size) for name in recording.cameras}
        return SimulatorSpec(
            robot=RobotSpec(
                name=recording.robot_type,
                proprio_names=name_dimensions(recording.features[config.state_key], "state"),
                action_names=name_dimensions(recording.features[config.action_key], "action"),
                action_low=recording.action_low,
                action_high=recording.action_high,
                control_mode="recorded",
                hz=recording.fps,
                cameras=tuple(CameraSpec(name, size, size) for name, size in sizes.items()),
            ),
            tasks=tuple(_describe_task(recording, task) for task in dict.fromkeys(recording.tasks)),
            actions_per_frame=config.actions_per_frame,
            simulator_version=f"{recording.robot_type}, LeRobot {recording.codebase_version}",
            success_hold_frames=config.success_hold_frames,
            success_confirm_frames=config.success_confirm_frames,
        )


def _describe_task(recording: Recording, task: str) -> TaskSpec:
    """The spec of ``task``. Its time limit is the length of its longest episode."""
    numbers = [number for number, name in enumerate(recording.tasks) if name == task]
    rows = recording.episodes.rows[numbers]
    return TaskSpec(
        id=task,
        instructions=(recording.episodes.instructions[numbers[0]],),
        success_radius_m=0.0,
        max_episode_steps=max(int((rows[:, 1] - rows[:, 0]).max()) - 1, 1),
    )


def count_episodes(config: RecordingConfig) -> int:
    """Number of episodes in the recording."""
    return len(open_recording(config).episodes)


def check_recording(config: RecordingConfig) -> Recording:
    """Like `open_recording`; also raises `WorldloopError` if a video is missing or nothing says what succeeds."""
    recording = open_recording(config)
    require_videos(recording.root, recording.episodes)
    if config.success_key and config.labels:
        raise WorldloopError(
            f"recording.success_key {config.success_key!r} and recording.labels {config.labels} both say what "
            "succeeds: give one of them"
        )
    if not config.success_key and not config.labels:
        with naming_damage(recording.root):
            boolean = [
                key
                for key, feature in recording.features.items()
                if feature["dtype"] == "bool" and not key.endswith(_ENDS)
            ]
        raise WorldloopError(
            f"nothing says which episodes of {recording.root} succeed: give recording.success_key (boolean "
            f"columns: {', '.join(boolean) or 'none'}), or label them: worldloop sans label {recording.root} LABELS"
        )
    if not config.success_key:
        read_labels(Path(config.labels), len(recording.episodes))
    return recording


def read_recording(config: RecordingConfig, spec: SimulatorSpec) -> Iterator[Episode]:
    """The recording's labelled episodes, in order. Episodes without a label or with fewer than two rows are left out.

    A share of each task's successes and failures is held out for validation, chosen by a hash of the episode's id.
    """
    recording = check_recording(config)
    reader = RowReader(recording.root, recording.episodes)
    with naming_damage(recording.root):
        first_success = _find_success(config, recording, reader)
    is_success = {number: step is not None for number, step in first_success.items()}
    splits = _split(recording.tasks, config.validation_share, is_success)
    for number, step in first_success.items():
        with naming_damage(recording.root):
            begin, end = recording.episodes.rows[number].tolist()
            columns = reader.numbers([config.state_key, config.action_key], begin, end)
            state, action = (
                columns[key].reshape(end - begin, -1).astype(np.float32)
                for key in (config.state_key, config.action_key)
            )
            _require_finite(state, spec.robot.proprio_names, config.state_key, number)
            _require_finite(action[:-1], spec.robot.action_names, config.action_key, number)  # the last leads nowhere
            episode = _make_episode(number, state, action, step, splits[number], reader, recording, spec)
        yield episode


def read_previews(config: RecordingConfig, size: int) -> Iterator[np.ndarray]:
    """First, middle and last picture of every episode, u8 [3 * cameras, size, size, 3], one camera after the other."""
    recording = open_recording(config)
    require_videos(recording.root, recording.episodes)
    reader = RowReader(recording.root, recording.episodes)
    for number, (begin, end) in enumerate(recording.episodes.rows.tolist()):
        rows = np.array([0, (end - begin - 1) // 2, end - begin - 1])
        with naming_damage(recording.root):
            pictures = [reader.pictures(camera, number, rows, size) for camera in recording.cameras.values()]
        yield np.concatenate(pictures)


def _make_episode(
    number: int,
    state: np.ndarray,
    action: np.ndarray,
    first_success: int | None,
    split: Split,
    reader: RowReader,
    recording: Recording,
    spec: SimulatorSpec,
) -> Episode:
    """The episode of ``state`` f32 [T + 1, S] and ``action`` f32 [T + 1, A].

    ``first_success`` is the index of the action that causes the success, ``None`` for a failure.
    """
    s, T = spec.actions_per_frame, len(state) - 1
    F = -(-T // s)
    if first_success is not None:
        F = min(F, first_success // s + 1 + spec.success_hold_frames)
        T = min(T, F * s)
    row = np.minimum(np.arange(F + 1) * s, T)
    step = np.arange(F * s).reshape(F, s)
    actions = action[np.minimum(step, T - 1)].astype(np.float32)  # past the end the last one repeats: 0 may be a target
    began = len(step.reshape(-1)) if first_success is None else first_success
    success = step >= began
    is_success = first_success is not None
    task = recording.tasks[number]
    return Episode(
        meta=EpisodeMeta(
            task=task,
            instruction=recording.episodes.instructions[number],
            initial_state_id=_episode_id(task, number),
            split=split,
            outcome="success" if is_success else "failure",
            margin_m=0.0 if is_success else float("nan"),
            source="recorded",
            variant=VARIANT,
            iteration=0,
            control_mode=spec.robot.control_mode,
            hz=spec.robot.hz,
            actions_per_frame=s,
            simulator_version=spec.simulator_version,
            policy_version="",
        ),
        frames={
            camera.name: reader.pictures(recording.cameras[camera.name], number, row, camera.height)
            for camera in spec.robot.cameras
        },
        proprio=state[row],
        actions=actions,
        valid=(step < T) & (step <= began),
        rewards=(step == began).astype(np.float32),
        success=success,
        distances_m=np.where(success, 0.0, np.nan).astype(np.float32),
        sim_state=np.zeros((F + 1, 0), dtype=np.float32),
        terminated=is_success,
        truncated=not is_success,
    )


def _find_success(config: RecordingConfig, recording: Recording, reader: RowReader) -> dict[int, int | None]:
    """Number of each labelled episode -> index of the action that causes the success, ``None`` for a failure."""
    rows = recording.episodes.rows
    last_action = rows[:, 1] - rows[:, 0] - 2
    usable = [i for i in range(len(last_action)) if last_action[i] >= 0]
    if config.success_key:
        key = config.success_key
        flags = [_read_flags(key, reader, i, *rows[i].tolist()) for i in usable]
        return {
            i: min(int(flag.argmax()), int(last_action[i])) if flag.any() else None
            for i, flag in zip(usable, flags, strict=True)
        }
    labels = read_labels(Path(config.labels), len(rows))
    s, shown = config.actions_per_frame, config.success_hold_frames
    found: dict[int, int | None] = {}
    for i in (i for i in usable if i in labels):
        num_frames = int(last_action[i]) // s + 1
        first_frame = max(num_frames - 1 - shown, 0)  # the frame step that leads to the first frame to show success
        found[i] = min((first_frame + 1) * s - 1, int(last_action[i])) if labels[i] else None
    return found


def _read_flags(key: str, reader: RowReader, episode: int, begin: int, end: int) -> np.ndarray:
    """bool [end - begin], from a column of booleans, or of 0 and 1."""
    values = np.ravel(reader.numbers([key], begin, end)[key])
    if values.dtype.kind not in "biuf" or not np.isin(values, (0, 1)).all():
        raise WorldloopError(
            f"recording.success_key {key!r} holds {values[~np.isin(values, (0, 1))][:1].tolist()[0]!r} in episode "
            f"{episode}, allowed: true and false, or 0 and 1"
        )
    return values.astype(bool)


def _require_finite(values: np.ndarray, names: Sequence[str], key: str, episode: int) -> None:
    """Raise `WorldloopError` naming the first value f32 [T, D] that is nan or infinite."""
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0].tolist()
        raise WorldloopError(
            f"{key!r} is {values[row, column]} in row {row} of episode {episode}, dimension {names[column]!r}: mend "
            "the recording, or leave that episode out"
        )


def _split(tasks: Sequence[str], validation_share: float, is_success: dict[int, bool]) -> dict[int, Split]:
    """Episode -> its split, so that ``validation_share`` of each task's successes and of its failures is held out."""
    splits: dict[int, Split] = dict.fromkeys(is_success, "train")
    alike: dict[tuple[str, bool], list[int]] = {}
    for number, outcome in is_success.items():
        alike.setdefault((tasks[number], outcome), []).append(number)
    for (task, _), numbers in alike.items():
        numbers.sort(key=lambda number: derive_seed("split", _episode_id(task, number)))
        for number in numbers[: round(len(numbers) * validation_share)]:
            splits[number] = "validation"
    return splits


def _episode_id(task: str, number: int) -> str:
    return f"{task}/recorded/{number:06d}"
