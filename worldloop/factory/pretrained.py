"""Load and save world models by run, by folder, or by name on the Hub. `worldloop` offers the two public functions.

model = worldloop.from_pretrained("runs/pushcube_cpu")
worldloop.save_pretrained("runs/pushcube_cpu", "exported")
"""

from __future__ import annotations

from pathlib import Path

from worldloop.core.device import choose_device
from worldloop.core.errors import WorldloopError
from worldloop.factory.checkpoints import load_world_model
from worldloop.storage.card import WorldModelCard, read_card
from worldloop.storage.hub import HUB_ADDRESS, HUB_NAME, export_world_model, fetch_from_hub
from worldloop.storage.run_directory import RunDirectory
from worldloop.world_model.model import VideoWorldModel


def from_pretrained(checkpoint: str | Path, device: str = "auto", pretrained: str = "") -> VideoWorldModel:
    """The world model called ``checkpoint``, in eval mode on ``device``.

    - ``checkpoint``: a run directory (for the run's latest world model), a world model's own directory, or
      hf://owner/model on the Hub, with @revision if another one than the newest is meant
    - ``device``: ``auto`` (a GPU if there is one), ``cpu`` or ``cuda``
    - ``pretrained``: where the pretrained pipeline that it was fine-tuned from is now; "": where it was then

    Raises `WorldloopError` for anything that does not fit.
    """
    return load_world_model(find_world_model(Path(checkpoint)), pretrained).to(choose_device(device))


def save_pretrained(checkpoint: str | Path, out: str | Path, name: str = "") -> None:
    """Write a checked world model with its model card to the new folder ``out``; see `export_world_model`."""
    export_world_model(find_world_model(Path(checkpoint)), Path(out), name)


def load_checked_world_model(checkpoint: Path, pretrained: str = "") -> tuple[VideoWorldModel, WorldModelCard]:
    """A checked world model in eval mode, and its card: how to read its heads, and observations to start from.

    Arguments and errors as for `from_pretrained`.
    """
    directory = find_world_model(checkpoint)
    world_model = load_world_model(directory, pretrained)
    return world_model, read_card(directory)


def find_world_model(checkpoint: Path) -> Path:
    """The directory of the world model ``checkpoint``, as `from_pretrained` takes it; downloads it from the Hub.

    Raises `WorldloopError` if it is not there, if the run has no world model yet, or if the download fails.
    """
    if (address := HUB_ADDRESS.fullmatch(str(checkpoint))) is not None:
        return fetch_from_hub(address["name"], address["revision"])
    if not checkpoint.exists():
        hint = f"; on the Hub it would be hf://{checkpoint}" if HUB_NAME.fullmatch(str(checkpoint)) else ""
        raise WorldloopError(
            f"checkpoint {checkpoint} does not exist: give the folder of a run, or of a world model{hint}"
        )
    if not (checkpoint / "state.json").is_file():
        return checkpoint
    path = RunDirectory(checkpoint).read_state().world_model
    if not path:
        raise WorldloopError(f"run {checkpoint} has no world model yet: let its fit_world_model stage end first")
    return checkpoint / path
