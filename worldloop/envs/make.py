"""Make environments from the checkpoint of a checked world model; `gymnasium.make` and ``make_vec`` call this."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worldloop.core.device import choose_device
from worldloop.core.errors import WorldloopError
from worldloop.core.success import Calibrations
from worldloop.core.types import Observation
from worldloop.envs.vector_env import WorldModelVectorEnv
from worldloop.envs.world_model_env import WorldModelEnv
from worldloop.factory.pretrained import load_checked_world_model
from worldloop.world_model.model import VideoWorldModel


def make_env(
    checkpoint: str | Path,
    *,
    task: str = "",
    starts: Observation | None = None,
    device: str = "auto",
    pretrained: str = "",
    **options: Any,
) -> WorldModelEnv:
    """``gymnasium.make("worldloop/WorldModel-v0", checkpoint=...)``.

    Arguments and errors as for `make_vector_env`; ``options`` are those of `WorldModelEnv`.
    """
    return WorldModelEnv(*_load_parts(checkpoint, task, starts, device, pretrained), task=task, **options)


def make_vector_env(
    checkpoint: str | Path,
    num_envs: int = 1,
    *,
    task: str = "",
    starts: Observation | None = None,
    device: str = "auto",
    pretrained: str = "",
    **options: Any,
) -> WorldModelVectorEnv:
    """``gymnasium.make_vec("worldloop/WorldModel-v0", num_envs=..., checkpoint=...)``.

    - ``checkpoint``: directory of a checked world model, hf://owner/model (or with @revision) on the Hub, or a run
      directory, for the run's latest world model
    - ``task``: the only task to do; "": all tasks of the checkpoint
    - ``starts``: an `Observation` of N rows to start from instead of the checkpoint's own
    - ``device``: ``auto`` (a GPU if there is one), ``cpu`` or ``cuda``
    - ``pretrained``: where the pretrained pipeline that it was fine-tuned from is now; "": where it was then
    - ``options``: those of `WorldModelVectorEnv`

    Raises `WorldloopError` for anything that does not fit.
    """
    parts = _load_parts(checkpoint, task, starts, device, pretrained)
    return WorldModelVectorEnv(*parts, num_envs, task=task, **options)


def _load_parts(
    checkpoint: str | Path, task: str, starts: Observation | None, device: str, pretrained: str
) -> tuple[VideoWorldModel, Observation, Calibrations]:
    """The world model, start observations and calibrations of an environment."""
    world_model, card = load_checked_world_model(Path(checkpoint), pretrained)
    if task and task not in world_model.spec.task_ids:
        known = ", ".join(world_model.spec.task_ids)
        raise WorldloopError(f"task {task!r} is not known to checkpoint {checkpoint}: it imagines {known}")
    world_model = world_model.to(choose_device(device)).for_imagination()
    return world_model, card.starts if starts is None else starts, card.calibrations
