"""Episodes of a LeRobot dataset that was recorded elsewhere, on a real robot say, as SANS episodes.

A recording has T = (rows - 1) actions that lead somewhere: the last row's action has no frame after it. Every s-th row
becomes a stored frame, and the last row the last one. What a recording does not tell stays open: ``sim_state`` has no
columns, ``distances_m`` and ``margin_m`` are NaN before success, and no episode is a near-success.

Success comes from a boolean column, or from a file of labels (`worldloop.sans.labels`). A column is true on the row
whose action brings success about, LeRobot's ``next.success``; true on the last row alone, it counts for the last action
that leads somewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldloop.core.errors import WorldloopError, first_line
from worldloop.core.images import resize
from worldloop.core.randomness import derive_seed
from worldloop.core.specs import SimulatorSpec
from worldloop.core.success import require_success_frames
from worldloop.core.types import Episode, EpisodeMeta, Split
from worldloop.sans.labels import read_labels
from worldloop.sans.lerobot_format import IMAGE_PREFIX, require_data_extra

VARIANT = "recorded"
_MIN_WIDTH = 1e-3  # of an action's range, so that an action that was never moved can still be normalised


@dataclass(frozen=True)
class RecordingConfig:
    root: str = ""  # folder of the LeRobotDataset (v3.0)
    task: str = ""  # what the world model's checkpoint calls the task; "" takes the folder's name
    camera: str = ""  # image feature, e.g. observation.images.top; "" where there is only one
    state_key: str = "observation.state"  # what becomes proprio
    action_key: str = "action"
    success_key: str = ""  # boolean column, e.g. next.success
    labels: str = ""  # file written by `worldloop sans label`, where there is no such column
    image_size: int = 64  # pixels, height and width; the whole picture is scaled to it
    actions_per_frame: int = 5  # rows between two stored frames
    success_hold_frames: int = 1  # stored frames that still show success after the first that does
    success_confirm_frames: int = 1  # further frames that must agree before imagination declares a success
    validation_share: float = 0.15  # share of the episodes of each outcome that is held out

    def __post_init__(self) -> None:
        if self.image_size < 8 or self.actions_per_frame < 1:
            raise ValueError("recording.image_size must be >= 8 and recording.actions_per_frame >= 1")
        require_success_frames("recording", self.success_hold_frames, self.success_confirm_frames)
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"recording.validation_share must be in [0, 1), got {self.validation_share}")


@dataclass(frozen=True)
class Recording:
    """The metadata of a recording: ``rows`` int64 [N, 2] are the first row and the one after the last, by episode."""

    root: Path
    fps: float
    robot_type: str
    features: dict[str, dict[str, Any]]
    rows: np.ndarray
    instructions: tuple[str, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    camera: str
    codebase_version: str


def open_recording(config: RecordingConfig) -> Recording:
    """Read the metadata alone; raises `WorldloopError` naming what is missing and what there is."""
    if not config.root:
        raise WorldloopError("recording.root is not given: the folder of a LeRobotDataset")
    root = Path(config.root)
    with _naming_damage(root):
        info, stats = (_read_meta(root, name) for name in ("info.json", "stats.json"))
        version = str(info.get("codebase_version", "unknown"))
        if not version.startswith("v3."):
            raise WorldloopError(
                f"dataset {root} has LeRobot's format {version}, this worldloop reads v3.0: convert it with "
                "python -m lerobot.scripts.convert_dataset_v21_to_v30"
            )
        features = info["features"]
        for key in filter(None, (config.state_key, config.action_key, config.success_key)):
            if key not in features:
                raise WorldloopError(f"dataset {root} has no feature {key!r}; there are: {', '.join(sorted(features))}")
        if not {"min", "max"} <= set(stats.get(config.action_key, {})):
            raise WorldloopError(
                f"dataset {root} has no stats of {config.action_key!r} in meta/stats.json, which bound the actions"
            )
        low, high = (np.ravel(stats[config.action_key][name]).astype(float) for name in ("min", "max"))
        begin, end, instructions = _read_episodes(root)
        slack = np.maximum(_MIN_WIDTH - (high - low), 0) / 2
        return Recording(
            root=root,
            fps=float(info["fps"]),
            robot_type=str(info.get("robot_type") or "robot"),
            features=features,
            rows=np.stack([begin, end], axis=1),
            instructions=instructions,
            action_low=tuple((low - slack).tolist()),
            action_high=tuple((high + slack).tolist()),
            camera=_choose_camera(config, features),
            codebase_version=version,
        )


def recording_spec(config: RecordingConfig) -> SimulatorSpec:
    """What a world model of the recording must know; actions are bounded by the smallest and largest recorded."""
    recording = open_recording(config)
    with _naming_damage(recording.root):
        return SimulatorSpec(
            task=config.task or recording.root.resolve().name,
            instruction=recording.instructions[0],
            image_size=config.image_size,
            proprio_names=_dimension_names(recording.features[config.state_key], "state"),
            action_names=_dimension_names(recording.features[config.action_key], "action"),
            action_low=recording.action_low,
            action_high=recording.action_high,
            hz=recording.fps,
            actions_per_frame=config.actions_per_frame,
            max_episode_steps=int((recording.rows[:, 1] - recording.rows[:, 0]).max()) - 1,
            success_radius_m=0.0,
            control_mode="recorded",
            camera=recording.camera.removeprefix(IMAGE_PREFIX),
            simulator_version=f"{recording.robot_type}, LeRobot {recording.codebase_version}",
            success_hold_frames=config.success_hold_frames,
            success_confirm_frames=config.success_confirm_frames,
        )


def count_episodes(config: RecordingConfig) -> int:
    """Episodes of the recording."""
    return len(open_recording(config).rows)


def check_recording(config: RecordingConfig) -> Recording:
    """`open_recording`, and `WorldloopError` too where nothing says what succeeds; reads no frame."""
    recording = open_recording(config)
    if not config.success_key and not config.labels:
        with _naming_damage(recording.root):
            boolean = [key for key, feature in recording.features.items() if feature["dtype"] == "bool"]
        raise WorldloopError(
            f"nothing says which episodes of {recording.root} succeed: give recording.success_key (boolean "
            f"columns: {', '.join(boolean) or 'none'}), or label them: worldloop sans label {recording.root} LABELS"
        )
    if not config.success_key:
        read_labels(Path(config.labels), len(recording.rows))
    return recording


def read_recording(config: RecordingConfig, spec: SimulatorSpec) -> Iterator[Episode]:
    """The recording's labelled episodes in order; those without a label, or of one row, are left out.

    A share of each outcome is held out for validation, by hash of the episode's id.
    """
    recording = check_recording(config)
    dataset = _open_dataset(recording)
    keys = [config.state_key, config.action_key, *([config.success_key] if config.success_key else [])]
    with _naming_damage(recording.root):
        columns = dataset.hf_dataset.with_format("numpy", columns=keys)
        first_success = _find_success(config, recording, columns)
    is_success = {number: step is not None for number, step in first_success.items()}
    splits = _split(spec.task, config.validation_share, is_success)
    for number, step in first_success.items():
        begin, end = recording.rows[number]
        with _naming_damage(recording.root):
            rows = columns[int(begin) : int(end)]
            state, action = (np.stack(list(rows[key])).reshape(end - begin, -1).astype(np.float32) for key in keys[:2])
            episode = _make_episode(number, state, action, step, splits[number], dataset, recording, spec)
        yield episode


def read_previews(config: RecordingConfig, size: int) -> Iterator[np.ndarray]:
    """First, middle and last picture of every episode, u8 [3, size, size, 3]: what a person judges success by."""
    recording = open_recording(config)
    dataset = _open_dataset(recording)
    for begin, end in recording.rows.tolist():
        rows = np.array([begin, (begin + end - 1) // 2, end - 1])
        with _naming_damage(recording.root):
            pictures = _read_pictures(dataset, recording.camera, rows, size)
        yield pictures


@contextmanager
def _naming_damage(root: Path) -> Iterator[None]:
    """Within it, whatever the readers of a LeRobot dataset raise at one that is broken becomes one `WorldloopError`."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise WorldloopError(
            f"dataset {root} is damaged, or was not finalized ({type(error).__name__}: {first_line(error)}): "
            "restore it from a copy, or record it again"
        ) from error


def _make_episode(
    number: int,
    state: np.ndarray,
    action: np.ndarray,
    first_success: int | None,
    split: Split,
    dataset: Any,
    recording: Recording,
    spec: SimulatorSpec,
) -> Episode:
    """``state`` f32 [T + 1, S] and ``action`` f32 [T + 1, A]; ``first_success`` is the action that brought it about."""
    s, T = spec.actions_per_frame, len(state) - 1
    F = -(-T // s)
    if first_success is not None:
        F = min(F, first_success // s + 1 + spec.success_hold_frames)
        T = min(T, F * s)
    row = np.minimum(np.arange(F + 1) * s, T)
    step = np.arange(F * s).reshape(F, s)
    actions = action[np.minimum(step, T - 1)].astype(np.float32)  # held where there are none: 0 may be a place to go
    began = len(step.reshape(-1)) if first_success is None else first_success
    success = step >= began
    pictures = _read_pictures(dataset, recording.camera, recording.rows[number, 0] + row, spec.image_size)
    is_success = first_success is not None
    return Episode(
        meta=EpisodeMeta(
            task=spec.task,
            instruction=recording.instructions[number],
            initial_state_id=_episode_id(spec.task, number),
            split=split,
            outcome="success" if is_success else "failure",
            margin_m=0.0 if is_success else float("nan"),
            source="recorded",
            variant=VARIANT,
            iteration=0,
            control_mode=spec.control_mode,
            hz=spec.hz,
            actions_per_frame=s,
            simulator_version=spec.simulator_version,
            policy_version="",
        ),
        frames={spec.camera: pictures},
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


def _read_pictures(dataset: Any, camera: str, rows: np.ndarray, size: int) -> np.ndarray:
    """u8 [n, size, size, 3]. LeRobot decodes a video to u8 where asked to, images always to floats in [0, 1]."""
    pictures = torch.stack([dataset[int(row)][camera] for row in rows])
    if pictures.is_floating_point():
        pictures = (pictures * 255).round().to(torch.uint8)
    return resize(pictures.movedim(1, -1), size).numpy()


def _find_success(config: RecordingConfig, recording: Recording, columns: Any) -> dict[int, int | None]:
    """Labelled episode -> the action that brought success about, or ``None`` for a failure."""
    last_action = recording.rows[:, 1] - recording.rows[:, 0] - 2
    usable = [i for i in range(len(last_action)) if last_action[i] >= 0]
    if config.success_key:
        flags = [np.ravel(columns[int(b) : int(e)][config.success_key]) > 0.5 for b, e in recording.rows]
        return {i: min(int(flags[i].argmax()), int(last_action[i])) if flags[i].any() else None for i in usable}
    labels = read_labels(Path(config.labels), len(recording.rows))
    s, shown = config.actions_per_frame, config.success_hold_frames
    found: dict[int, int | None] = {}
    for i in (i for i in usable if i in labels):
        num_frames = int(last_action[i]) // s + 1
        first_frame = max(num_frames - 1 - shown, 0)  # the frame step that leads to the first frame to show success
        found[i] = min((first_frame + 1) * s - 1, int(last_action[i])) if labels[i] else None
    return found


def _split(task: str, validation_share: float, is_success: dict[int, bool]) -> dict[int, Split]:
    splits: dict[int, Split] = dict.fromkeys(is_success, "train")
    for outcome in (True, False):
        numbers = [number for number, value in is_success.items() if value == outcome]
        numbers.sort(key=lambda number: derive_seed("split", _episode_id(task, number)))
        held_out = round(len(numbers) * validation_share)
        for number in numbers[:held_out]:
            splits[number] = "validation"
    return splits


def _episode_id(task: str, number: int) -> str:
    return f"{task}/recorded/{number:06d}"


def _read_meta(root: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads((root / "meta" / name).read_bytes())
    except (OSError, ValueError) as error:
        raise WorldloopError(f"{root} is no LeRobotDataset: its meta/{name} cannot be read ({error})") from error
    return dict(value)


def _read_episodes(root: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    require_data_extra()
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = ["episode_index", "dataset_from_index", "dataset_to_index", "tasks"]
    files = sorted((root / "meta/episodes").rglob("*.parquet"))
    if not files:
        raise WorldloopError(f"{root} is no whole LeRobotDataset: it has no meta/episodes; finalize the recording")
    try:
        table = pa.concat_tables([pq.read_table(file, columns=columns) for file in files])
    except (pa.ArrowException, KeyError) as error:
        raise WorldloopError(f"the meta/episodes of {root} cannot be read ({error}): was it finalized?") from error
    rows = sorted(table.to_pylist(), key=lambda row: row["episode_index"])
    begin, end = (np.array([row[f"dataset_{side}_index"] for row in rows]) for side in ("from", "to"))
    return begin, end, tuple(str(row["tasks"][0]) if row["tasks"] else "" for row in rows)


def _choose_camera(config: RecordingConfig, features: dict[str, dict[str, Any]]) -> str:
    cameras = sorted(key for key, feature in features.items() if feature["dtype"] in ("image", "video"))
    if config.camera in cameras:
        return config.camera
    if not config.camera and len(cameras) == 1:
        return cameras[0]
    given = f"{config.camera!r} is none of them" if config.camera else "choose one"
    raise WorldloopError(
        f"dataset {config.root} has the cameras {', '.join(cameras) or 'none'}: recording.camera: {given}"
    )


def _dimension_names(feature: dict[str, Any], kind: str) -> tuple[str, ...]:
    """Names of the dimensions of a vector feature; LeRobot keeps a list, a mapping to one, or nothing."""
    names, size = feature.get("names"), int(np.prod(feature["shape"]))
    if isinstance(names, dict):
        names = [name for values in names.values() for name in (values if isinstance(values, list) else [values])]
    if not names or len(names) != size:
        names = [f"{kind}_{i}" for i in range(size)]
    return tuple(str(name) for name in names)


def _open_dataset(recording: Recording) -> Any:
    try:
        from lerobot.datasets.lerobot_dataset import LeRobotDataset
    except ImportError as error:
        raise WorldloopError(
            "reading a recording needs lerobot, which is not installed: pip install 'worldloop[data]'"
        ) from error
    try:
        return LeRobotDataset(f"local/{recording.root.name}", root=recording.root, return_uint8=True)
    except Exception as error:  # LeRobot raises many kinds, down to hub errors for a missing local file
        raise WorldloopError(
            f"LeRobot cannot open the dataset {recording.root} ({first_line(error)}): it must be a LeRobot v3 dataset"
        ) from error
