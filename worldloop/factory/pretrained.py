"""Load and save world models by run, by folder, or by name on the Hub; export policies to LeRobot.

`worldloop` offers two functions to the public:

model = worldloop.from_pretrained("runs/pushcube_cpu")
worldloop.save_pretrained("runs/pushcube_cpu", "exported")
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from worldloop.core.device import choose_device
from worldloop.core.errors import WorldloopError
from worldloop.core.files import whole_directory
from worldloop.core.hub import HUB_ADDRESS, HUB_NAME
from worldloop.factory.checkpoints import load_policy, load_world_model
from worldloop.policies.lerobot.policy import LeRobotPolicy
from worldloop.storage.card import WorldModelCard, read_card
from worldloop.storage.hub import export_world_model, fetch_from_hub
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
    return _find(checkpoint, "world_model", "fit_world_model")


def export_policy(checkpoint: Path, out: Path) -> None:
    """Write the policy ``checkpoint``, a run or a policy's directory, to the new folder ``out`` as LeRobot does.

    ``out`` holds config, weights and processors. Raises `WorldloopError` if it exists, or if the policy is not of
    kind lerobot.
    """
    if out.exists():
        raise WorldloopError(f"{out} exists: export into a folder that does not exist yet")
    directory = _find(checkpoint, "policy", "clone_policy")
    policy = load_policy(directory)
    if not isinstance(policy, LeRobotPolicy):
        raise WorldloopError(
            f"{directory} holds a {type(policy).__name__}: LeRobot can load policies of policy.kind=lerobot alone"
        )
    with whole_directory(out, f"the exported policy {out}") as folder:
        policy.save_pretrained(folder)


def _find(checkpoint: Path, kind: Literal["policy", "world_model"], stage: str) -> Path:
    """The directory of ``checkpoint``, or that of the current ``kind``, which ``stage`` makes, of a run."""
    if not checkpoint.exists():
        hint = f"; on the Hub it would be hf://{checkpoint}" if HUB_NAME.fullmatch(str(checkpoint)) else ""
        hint = hint if kind == "world_model" else ""
        what = kind.replace("_", " ")
        raise WorldloopError(f"checkpoint {checkpoint} does not exist: give the folder of a run, or of a {what}{hint}")
    if not (checkpoint / "state.json").is_file():
        return checkpoint
    path = getattr(RunDirectory(checkpoint).read_state(), kind)
    if not path:
        raise WorldloopError(f"run {checkpoint} has no {kind.replace('_', ' ')} yet: let its {stage} stage end first")
    return checkpoint / str(path)
