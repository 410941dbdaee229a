"""Demonstrations that were recorded elsewhere, for a run with a simulator: they stand for scripted experts.

A robot's own episodes, which `sans.added` brings in, are compared with a run in the same way.

The simulator decides what the recording's own settings decide elsewhere: cameras and their sizes, actions per stored
frame, and for how long an episode goes on after its success. So all of them, and names and rate, are compared here
before a run starts. What cannot be compared is what an action does: a recording does not tell it.

The state of the simulator is not recorded: it is NaN. Nothing starts there, and no label is read from it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from worldloop.core.errors import WorldloopError
from worldloop.core.randomness import derive_seed
from worldloop.core.specs import SimulatorSpec
from worldloop.core.types import Episode
from worldloop.sans.labels import format_numbers, parse_numbers
from worldloop.sans.recorded_dataset import open_dataset, read_info, refuse_meta
from worldloop.sans.recorded_episodes import make_episode
from worldloop.sans.recorded_features import is_unnamed, list_cameras, require_numeric
from worldloop.sans.recorded_numbers import locate
from worldloop.sans.recorded_rows import require_videos
from worldloop.sans.recordings import (
    Recording,
    RecordingConfig,
    find_hz,
    name_numbers,
    name_version,
    open_recording,
)

VARIANT = "demonstration"
CAMERAS = "recording.camera_names"
_ROUNDING = 1e-3  # share of an action's range by which it may lie beyond its bounds: rounding
_SAME_RATE = 0.01  # largest relative difference between two rates that are the same
_NUM_SHOWN = 12  # names in an error


@dataclass(frozen=True)
class Demonstrations:
    """A recording whose tasks and instructions are the simulator's.

    - ``num_left_out``: episodes of the dataset that are not used; ``doubts``: sentences that the user should read
    """

    recording: Recording
    num_left_out: int
    doubts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.recording.used)


def open_demonstrations(config: RecordingConfig, spec: SimulatorSpec, needs_success: bool = True) -> Demonstrations:
    """Read and check all numbers, and compare them with the run of ``spec``; decodes no picture.

    Raises `WorldloopError` that names what is missing or does not fit, and the setting or the remedy.
    """
    info = read_info(config.root)
    try:
        cameras = _find_cameras(config, spec, info["features"])
        doubts = [*_compare_shapes(info["features"], cameras, spec), *_compare_names(config, spec, info["features"])]
        _require_same_rate(config, spec, info)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise refuse_meta(Path(config.root), error) from error
    dataset = open_dataset(config.root, list(cameras), CAMERAS)
    require_videos(dataset.root, dataset.episodes, CAMERAS)
    skipped = set(parse_numbers(config.skip_episodes, len(dataset.episodes)))
    found = _find_tasks(config, spec, dataset.episodes.instructions, skipped)
    settings = replace(
        config,
        cameras=tuple(cameras),
        image_sizes={},
        actions_per_frame=spec.actions_per_frame,
        success_hold_frames=spec.success_hold_frames,
        success_confirm_frames=spec.success_confirm_frames,
        skip_episodes=format_numbers([n for n in range(len(dataset.episodes)) if n not in found]),
    )
    recording = _name_tasks(open_recording(settings), found)
    if needs_success and not any(part.first_success is not None for part in recording.used.values()):
        raise WorldloopError(
            f"no episode of {config.root} succeeds, so there is nothing to imitate: see recording.success_key, labels "
            "and all_succeed"
        )
    _require_time(config, spec, recording, skipped)
    doubts += [*recording.doubts, *_compare_bounds(config, spec, recording, skipped)]
    absent = [task for task in spec.task_ids if task not in {recording.tasks[n] for n in recording.used}]
    if needs_success and absent:
        doubts.append(f"there is no demonstration of {', '.join(absent)}")
    return Demonstrations(recording, len(dataset.episodes) - len(recording.used), tuple(doubts))


def read_demonstrations(demonstrations: Demonstrations, spec: SimulatorSpec, sim_state_dim: int) -> Iterator[Episode]:
    """The used episodes in order, all for training, as the run would have stored them.

    ``sim_state`` is NaN f32 [F + 1, ``sim_state_dim``]. Actions are within the run's bounds.
    """
    recording = demonstrations.recording
    version = name_version(recording.dataset.info)
    low, high = (np.array(bound, dtype=np.float32) for bound in (spec.robot.action_low, spec.robot.action_high))
    for number in recording.used:
        episode = make_episode(number, "train", recording, spec)
        meta = replace(
            episode.meta,
            source="expert",
            variant=VARIANT,
            initial_state_id=_episode_id(episode.meta.task, number),
            simulator_version=version,
        )
        unknown = np.full((episode.num_frame_steps + 1, sim_state_dim), np.nan, dtype=np.float32)
        yield replace(episode, meta=meta, sim_state=unknown, actions=np.clip(episode.actions, low, high))


def _episode_id(task: str, number: int) -> str:
    return f"{task}/{VARIANT}/{number:06d}"


def _find_cameras(config: RecordingConfig, spec: SimulatorSpec, features: dict[str, Any]) -> dict[str, str]:
    """The dataset's camera for each of the run's: name there -> name here."""
    known, wanted = list_cameras(features), spec.robot.camera_names
    for name, own in config.camera_names.items():
        if name not in known or own not in wanted:
            raise WorldloopError(
                f"{CAMERAS} says that {name!r} is {own!r}: dataset {config.root} has the cameras "
                f"{_list(known)}, the run {_list(wanted)}"
            )
    here = {name: config.camera_names.get(name, name) for name in known}
    missing = [name for name in wanted if name not in here.values()]
    if missing:
        raise WorldloopError(
            f"the run has the camera {missing[0]!r}, dataset {config.root} has {_list(known) or 'none'}: say "
            f"which of them it is, {CAMERAS}={{NAME: {missing[0]}}}, or let the run have other cameras"
        )
    return {name: own for name, own in here.items() if own in wanted}


def _compare_shapes(features: dict[str, Any], cameras: Mapping[str, str], spec: SimulatorSpec) -> list[str]:
    """A sentence for each camera whose pictures are stretched, because their sides have another ratio here."""
    keys, sizes = list_cameras(features), {camera.name: camera for camera in spec.robot.cameras}
    doubts = []
    for name, own in cameras.items():
        shape = [int(side) for side in features[keys[name]]["shape"]]
        height, width = shape[:2] if shape[2] == 3 else shape[1:]
        if height * sizes[own].width != width * sizes[own].height:
            doubts.append(
                f"the pictures of {name!r} are {width} x {height} pixels and are stretched to the run's "
                f"{sizes[own].width} x {sizes[own].height}"
            )
    return doubts


def _compare_names(config: RecordingConfig, spec: SimulatorSpec, features: dict[str, Any]) -> list[str]:
    """A sentence for state and actions each if the dataset names no dimension; raises if it names others."""
    root, robot = Path(config.root), spec.robot
    for setting in ("state_key", "action_key"):
        require_numeric(root, features, setting, getattr(config, setting))
    doubts = []
    pairs = zip(
        ("state", "action"), name_numbers(config, features), (robot.proprio_names, robot.action_names), strict=True
    )
    for kind, names, wanted in pairs:
        if names == wanted:
            continue
        if len(names) == len(wanted) and is_unnamed(names, kind):
            doubts.append(f"the dataset names no dimension of its {kind}: they count as {_list(wanted)}, in this order")
            continue
        remedy = f"if they mean the same, in this order, set recording.{kind}_names=[{','.join(wanted)}]"
        if len(names) != len(wanted):
            remedy = f"give another feature as recording.{kind}_key, or record what the run has"
            times = len(names) // len(wanted)
            if kind == "action" and len(names) == times * len(wanted) and config.actions_per_row == 1:
                remedy = f"if a row holds {times} actions (worldloop sans merge), set recording.actions_per_row={times}"
        raise WorldloopError(
            f"{getattr(config, kind + '_key')!r} of dataset {root} has the {len(names)} dimensions {_list(names)}, the "
            f"run's {'proprio' if kind == 'state' else kind} the {len(wanted)} {_list(wanted)}: {remedy}"
        )
    return doubts


def _require_same_rate(config: RecordingConfig, spec: SimulatorSpec, info: dict[str, Any]) -> None:
    """Raise `WorldloopError` unless both have equally many actions a second, and rows are where frames are."""
    per_row, wanted = config.actions_per_row, spec.robot.hz
    if spec.actions_per_frame % per_row:
        raise WorldloopError(
            f"the run's actions_per_frame {spec.actions_per_frame} is no multiple of recording.actions_per_row "
            f"{per_row}, so that a stored frame would lie between two rows: change actions_per_frame"
        )
    hz = find_hz(config, info)
    is_rounded = not config.hz and info["fps"] == max(1, round(wanted / per_row))  # LeRobot's fps is an integer
    if not is_rounded and not math.isclose(hz, wanted, rel_tol=_SAME_RATE):
        raise WorldloopError(
            f"dataset {config.root} has {hz:g} actions a second, the run {wanted:g}: record at the run's "
            f"rate, or if the dataset's fps is wrong, set recording.hz={wanted:g}"
        )


def _find_tasks(
    config: RecordingConfig, spec: SimulatorSpec, instructions: Sequence[str], skipped: Collection[int]
) -> dict[int, tuple[str, str]]:
    """Number of each episode that is wanted -> its task in the run, and one of the task's paraphrases."""
    for instruction, task in config.task_of.items():
        if instruction not in instructions or task not in spec.task_ids:
            raise WorldloopError(
                f"recording.task_of says that {instruction!r} is {task!r}: the dataset's instructions are "
                f"{_list(_quote(instructions))}; the run's tasks {_list(spec.task_ids)}"
            )
    paraphrases: dict[str, dict[str, str]] = {}
    for own in spec.tasks:
        for paraphrase in own.instructions:
            paraphrases.setdefault(_normalise(paraphrase), {})[own.id] = paraphrase
    found: dict[int, tuple[str, str]] = {}
    others = []
    for number, instruction in enumerate(instructions):
        if number in skipped:
            continue
        fitting = paraphrases.get(_normalise(instruction), {})
        if instruction in config.task_of:
            name = config.task_of[instruction]
            known = spec.task(name).instructions
            drawn = known[derive_seed("instruction", _episode_id(name, number)) % len(known)]
            found[number] = (name, fitting.get(name, drawn))
        elif len(fitting) == 1:
            found[number] = next(iter(fitting.items()))
        elif fitting:
            raise WorldloopError(
                f"the instruction {instruction!r} belongs to the run's tasks {_list(fitting)}: say which it is, "
                f"recording.task_of={{{instruction}: {next(iter(fitting))}}}"
            )
        else:
            others.append(instruction)
    if others and (not config.skip_other_tasks or not found):
        tasks = [f"{own.id}: {_list(_quote(own.instructions))}" for own in spec.tasks]
        raise WorldloopError(
            f"no task of the run has the instruction {_list(_quote(others))} of dataset {config.root}; the "
            f"run has {_list(tasks, '; ')}. Say what they are, "
            "recording.task_of={INSTRUCTION: TASK}, or leave them out, recording.skip_other_tasks=true"
        )
    return found


def _normalise(instruction: str) -> str:
    return " ".join(re.findall(r"\w+", instruction.lower()))


def _name_tasks(recording: Recording, found: Mapping[int, tuple[str, str]]) -> Recording:
    """``recording`` with the tasks and instructions of ``found``; "" for the others, which are not used."""
    episodes = recording.dataset.episodes
    tasks, instructions = zip(*(found.get(number, ("", "")) for number in range(len(episodes))), strict=True)
    episodes = replace(episodes, instructions=instructions)
    dataset = replace(recording.dataset, found=replace(recording.dataset.found, episodes=episodes))
    return replace(recording, tasks=tasks, dataset=dataset)


def _require_time(config: RecordingConfig, spec: SimulatorSpec, recording: Recording, skipped: Collection[int]) -> None:
    """Raise `WorldloopError` if an episode takes longer than its task allows in the run."""
    limits = {number: spec.task(recording.tasks[number]).max_episode_steps for number in recording.used}
    long = [number for number, part in recording.used.items() if part.num_env_steps > limits[number]]
    if long:
        first = long[0]
        raise WorldloopError(
            f"episode {first} of dataset {config.root} takes {recording.used[first].num_env_steps} actions, and the "
            f"run's time limit for {recording.tasks[first]} is {limits[first]}; {len(long)} are too long: "
            f"raise its max_episode_steps, or leave them out, {_skip(skipped, long)}"
        )


def _compare_bounds(
    config: RecordingConfig, spec: SimulatorSpec, recording: Recording, skipped: Collection[int]
) -> list[str]:
    """A sentence about actions that are clipped; raises `WorldloopError` naming one out of bounds if none may be."""
    robot = spec.robot
    low, high = np.array(robot.action_low), np.array(robot.action_high)
    slack = _ROUNDING * (high - low)
    used = {n: recording.numbers[n].action[: part.num_actions] for n, part in recording.used.items()}
    values = np.concatenate(list(used.values()))
    is_beyond = (values < low - slack) | (values > high + slack)
    if not is_beyond.any():
        return []
    place, d = np.argwhere(is_beyond)[0].tolist()
    episode, own_place = locate(used, place)
    what = (
        f"action {robot.action_names[d]!r} is {values[place, d]:g} in row {own_place // config.actions_per_row} of "
        f"episode {episode}, and the run's bounds are {low[d]:g} and {high[d]:g}; {int(is_beyond.any(1).sum())} "
        f"of {len(values)} actions are out of theirs"
    )
    if config.clip_actions:
        return [f"{what} and are clipped"]
    outside = [n for n, own in used.items() if ((own < low - slack) | (own > high + slack)).any()]
    raise WorldloopError(
        f"{what}: if the robot's controller clipped them, set recording.clip_actions=true; else convert them, or leave "
        f"these episodes out, {_skip(skipped, outside)}"
    )


def _skip(skipped: Collection[int], more: Sequence[int]) -> str:
    return f"recording.skip_episodes={format_numbers(sorted({*skipped, *more})).replace(' ', '')}"


def _quote(texts: Sequence[str]) -> list[str]:
    return [repr(text) for text in dict.fromkeys(texts)]


def _list(names: Collection[str], between: str = ", ") -> str:
    """The first ``names``, and how many there are if some are left out."""
    shown = between.join(list(names)[:_NUM_SHOWN])
    return shown if len(names) <= _NUM_SHOWN else f"{shown} ... ({len(names)})"
