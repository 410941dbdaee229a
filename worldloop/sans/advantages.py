"""Advantages that critics give to the frame steps of a dataset version. They live beside the dataset, never in a shard.

DIRECTORY/labels.json          the version, the critics, their settings and thresholds, the hash of the arrays
DIRECTORY/labels.safetensors   advantage f32 and is_good bool, one entry per frame step of the version
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from worldloop.core.errors import WorldloopError
from worldloop.core.files import malformed, read_json, to_json, whole_directory
from worldloop.core.tensors import check_dtype, check_shape

ADVANTAGES_SCHEMA_VERSION = 1
_REMEDY = "run the label_advantages stage of this dataset version again"


@dataclass(frozen=True)
class AdvantageLabels:
    """How much better than expected each frame step of a SANS version went, and whether that counts as good.

    - ``version``: fingerprint of the `SansVersion`
    - ``critics``: sha256 of the weights of each critic that made the labels; may be empty, e.g. for random labels
    - ``settings``: how they were made; plain JSON (string keys, lists but no tuples, finite numbers)
    - ``thresholds``: task -> epsilon; an advantage above it is good
    - ``advantage`` f32 [sum of F], ``is_good`` bool [sum of F]: episodes end to end, as in `VersionCache.all_steps`

    The advantage is NaN where a frame step was not labelled, e.g. in held-out episodes. Such a step is never good.
    """

    version: str
    critics: tuple[str, ...]
    settings: dict[str, Any]
    thresholds: dict[str, float]
    advantage: np.ndarray
    is_good: np.ndarray

    def __post_init__(self) -> None:
        check_shape("AdvantageLabels.advantage", self.advantage, (None,))
        check_dtype("AdvantageLabels.advantage", self.advantage, np.float32)
        check_shape("AdvantageLabels.is_good", self.is_good, self.advantage.shape)
        check_dtype("AdvantageLabels.is_good", self.is_good, np.bool_)
        num_wrong = int((self.is_good & np.isnan(self.advantage)).sum())
        if num_wrong:
            raise ValueError(f"AdvantageLabels.is_good is true at {num_wrong} frame steps whose advantage is NaN")
        if not isinstance(self.critics, tuple) or not all(isinstance(critic, str) for critic in self.critics):
            raise ValueError(f"AdvantageLabels.critics is {self.critics!r}, expected a tuple of strings")
        for name in ("settings", "thresholds"):
            _check_json(f"AdvantageLabels.{name}", getattr(self, name))

    def __len__(self) -> int:
        """Number of frame steps."""
        return len(self.advantage)


def _check_json(name: str, value: dict[str, Any]) -> None:
    """Raise ``ValueError`` unless ``value`` is an object that JSON gives back unchanged."""
    try:
        is_same = isinstance(value, dict) and json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError):
        is_same = False
    if not is_same:
        raise ValueError(f"{name} is {value!r}, expected plain JSON: string keys, lists, finite numbers")


def write_labels(directory: Path, labels: AdvantageLabels) -> None:
    """Write ``labels`` to ``directory`` atomically. An existing directory is replaced.

    Raises ``WorldloopError`` if the disk refuses; an existing directory then stays as it was.
    """
    arrays = save({"advantage": labels.advantage, "is_good": labels.is_good})
    description = {
        "schema_version": ADVANTAGES_SCHEMA_VERSION,
        "version": labels.version,
        "critics": list(labels.critics),
        "settings": labels.settings,
        "thresholds": labels.thresholds,
        "sha256": hashlib.sha256(arrays).hexdigest(),
    }
    with whole_directory(directory, f"advantage labels {directory}") as temporary:
        (temporary / "labels.safetensors").write_bytes(arrays)
        (temporary / "labels.json").write_bytes(to_json(description))


def read_labels(directory: Path, version_fingerprint: str) -> AdvantageLabels:
    """Read the labels in ``directory``, made for the version whose fingerprint is ``version_fingerprint``.

    Raises ``WorldloopError``, naming the directory, if they are missing, damaged, of a newer schema, or of another
    dataset version.
    """
    what = f"advantage labels {directory}"
    if not (directory / "labels.json").is_file():
        raise WorldloopError(f"there are no advantage labels in {directory}: {_REMEDY}")
    stored = read_json(directory / "labels.json", what, ADVANTAGES_SCHEMA_VERSION, _REMEDY)
    with malformed(what, _REMEDY):
        if stored["version"] != version_fingerprint:
            raise WorldloopError(
                f"{what} were made for another dataset version ({stored['version'][:12]}, not "
                f"{version_fingerprint[:12]}): {_REMEDY}"
            )
        try:
            data = (directory / "labels.safetensors").read_bytes()
        except OSError as error:
            raise WorldloopError(f"{what} lack a readable labels.safetensors ({error.strerror}); {_REMEDY}") from error
        if hashlib.sha256(data).hexdigest() != stored["sha256"]:
            raise WorldloopError(f"{what} are damaged: labels.safetensors does not match its hash; {_REMEDY}")
        try:
            arrays = load(data)
        except SafetensorError as error:
            raise WorldloopError(f"{what} are damaged: labels.safetensors is no safetensors file; {_REMEDY}") from error
        return AdvantageLabels(
            version=stored["version"],
            critics=tuple(stored["critics"]),
            settings=stored["settings"],
            thresholds=stored["thresholds"],
            advantage=arrays["advantage"],
            is_good=arrays["is_good"],
        )
