"""Self-contained checkpoints: weights and normalisation in safetensors, everything else in one JSON file.

    DIRECTORY/model.safetensors      state_dict, and normalisation.proprio_mean / .proprio_std
    DIRECTORY/checkpoint.json        schema_version, kind, name, config, spec, extra, sha256 of the weights

Nothing is unpickled. A checkpoint loads without the run that made it.
"""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from worldloop.core.errors import WorldloopError
from worldloop.core.files import hash_file, read_json, to_json, whole_directory
from worldloop.core.specs import SimulatorSpec
from worldloop.core.tensors import load_trained
from worldloop.core.types import Normalisation

# 1 had one camera and one task; world models of 2 read action tokens, and its policies had no indicator; those of 3 had
# one proprio head
CHECKPOINT_SCHEMA_VERSION = 4
_PREFIX = "normalisation."
_REMEDY = "restore it, or delete the run directory and run again"
_KINDS = {"inverse_dynamics": "an inverse dynamics model"}  # in messages; others are called by their kind


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a model is rebuilt from.

    ``kind`` is ``policy``, ``world_model``, ``critic`` or ``inverse_dynamics``. ``name`` is the policy's ``kind`` in
    the config, the critic's ``value.kind``, ``video_world_model`` or ``inverse_dynamics``.
    """

    kind: str
    name: str
    config: dict[str, Any]
    spec: SimulatorSpec
    normalisation: Normalisation
    weights: dict[str, Tensor]
    extra: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(directory: Path, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint`` to ``directory`` atomically. An existing directory, e.g. of a killed stage, is replaced."""
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in checkpoint.weights.items()}
    tensors[_PREFIX + "proprio_mean"] = checkpoint.normalisation.proprio_mean.clone()
    tensors[_PREFIX + "proprio_std"] = checkpoint.normalisation.proprio_std.clone()
    with whole_directory(directory, f"checkpoint {directory}") as temporary:
        _save_tensors(tensors, temporary / "model.safetensors")
        description = {
            "schema_version": CHECKPOINT_SCHEMA_VERSION,
            "kind": checkpoint.kind,
            "name": checkpoint.name,
            "config": checkpoint.config,
            "spec": asdict(checkpoint.spec),
            "extra": checkpoint.extra,
            "sha256": hash_file(temporary / "model.safetensors"),
        }
        (temporary / "checkpoint.json").write_bytes(to_json(description))


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Save ``tensors`` to ``path``. A disk error, which safetensors wraps in an error of its own, is an ``OSError``.

    safetensors lets nobody but the owner read; here others may, as the umask says.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(tensors, path)
        path.chmod(mode)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def load_checkpoint(directory: Path, kind: str) -> Checkpoint:
    """Read the checkpoint in ``directory``.

    Raises `WorldloopError`, naming the directory, if it is missing, damaged, of another ``kind`` or of another schema.
    """
    if not directory.is_dir():
        raise WorldloopError(f"checkpoint {directory} does not exist: give the folder of a run, or of a checkpoint")
    if not (directory / "checkpoint.json").exists():
        raise WorldloopError(f"{directory} holds no checkpoint: give the folder of a run, or of a checkpoint")
    what = f"checkpoint {directory}"
    meta = read_description(directory)
    weights = directory / "model.safetensors"
    try:
        if meta["kind"] != kind:
            held, wanted = (_KINDS.get(name, f"a {name}") for name in (meta["kind"], kind))
            raise WorldloopError(f"{what} holds {held}, not {wanted}: give the folder of {wanted}")
        if not weights.is_file():
            raise WorldloopError(f"{what} is damaged: model.safetensors is missing; {_REMEDY}")
        if hash_file(weights) != meta["sha256"]:
            raise WorldloopError(f"{what} is damaged: model.safetensors does not match its hash; {_REMEDY}")
        tensors = load_file(weights)
        normalisation = Normalisation(tensors.pop(_PREFIX + "proprio_mean"), tensors.pop(_PREFIX + "proprio_std"))
        return Checkpoint(
            kind=kind,
            name=meta["name"],
            config=meta["config"],
            spec=rebuild_dataclass(SimulatorSpec, meta["spec"]),
            normalisation=normalisation,
            weights=tensors,
            extra=meta["extra"],
        )
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise WorldloopError(f"checkpoint {directory} is not a worldloop checkpoint ({error}); {_REMEDY}") from error


def read_description(directory: Path) -> dict[str, Any]:
    """The content of ``checkpoint.json``; raises `WorldloopError` if it is broken or of another schema."""
    what = f"checkpoint {directory}"
    return read_current_json(directory / "checkpoint.json", what, CHECKPOINT_SCHEMA_VERSION, _REMEDY)


def read_current_json(path: Path, what: str, schema: int, remedy: str) -> dict[str, Any]:
    """Like `read_json`; also raises `WorldloopError` for a lower ``schema_version``."""
    value = read_json(path, what, schema, remedy)
    if value["schema_version"] < schema:
        raise WorldloopError(
            f"{what} was made by an earlier worldloop: make it again in a new run, or use the worldloop that made it"
        )
    return value


def rebuild_dataclass[T](cls: type[T], values: dict[str, Any]) -> T:
    """A ``cls`` from the JSON of ``dataclasses.asdict``, nested dataclasses and tuples included.

    Raises ``TypeError`` for a field that ``cls`` does not have, and for a value that should be a dataclass or a tuple
    but is not.
    """
    if not isinstance(values, dict):
        raise TypeError(f"{values!r} is no {cls.__name__}")
    types = get_type_hints(cls)
    return cls(**{name: _rebuild(types.get(name), value) for name, value in values.items()})


def _rebuild(expected: Any, value: Any) -> Any:
    if is_dataclass(expected):
        return rebuild_dataclass(expected, value)  # type: ignore[arg-type]
    if get_origin(expected) is not tuple:
        return value
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return tuple(_rebuild(get_args(expected)[0], item) for item in value)


def load_weights(
    module: torch.nn.Module, checkpoint: Checkpoint, directory: Path, frozen: frozenset[str] = frozenset()
) -> None:
    """Load the checkpoint's weights into ``module``, which was built from the checkpoint's config.

    Weights named in ``frozen`` are not stored in a checkpoint, and stay as they are in ``module``. Raises
    `WorldloopError` if names or shapes differ from those of ``module``.
    """
    try:
        load_trained(module, checkpoint.weights, frozen)
    except RuntimeError as error:
        last = (str(error).splitlines() or [""])[-1].strip()
        raise WorldloopError(f"checkpoint {directory} does not fit its architecture ({last}); {_REMEDY}") from error
