"""Checkpoints within a long training stage: an interrupted stage continues from the last one.

    partial/NAME/partial.json                  how many steps are done, hashes of the files that belong to them
    partial/NAME/shared_STEPS.safetensors      state that is equal on all ranks
    partial/NAME/part_I_STEPS.safetensors      state of microbatch I: its generator, its self-rollout pool

Results depend neither on whether a stage was interrupted, nor on how often it writes a checkpoint.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from worldloop.core.errors import WorldloopError, first_line
from worldloop.core.files import disk_errors, hash_file, malformed, read_json, to_json, write_file
from worldloop.core.interrupts import take_checkpoint_request, wants_checkpoint
from worldloop.core.randomness import make_generator
from worldloop.core.tensors import load_trained, prefix, strip
from worldloop.training.data_parallel import DataParallel
from worldloop.training.sharding import gather, share_like

PARTIAL_SCHEMA_VERSION = 2


@dataclass(frozen=True)
class TrainingSetup:
    """Where a stage trains, and how it is split into microbatches and checkpoints.

    - ``device``: where networks train and imagine
    - ``num_microbatches``: microbatches of every batch, shared by the ranks
    - ``checkpoint_root``: folder of checkpoints within stages; ``None``: none are written
    - ``checkpoint_every_s``: seconds between two checkpoints; 0: none are written
    - ``shard_world_model``: each rank holds only a share of the trained world model (FSDP2)
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    data_parallel: DataParallel = field(default_factory=DataParallel)
    num_microbatches: int = 1
    checkpoint_root: Path | None = None
    checkpoint_every_s: float = 0.0
    shard_world_model: bool = False

    def make_generators(self, *parts: int | str) -> dict[int, torch.Generator]:
        """A generator for each microbatch of this rank, by its number."""
        numbers = self.data_parallel.microbatches(self.num_microbatches)
        return {number: make_generator(*self.name_draws(number, *parts)) for number in numbers}

    def name_draws(self, number: int, *parts: int | str) -> tuple[int | str, ...]:
        """What the random numbers of microbatch ``number`` are derived from."""
        # "micro-batch" keeps its old spelling: another word would give other random numbers
        return parts if self.num_microbatches == 1 else (*parts, "micro-batch", number)

    def has_checkpoint(self, name: str) -> bool:
        """Whether the training called ``name`` has a checkpoint to continue from."""
        directory = self.locate(name)
        return self.data_parallel.any(directory is not None and (directory / "partial.json").is_file())

    def drop_checkpoint(self, name: str) -> None:
        """Delete the checkpoint of ``name``; call it after the stage's result has been saved."""
        directory = self.locate(name)
        if directory is not None and self.data_parallel.is_main and directory.exists():
            with disk_errors(str(directory)):
                (directory / "partial.json").unlink(missing_ok=True)
                shutil.rmtree(directory)

    def locate(self, name: str) -> Path | None:
        return None if self.checkpoint_root is None else self.checkpoint_root / name


class Stateful(Protocol):
    """A part of the training whose state a checkpoint stores. The methods are those of `torch.nn.Module`."""

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, tensors: dict[str, Tensor]) -> object: ...


class GeneratorState:
    """`Stateful` of a generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def state_dict(self) -> dict[str, Tensor]:
        return {"state": self.generator.get_state()}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        self.generator.set_state(tensors["state"])


class TrainableState:
    """`Stateful` of a module without its frozen parameters, which never change."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}

    def state_dict(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.module.state_dict().items() if name not in self.frozen}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        load_trained(self.module, tensors, self.frozen)


class TrainingCheckpoint:
    """The checkpoint of one training: call ``restore()`` once, then ``save(num_steps)`` after every step.

    ``shared`` is the state that is equal on all ranks, ``by_microbatch`` the state of each of this rank's microbatches.
    `TrainingSetup.drop_checkpoint` deletes the checkpoint at the end.
    """

    def __init__(
        self,
        setup: TrainingSetup,
        name: str,
        shared: Mapping[str, Stateful],
        by_microbatch: Mapping[int, Mapping[str, Stateful]],
    ) -> None:
        self.setup, self.directory = setup, setup.locate(name)
        self.num_steps, self.saved_at = 0, time.monotonic()
        self.files: dict[str, Mapping[str, Stateful]] = {"shared": shared}
        self.files |= {f"part_{number}": states for number, states in by_microbatch.items()}

    def restore(self) -> int:
        """Load the checkpoint; returns the number of steps that are done, 0 if there is no checkpoint.

        Raises `WorldloopError` if the checkpoint is damaged, of an older worldloop, or of another training.
        """
        if self.directory is None or not (self.directory / "partial.json").is_file():
            return 0
        what, remedy = f"what {self.directory} keeps", "delete it: the stage then begins anew"
        record = read_json(self.directory / "partial.json", what, PARTIAL_SCHEMA_VERSION, remedy)
        if record["schema_version"] != PARTIAL_SCHEMA_VERSION:
            raise WorldloopError(f"{what} was written by an older worldloop; {remedy}")
        with malformed(what, remedy):
            self.num_steps = int(record["num_steps"])
            for name, states in self.files.items():
                path = self.directory / f"{name}_{self.num_steps}.safetensors"
                try:
                    if hash_file(path) != record["sha256"][path.name]:
                        raise WorldloopError(f"{path} is damaged; {remedy}")
                    tensors = load(path.read_bytes())
                except (OSError, SafetensorError) as error:
                    raise WorldloopError(f"{path} is damaged or missing; {remedy}") from error
                try:
                    for key, state in states.items():
                        state.load_state_dict(share_like(strip(key, tensors), state.state_dict()))
                except RuntimeError as error:
                    raise WorldloopError(f"{path} is of another training ({first_line(error)}); {remedy}") from error
        return self.num_steps

    def save(self, num_steps: int, always: bool = False) -> None:
        """Write a checkpoint if ``checkpoint_every_s`` have passed since the last one. Every rank must call it.

        It is written earlier if a signal ends the run or asks for it, see `core.interrupts`. ``always``: write it even
        if less time has passed, for a training that another one follows. Nothing is ever written without a
        ``checkpoint_root`` or with ``checkpoint_every_s`` 0.
        """
        data_parallel, every_s = self.setup.data_parallel, self.setup.checkpoint_every_s
        if self.directory is None or every_s == 0:
            return
        is_due = always or wants_checkpoint() or time.monotonic() - self.saved_at >= every_s
        if not data_parallel.any(is_due and data_parallel.is_main):  # the main rank's clock and signals decide
            return
        take_checkpoint_request()
        self.saved_at = time.monotonic()
        for name, states in self.files.items():
            tensors: dict[str, Tensor] = {}
            for key, state in states.items():
                tensors |= prefix(key, gather(state.state_dict()))
            if name != "shared" or data_parallel.is_main:
                data = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
                write_file(self.directory / f"{name}_{num_steps}.safetensors", data, str(self.directory))
        data_parallel.barrier()
        if data_parallel.is_main:
            present = [path for path in self.directory.glob("*.safetensors") if path.stem.endswith(f"_{num_steps}")]
            record = {
                "schema_version": PARTIAL_SCHEMA_VERSION,
                "num_steps": num_steps,
                "sha256": {path.name: hash_file(path) for path in present},
            }
            write_file(self.directory / "partial.json", to_json(record), str(self.directory))
            with disk_errors(str(self.directory)):
                for path in set(self.directory.glob("*.safetensors")) - set(present):
                    path.unlink()
