"""What stands beside a world model's weights once it has been checked: how to read it, how good it is, where to start.

    DIRECTORY/card.json            calibration, the check's figures, sha256 of the weights and starts they belong to
    DIRECTORY/starts.safetensors   observations that training episodes began with

With its card a checkpoint is an environment by itself, away from the run that made it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from worldloop.core.errors import WorldloopError
from worldloop.core.files import hash_file, read_json, to_json, write_file
from worldloop.core.success import Calibration
from worldloop.core.types import Observation
from worldloop.sans.clips import ClipDataset

CARD_SCHEMA_VERSION = 1
NUM_STARTS = 64  # observations to start from
_REMEDY = "check the world model again, or restore its directory from a copy"


@dataclass(frozen=True)
class WorldModelCard:
    """``figures``: plain values, what the check measured; ``starts``: N observations of one frame with proprio."""

    calibration: Calibration
    figures: dict[str, Any]
    starts: Observation


def choose_starts(dataset: ClipDataset) -> Observation:
    """First observations of the latest episodes of ``dataset``, the policy's own where there are any."""
    episodes = dataset.episode_index(source="policy")
    episodes = (episodes if len(episodes) else dataset.episode_index())[-NUM_STARTS:]
    return dataset.observation(torch.stack([episodes, torch.zeros_like(episodes)], dim=1))


def write_card(directory: Path, card: WorldModelCard) -> None:
    """Write the card beside the weights in ``directory``; ``card.json`` comes last and makes it valid."""
    starts = card.starts
    assert starts.proprio is not None
    tensors = {"frames": starts.frames[:, -1:].contiguous(), "proprio": starts.proprio.contiguous()}
    what = f"the card of checkpoint {directory}"
    write_file(directory / "starts.safetensors", save(tensors), what)
    value = {
        "schema_version": CARD_SCHEMA_VERSION,
        "calibration": asdict(card.calibration),
        "figures": card.figures,
        "instruction": list(starts.instruction),
        "weights_sha256": hash_file(directory / "model.safetensors"),
        "starts_sha256": hash_file(directory / "starts.safetensors"),
    }
    write_file(directory / "card.json", to_json(value), what)


def read_card(directory: Path) -> WorldModelCard:
    """Raises `WorldloopError` where the world model was not checked, or the card is damaged or of other weights."""
    what = f"the card of checkpoint {directory}"
    if not (directory / "card.json").is_file():
        raise WorldloopError(
            f"checkpoint {directory} has no card.json: until it is checked nobody knows how to read its success head; "
            "let the check_world_model stage of its run end"
        )
    value = read_json(directory / "card.json", what, CARD_SCHEMA_VERSION, _REMEDY)
    try:
        for file in ("model", "starts"):
            key = {"model": "weights_sha256", "starts": "starts_sha256"}[file]
            if hash_file(directory / f"{file}.safetensors") != value[key]:
                raise WorldloopError(f"{what} does not belong to {file}.safetensors beside it; {_REMEDY}")
        tensors = load((directory / "starts.safetensors").read_bytes())
        instruction = tuple(value["instruction"])
        if not all(isinstance(text, str) for text in instruction):
            raise TypeError(f"instruction is {instruction}")
        starts = Observation(
            tensors["frames"], tensors["proprio"], instruction, torch.zeros(len(instruction), dtype=torch.long)
        )
        return WorldModelCard(Calibration(**value["calibration"]), value["figures"], starts)
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise WorldloopError(f"{what} is unreadable ({error}); {_REMEDY}") from error
