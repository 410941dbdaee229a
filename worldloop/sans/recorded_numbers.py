"""States, actions and successes of recorded episodes: read, checked, and bounded by the rows that are used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from worldloop.core.errors import WorldloopError
from worldloop.sans.recorded_rows import RowReader

_MIN_WIDTH = 1e-3  # smallest range of an action, in its unit: one that never moved can still be normalised
_FAR = 10.0  # a value is named that lies this many widths of the middle 98 % beyond them


@dataclass(frozen=True)
class EpisodeNumbers:
    """All n rows of an episode, with k actions a row.

    ``state`` f32 [n, S], ``action`` f32 [n k, A], ``success`` bool [n k] if a column says.
    """

    state: np.ndarray
    action: np.ndarray
    success: np.ndarray | None


@dataclass(frozen=True)
class UsedPart:
    """What is used of an episode: F frame steps, in which the first T actions are executed.

    ``first_success`` is the index of the action that causes the success, ``None`` for a failure.
    """

    num_frame_steps: int
    num_actions: int
    first_success: int | None
    actions_per_row: int = 1

    @property
    def num_env_steps(self) -> int:
        """The number of actions up to the success, including it, or of all actions."""
        return self.num_actions if self.first_success is None else self.first_success + 1

    def stored_rows(self, actions_per_frame: int) -> np.ndarray:
        """The rows int64 [F + 1] that become frames."""
        actions = np.minimum(np.arange(self.num_frame_steps + 1) * actions_per_frame, self.num_actions)
        return actions // self.actions_per_row


def choose_part(
    num_rows: int, first_success: int | None, actions_per_frame: int, hold_frames: int, actions_per_row: int = 1
) -> UsedPart:
    """The part of an episode of ``num_rows`` that is used: all, or up to ``hold_frames`` frames after its success.

    ``actions_per_frame`` is a multiple of ``actions_per_row``.
    """
    s, T = actions_per_frame, (num_rows - 1) * actions_per_row
    F = -(-T // s)
    if first_success is not None:
        F = min(F, first_success // s + 1 + hold_frames)
        T = min(T, F * s)
    return UsedPart(F, T, first_success, actions_per_row)


def place_labelled_success(num_rows: int, actions_per_frame: int, hold_frames: int, actions_per_row: int = 1) -> int:
    """Where a success that is known by its label counts: so late that ``hold_frames`` + 1 frames show it."""
    s, last_action = actions_per_frame, (num_rows - 1) * actions_per_row - 1
    first_frame = max(last_action // s - hold_frames, 0)  # the frame step that leads to the first frame to show success
    return min((first_frame + 1) * s - 1, last_action)


def read_numbers(
    reader: RowReader,
    episode: int,
    dims: tuple[int, int],
    state_key: str,
    action_key: str,
    success_key: str,
    actions_per_row: int = 1,
) -> EpisodeNumbers:
    """The numbers of an episode, whose state and action have ``dims`` values a row; ``success_key`` may be ""."""
    vectors = []
    for key, dim in zip((state_key, action_key), dims, strict=True):
        values = reader.numbers(key, episode)
        vectors.append(values.reshape(len(values), -1).astype(np.float32))
        if vectors[-1].shape[1] != dim:
            raise WorldloopError(
                f"{key!r} of the dataset {reader.table.root} has {vectors[-1].shape[1]} values a row, meta/info.json "
                f"says {dim}: correct its shape there"
            )
    flags = _read_flags(reader, episode, success_key, actions_per_row) if success_key else None
    return EpisodeNumbers(vectors[0], vectors[1].reshape(-1, dims[1] // actions_per_row), flags)


def _read_flags(reader: RowReader, episode: int, key: str, actions_per_row: int) -> np.ndarray:
    """bool [n k], from a column of booleans, or of 0 and 1, with one value a row, for its last action, or k."""
    values = reader.numbers(key, episode)
    values = values.reshape(len(values), -1)
    if values.shape[1] not in (1, actions_per_row):
        raise WorldloopError(
            f"recording.success_key {key!r} has {values.shape[1]} values a row, allowed: one, or one for each of "
            f"recording.actions_per_row={actions_per_row} actions"
        )
    if not np.isin(values, (0, 1)).all():
        raise WorldloopError(
            f"recording.success_key {key!r} holds {values[~np.isin(values, (0, 1))][:1].tolist()[0]!r} in episode "
            f"{episode}, allowed: true and false, or 0 and 1"
        )
    flags = np.zeros((len(values), actions_per_row), dtype=bool)
    flags[:, actions_per_row - values.shape[1] :] = values
    return flags.reshape(-1)


def require_finite(
    numbers: EpisodeNumbers, part: UsedPart, actions_per_frame: int, names: dict[str, tuple[str, ...]], episode: int
) -> None:
    """Raise `WorldloopError` naming the first used value that is nan or infinite.

    ``names``: the features of state and action -> the names of their dimensions, in this order.
    """
    rows = (part.stored_rows(actions_per_frame), np.arange(part.num_actions))  # the last row's action leads nowhere
    for (key, dimensions), used, values in zip(names.items(), rows, (numbers.state, numbers.action), strict=True):
        bad = np.argwhere(~np.isfinite(values[used]))
        if len(bad):
            place, column = int(used[bad[0, 0]]), int(bad[0, 1])
            row = place // (len(values) // len(numbers.state))
            raise WorldloopError(
                f"{key!r} is {values[place, column]} in row {row} of episode {episode}, dimension "
                f"{dimensions[column]!r}: mend the recording, or leave that episode out: "
                f"recording.skip_episodes={episode}"
            )


def find_bounds(actions: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest value of each dimension of ``actions`` f32 [T, A], f64 [A] each.

    They are at least ``_MIN_WIDTH`` apart.
    """
    low = np.min([action.min(0) for action in actions], axis=0).astype(float)
    high = np.max([action.max(0) for action in actions], axis=0).astype(float)
    slack = np.maximum(_MIN_WIDTH - (high - low), 0) / 2
    return low - slack, high + slack


def find_outliers(actions: Mapping[int, np.ndarray], names: Sequence[str], actions_per_row: int = 1) -> list[str]:
    """A sentence for each dimension whose range is set by values far beyond its middle 98 %.

    ``actions``: number of the episode -> f32 [T, A]; ``names``: of the A dimensions.
    """
    values = np.concatenate(list(actions.values()))
    q01 = np.quantile(values, 0.01, axis=0, method="higher")  # with few rows, not drawn towards the outlier itself
    q99 = np.quantile(values, 0.99, axis=0, method="lower")
    width = np.maximum(q99 - q01, 0)
    found = []
    for d, name in enumerate(names):
        beyond = np.maximum(q01[d] - values[:, d], values[:, d] - q99[d])
        if beyond.max() <= _FAR * width[d] or beyond.max() <= _MIN_WIDTH:
            continue
        episode, place = locate(actions, int(beyond.argmax()))
        found.append(
            f"action {name!r} is {actions[episode][place, d]:g} in row {place // actions_per_row} of episode "
            f"{episode}, but within {q01[d]:g} to {q99[d]:g} in 98 % of the rows: the bounds of actions follow it. If "
            f"it is a fault, leave the episode out: recording.skip_episodes={episode}"
        )
    return found


def locate(actions: Mapping[int, np.ndarray], place: int) -> tuple[int, int]:
    """The episode of ``place`` in all ``actions``, one after the other, and the place among that episode's own."""
    for episode, own in actions.items():
        if place < len(own):
            return episode, place
        place -= len(own)
    raise ValueError(f"there is no action {place}")
