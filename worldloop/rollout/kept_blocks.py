"""Blocks of episodes that are kept until their stage has ended, so that an interrupted stage does not repeat them.

    partial/episodes/KEY.safetensors   one block; KEY is a hash of its job

A job gives the same episodes whenever it runs, so a kept block is as good as a new one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from worldloop.core.errors import WorldloopError
from worldloop.core.files import hash_file, write_file
from worldloop.core.types import Episode, EpisodeMeta
from worldloop.core.version import __version__
from worldloop.factory.build import build_simulator_spec, choose_simulator
from worldloop.rollout.jobs import EpisodeSummary, RolloutJob, execute_rollout_job
from worldloop.sans.shard import meta_to_json

_ARRAYS = ("proprio", "actions", "valid", "rewards", "success", "distances_m", "sim_state")


class KeptBlocks:
    """The kept blocks of the run in ``run_dir``."""

    def __init__(self, run_dir: Path) -> None:
        self.directory = run_dir / "partial/episodes"

    def find(self, job: RolloutJob) -> list[Episode] | list[EpisodeSummary] | None:
        """What ``job`` keeps of its episodes, if it is there; ``None`` also if the file is damaged."""
        path = self._locate(job)
        if not path.exists():
            return None
        try:
            return _read(path, Episode if job.keeps == "episode" else EpisodeSummary)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None

    def keep(self, job: RolloutJob, episodes: Sequence[Episode | EpisodeSummary]) -> None:
        """Write the result of ``job``. Raises `WorldloopError` if the disk is full or cannot be written."""
        arrays: dict[str, np.ndarray] = {}
        for number, episode in enumerate(episodes):
            own = {f"frames.{camera}": images for camera, images in episode.frames.items()}
            names = _ARRAYS if isinstance(episode, Episode) else ("proprio",)
            own |= {name: getattr(episode, name) for name in names}
            arrays |= {f"{number}.{name}": np.ascontiguousarray(array) for name, array in own.items()}
        record = {
            "meta": [meta_to_json(episode.meta) for episode in episodes],
            "cameras": [list(episode.frames) for episode in episodes],
            "values": [_list_values(episode) for episode in episodes],
        }
        write_file(self._locate(job), save(arrays, {"episodes": json.dumps(record)}), "the episodes of this stage")

    def drop(self) -> None:
        """Delete all blocks; call it after the stage's result has been saved."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _locate(self, job: RolloutJob) -> Path:
        return self.directory / f"{hash_job(job)}.safetensors"


def _list_values(episode: Episode | EpisodeSummary) -> dict[str, Any]:
    """The fields that are single values."""
    if isinstance(episode, EpisodeSummary):
        return {"num_env_steps": episode.num_env_steps}
    return {"terminated": bool(episode.terminated), "truncated": bool(episode.truncated)}


def _read(path: Path, kind: type[Episode] | type[EpisodeSummary]) -> list[Any]:
    with safe_open(path, "numpy") as file:
        record = json.loads(file.metadata()["episodes"])
        arrays: list[dict[str, np.ndarray]] = [{} for _ in record["meta"]]
        for key in file.keys():  # noqa: SIM118 (not a dictionary)
            number, _, name = key.partition(".")
            arrays[int(number)][name] = file.get_tensor(key)
    episodes: list[Any] = []
    for meta, cameras, values, own in zip(record["meta"], record["cameras"], record["values"], arrays, strict=True):
        frames = {camera: own.pop(f"frames.{camera}") for camera in cameras}
        fields: dict[str, Any] = {"meta": EpisodeMeta(**meta), "frames": frames, **values, **own}
        episodes.append(kind(**fields))
    return episodes


def execute_and_keep(kept: KeptBlocks, job: RolloutJob) -> list[Episode] | list[EpisodeSummary]:
    """Run ``job`` and keep its result, in the simulator's process: so blocks that end early are kept early.

    A disk that takes no more ends nothing here; the stage's own result will meet it.
    """
    episodes = execute_rollout_job(job)
    with suppress(WorldloopError):
        kept.keep(job, episodes)
    return episodes


def hash_job(job: RolloutJob) -> str:
    """A hash of all that the episodes of ``job`` follow from, with the files of its checkpoints by size and time.

    The versions of worldloop and of the simulator count, and the source of a simulator of one's own. It is the same on
    another machine, in a run folder of another place: a copy of the run keeps the times.
    """
    digest = hashlib.sha256()
    simulator_class, _ = choose_simulator(job.simulator)
    _feed(digest, (__version__, build_simulator_spec(job.simulator).simulator_version), {})
    source = getattr(sys.modules.get(simulator_class.__module__), "__file__", None)  # a notebook's classes have none
    if source and not simulator_class.__module__.startswith("worldloop."):
        _feed(digest, hash_file(Path(source)), {})
    checkpoints = [
        job.policy,
        None if job.swap is None else job.swap.world_model,
        None if job.video is None else job.video.inverse_dynamics,
    ]
    names = {path: "/".join(Path(path).parts[-2:]) for path in filter(None, checkpoints)}  # wherever the run is
    _feed(digest, job, names)
    for path in filter(None, checkpoints):
        for file in sorted(file for file in Path(path).rglob("*") if file.is_file()):
            _feed(digest, (file.name, file.stat().st_size, file.stat().st_mtime_ns), names)
    return digest.hexdigest()[:32]


def _feed(digest: Any, value: Any, names: Mapping[str, str]) -> None:
    """Add ``value`` to ``digest``: dataclasses, mappings, sequences, tensors and plain values.

    A text that ``names`` has is replaced by its name there.
    """
    if isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().numpy().tobytes())
    elif dataclasses.is_dataclass(value):
        digest.update(type(value).__name__.encode())
        for field in dataclasses.fields(value):
            _feed(digest, getattr(value, field.name), names)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _feed(digest, (key, item), names)
    elif isinstance(value, tuple | list):
        digest.update(f"{len(value)}".encode())
        for item in value:
            _feed(digest, item, names)
    else:
        shown = names.get(value, value) if isinstance(value, str) else value
        digest.update(f"\x1f{shown!r}".encode())
