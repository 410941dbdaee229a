"""The card of a checked world model: how to read its heads, how good it is, and observations to start from.

    DIRECTORY/card.json            calibrations, the check's figures, sha256 of the weights and starts they belong to
    DIRECTORY/starts.safetensors   observations and actions that training episodes began with, seen by every camera

With its card, a checkpoint can be used as an environment without the run that made it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from worldloop.core.errors import WorldloopError
from worldloop.core.files import hash_file, to_json, write_file
from worldloop.core.success import Calibration, Calibrations
from worldloop.core.tensors import prefix, strip
from worldloop.core.types import Observation
from worldloop.storage.checkpoint import read_current_json

CARD_SCHEMA_VERSION = 2  # 1 had one camera and one task
_REMEDY = "check the world model again, or restore its directory from a copy"


@dataclass(frozen=True)
class WorldModelCard:
    """How to read a checked world model.

    - ``calibrations``: how to read its heads, by task
    - ``figures``: what the check measured, as plain values: source -> figures. With several tasks these are means over
      the tasks, and ``figures["tasks"]`` holds the same for each task.
    - ``closed_loop``: what the last check in the closed loop found, an entry of ``closed_loop.checkpoints`` in
      results.json; {} before there is one
    - ``starts``: N observations of one frame, with proprio
    - ``start_actions`` f32 [N, A]: the first actions after them, in environment units; earlier cards have none
    """

    calibrations: Calibrations
    figures: dict[str, Any]
    starts: Observation
    closed_loop: dict[str, Any] = field(default_factory=dict)
    start_actions: Tensor | None = None


def write_card(directory: Path, card: WorldModelCard) -> None:
    """Write the card beside the weights in ``directory``; ``card.json`` comes last and makes it valid."""
    starts = card.starts
    assert starts.proprio is not None
    frames = {camera: images[:, -1:].contiguous() for camera, images in starts.frames.items()}
    tensors = {"proprio": starts.proprio.contiguous(), **prefix("frames", frames)}
    if card.start_actions is not None:
        tensors["actions"] = card.start_actions.contiguous()
    what = f"the card of checkpoint {directory}"
    write_file(directory / "starts.safetensors", save(tensors), what)
    value = {
        "schema_version": CARD_SCHEMA_VERSION,
        "calibrations": {task: asdict(calibration) for task, calibration in card.calibrations.by_task.items()},
        "figures": card.figures,
        "closed_loop": card.closed_loop,
        "cameras": list(starts.frames),
        "tasks": list(starts.task),
        "instructions": list(starts.instruction),
        "weights_sha256": hash_file(directory / "model.safetensors"),
        "starts_sha256": hash_file(directory / "starts.safetensors"),
    }
    write_file(directory / "card.json", to_json(value), what)


def read_card(directory: Path) -> WorldModelCard:
    """Read the card in ``directory``.

    Raises `WorldloopError` if the world model was not checked, or if the card is damaged, of another schema, or of
    other weights.
    """
    what = f"the card of checkpoint {directory}"
    if not (directory / "card.json").is_file():
        raise WorldloopError(
            f"checkpoint {directory} has no card.json: until it is checked nobody knows how to read its success head; "
            "let the check_world_model stage of its run end"
        )
    value = read_current_json(directory / "card.json", what, CARD_SCHEMA_VERSION, _REMEDY)
    try:
        for file in ("model", "starts"):
            key = {"model": "weights_sha256", "starts": "starts_sha256"}[file]
            if hash_file(directory / f"{file}.safetensors") != value[key]:
                raise WorldloopError(f"{what} does not belong to {file}.safetensors beside it; {_REMEDY}")
        tensors = load((directory / "starts.safetensors").read_bytes())
        images = strip("frames", tensors)
        task, instruction = (_read_strings(value, key) for key in ("tasks", "instructions"))
        starts = Observation(
            frames={camera: images[camera] for camera in _read_strings(value, "cameras")},
            proprio=tensors["proprio"],
            task=task,
            instruction=instruction,
            env_step=torch.zeros(len(instruction), dtype=torch.long),
        )
        calibrations = {name: Calibration(**fields) for name, fields in value["calibrations"].items()}
        closed_loop = value.get("closed_loop", {})  # earlier cards have none
        return WorldModelCard(Calibrations(calibrations), value["figures"], starts, closed_loop, tensors.get("actions"))
    except (OSError, AttributeError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise WorldloopError(f"{what} is unreadable ({error}); {_REMEDY}") from error


def _read_strings(value: dict[str, Any], key: str) -> tuple[str, ...]:
    """The strings in the list ``value[key]``; raises ``TypeError`` if it is not a list of strings."""
    strings = value[key]
    if not isinstance(strings, list) or not all(isinstance(text, str) for text in strings):
        raise TypeError(f"{key} is {strings}")
    return tuple(strings)
