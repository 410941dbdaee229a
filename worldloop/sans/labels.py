"""Success labels that a person gives to recorded episodes: a JSON file. The recording itself never changes.

The file holds the fingerprint of the dataset that was labelled, so that labels of another one are refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from worldloop.core.errors import WorldloopError
from worldloop.core.files import read_json, to_json, write_file

LABELS_SCHEMA_VERSION = 2  # version 1 does not name the dataset
REST = "rest"
_REMEDY = "write it again with worldloop sans label"


@dataclass(frozen=True)
class Labels:
    """``success``: episode number -> whether it succeeds, sorted; ``dataset``: fingerprint of what was labelled.

    ``dataset`` is "" in files of an earlier version.
    """

    success: dict[int, bool]
    dataset: str


def read_labels(path: Path, num_episodes: int, dataset: str) -> Labels:
    """The labels in ``path`` of the dataset with the fingerprint ``dataset``.

    Raises `WorldloopError` if the file is missing, broken, or made for another dataset.
    """
    if not path.is_file():
        raise WorldloopError(f"there are no labels {path}: {_REMEDY}")
    stored = read_json(path, f"labels {path}", LABELS_SCHEMA_VERSION, _REMEDY)
    try:
        count = int(stored["num_episodes"])
        known = str(stored["dataset"]) if stored["schema_version"] > 1 else ""
        labels = {int(number): {"success": True, "failure": False}[name] for number, name in stored["labels"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WorldloopError(f"labels {path} hold something else than success and failure ({error}); {_REMEDY}") from (
            error
        )
    if count != num_episodes or any(not 0 <= number < num_episodes for number in labels):
        raise WorldloopError(f"labels {path} are of a recording of {count} episodes, not {num_episodes}; {_REMEDY}")
    if known not in ("", dataset):
        raise WorldloopError(
            f"labels {path} are of another dataset, or its episodes have changed since: label this one in a file of "
            f'its own. If you know that they fit, set "dataset" in them to "{dataset}"'
        )
    return Labels(dict(sorted(labels.items())), known)


def write_labels(path: Path, labels: dict[int, bool], num_episodes: int, dataset: str) -> None:
    """Write ``labels``, episode number -> whether it succeeds, of the dataset with the fingerprint ``dataset``."""
    names = {str(number): "success" if labels[number] else "failure" for number in sorted(labels)}
    described = {"schema_version": LABELS_SCHEMA_VERSION, "dataset": dataset, "num_episodes": num_episodes}
    stored = described | {"labels": names}
    write_file(path, to_json(stored), f"labels {path}")


def update_labels(labels: dict[int, bool], num_episodes: int, success: str, failure: str) -> dict[int, bool]:
    """``labels`` after the episodes in the lists ``success`` and ``failure`` are labelled so.

    A list is like ``0,3,5-9``. ``rest`` means all episodes that have no label then.
    Raises `WorldloopError` for a number outside the recording or in both lists.
    """
    given = {True: success, False: failure}
    chosen = {kind: parse_numbers(text, num_episodes) for kind, text in given.items() if text != REST}
    both = sorted(set(chosen.get(True, ())) & set(chosen.get(False, ())))
    if both or success == failure == REST:
        what = f"episodes {', '.join(map(str, both))}" if both else "the rest"
        raise WorldloopError(f"{what} cannot be both success and failure")
    labels = labels | {number: kind for kind, numbers in chosen.items() for number in numbers}
    for kind, text in given.items():
        if text == REST:
            labels |= {number: kind for number in range(num_episodes) if number not in labels}
    return dict(sorted(labels.items()))


def parse_numbers(text: str, count: int) -> Sequence[int]:
    """``0,3,5-9`` -> [0, 3, 5, 6, 7, 8, 9]; raises `WorldloopError` for anything else and for numbers >= ``count``."""
    numbers: list[int] = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None:
            raise WorldloopError(f"{part!r} is no episode number, nor a range like 5-9")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last >= count:
            raise WorldloopError(f"{part!r} does not fit a recording of {count} episodes, numbered from 0")
        numbers.extend(range(first, last + 1))
    return numbers


def format_numbers(numbers: Sequence[int]) -> str:
    """Inverse of `parse_numbers` for increasing numbers: [0, 3, 5, 6, 7] -> ``0, 3, 5-7``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
