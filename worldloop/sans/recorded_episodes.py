"""Read the episodes of an opened recording, scaled and subsampled, one after the other.

``sim_state`` has no columns. ``distances_m`` is NaN before success, ``margin_m`` is NaN in a failure, and no episode is
a near-success, because a recording does not contain distances.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from worldloop.core.randomness import derive_seed
from worldloop.core.specs import SimulatorSpec
from worldloop.core.types import Episode, EpisodeMeta, Split
from worldloop.sans.recorded_dataset import RecordedDataset
from worldloop.sans.recordings import Recording, RecordingConfig, open_recording

VARIANT = "recorded"


def read_recording(
    config: RecordingConfig, spec: SimulatorSpec, recording: Recording | None = None
) -> Iterator[Episode]:
    """The used episodes of ``recording``, in order; it is opened if it is not given.

    Episodes without a label or with fewer than two rows are left out. A share of each task's successes and failures is
    held out for validation, chosen by a hash of the episode's id.
    """
    recording = recording or open_recording(config)
    is_success = {number: part.first_success is not None for number, part in recording.used.items()}
    splits = split_episodes(recording.tasks, config.validation_share, is_success)
    for number in recording.used:
        yield make_episode(number, splits[number], recording, spec)


def read_previews(dataset: RecordedDataset, size: int) -> Iterator[np.ndarray]:
    """First, middle and last picture of every episode, u8 [3 * cameras, size, size, 3], one camera after the other.

    For a person's eyes the nearest frame of a video will do, however far it is from the row.
    """
    reader = dataset.make_reader(tolerance_s=float("inf"))
    for number, rows in enumerate(dataset.episodes.rows):
        chosen = np.array([0, (len(rows) - 1) // 2, len(rows) - 1])
        yield np.concatenate([reader.pictures(key, number, chosen, (size, size)) for key in dataset.cameras.values()])


def make_episode(number: int, split: Split, recording: Recording, spec: SimulatorSpec) -> Episode:
    """The episode ``number``, which is used; ``spec`` has its cameras, sizes and actions per frame."""
    part, numbers, s = recording.used[number], recording.numbers[number], spec.actions_per_frame
    F, T = part.num_frame_steps, part.num_actions
    rows = part.stored_rows(s)
    step = np.arange(F * s).reshape(F, s)
    is_success = part.first_success is not None
    began = F * s if part.first_success is None else part.first_success
    success = step >= began
    task = recording.tasks[number]
    return Episode(
        meta=EpisodeMeta(
            task=task,
            instruction=recording.dataset.episodes.instructions[number],
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
            camera.name: recording.reader.pictures(
                recording.dataset.cameras[camera.name], number, rows, (camera.height, camera.width)
            )
            for camera in spec.robot.cameras
        },
        proprio=numbers.state[rows],
        actions=numbers.action[np.minimum(step, T - 1)],  # past the end the last one repeats: 0 may be a target
        valid=(step < T) & (step <= began),
        rewards=(step == began).astype(np.float32),
        success=success,
        distances_m=np.where(success, 0.0, np.nan).astype(np.float32),
        sim_state=np.zeros((F + 1, 0), dtype=np.float32),
        terminated=is_success,
        truncated=not is_success,
    )


def split_episodes(tasks: Sequence[str], validation_share: float, is_success: dict[int, bool]) -> dict[int, Split]:
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
