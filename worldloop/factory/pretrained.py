"""A world model by the name of its run, its folder or on the Hub. `worldloop` itself offers the two public functions.

model = worldloop.from_pretrained("runs/pushcube_cpu")
worldloop.save_pretrained("runs/pushcube_cpu", "exported")
"""

from __future__ import annotations

from pathlib import Path

from worldloop.core.device import choose_device
from worldloop.core.errors import WorldloopError
from worldloop.factory.checkpoints import load_world_model
from worldloop.storage.card import WorldModelCard, read_card
from worldloop.storage.hub import HUB_NAME, export_world_model, fetch_from_hub
from worldloop.storage.run_directory import RunDirectory
from worldloop.world_model.model import VideoWorldModel


def from_pretrained(checkpoint: str | Path, device: str = "auto", pretrained: str = "") -> VideoWorldModel:
    """The world model called ``checkpoint``, in eval mode on ``device``.

    - ``checkpoint``: a run directory, which means its latest world model, a world model's own directory, or its name on
      the Hub (owner/model)
    - ``device``: ``auto`` (a GPU where there is one), ``cpu`` or ``cuda``
    - ``pretrained``: the published pipeline that it was fine-tuned from, if that is no longer where it was

    Raises `WorldloopError` for anything that does not fit.
    """
    return load_world_model(find_world_model(Path(checkpoint)), pretrained).to(choose_device(device))


def save_pretrained(checkpoint: str | Path, out: str | Path) -> None:
    """Write a checked world model with its model card to the new folder ``out``, see `worldloop.storage.hub`."""
    export_world_model(find_world_model(Path(checkpoint)), Path(out))


def load_checked_world_model(checkpoint: Path, pretrained: str = "") -> tuple[VideoWorldModel, WorldModelCard]:
    """A checked world model in eval mode, and its card: how to read its heads, and observations to start from.

    Arguments and errors as for `from_pretrained`.
    """
    directory = find_world_model(checkpoint)
    world_model = load_world_model(directory, pretrained)
    return world_model, read_card(directory)


def find_world_model(checkpoint: Path) -> Path:
    """``checkpoint``, or the latest world model of the run that it is, or a copy of the one of that name on the Hub.

    Raises `WorldloopError` where there is none.
    """
    if not checkpoint.exists() and HUB_NAME.fullmatch(str(checkpoint)):
        return fetch_from_hub(str(checkpoint))
    if not (checkpoint / "state.json").is_file():
        return checkpoint
    path = RunDirectory(checkpoint).read_state().world_model
    if not path:
        raise WorldloopError(f"run {checkpoint} has no world model yet: let its fit_world_model stage end first")
    return checkpoint / path
