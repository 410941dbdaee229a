"""What a long stage has done so far, kept in the run directory: cut in its middle, it goes on there.

    partial/NAME/partial.json                  how many steps are done, hashes of the files that belong to them
    partial/NAME/shared_STEPS.safetensors      what every worker holds alike
    partial/NAME/part_I_STEPS.safetensors      what belongs to micro-batch I: its generator, its self-rollout pool

Results do not depend on whether a stage was cut, nor on how often it keeps what it has done.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from worldloop.core.errors import WorldloopError
from worldloop.core.files import disk_errors, hash_file, malformed, read_json, to_json, write_file
from worldloop.core.tensors import load_trained, prefix, strip
from worldloop.stages.context import Context
from worldloop.training.sharding import gather, share_like

PARTIAL_SCHEMA_VERSION = 1


class Kept(Protocol):
    """As a `torch.nn.Module`, but of tensors only."""

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, tensors: dict[str, Tensor]) -> object: ...


class KeptGenerator:
    """The state of a generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def state_dict(self) -> dict[str, Tensor]:
        return {"state": self.generator.get_state()}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        self.generator.set_state(tensors["state"])


class KeptModule:
    """What of a module is trained; the rest is as it was loaded."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}

    def state_dict(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.module.state_dict().items() if name not in self.frozen}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        load_trained(self.module, tensors, self.frozen)


class PartialStage:
    """``resume()`` once, then ``keep(done)`` after every step; see `drop_partial` for the end.

    ``shared`` is alike on every worker, ``parts`` holds what belongs to each of this worker's micro-batches.
    """

    def __init__(
        self, context: Context, name: str, shared: Mapping[str, Kept], parts: Mapping[int, Mapping[str, Kept]]
    ) -> None:
        self.directory = _locate(context, name)
        self.context, self.steps, self.kept_at = context, 0, time.monotonic()
        self.files: dict[str, Mapping[str, Kept]] = {"shared": shared}
        self.files |= {f"part_{number}": kept for number, kept in parts.items()}

    def resume(self) -> int:
        """How many steps are done already; what they led to is restored. Raises `WorldloopError` if it is damaged."""
        index = self.directory / "partial.json"
        if not index.is_file():
            return 0
        what, remedy = f"what {self.directory} keeps", "delete it: the stage then begins anew"
        record = read_json(index, what, PARTIAL_SCHEMA_VERSION, remedy)
        with malformed(what, remedy):
            self.steps = int(record["num_steps"])
            for name, members in self.files.items():
                path = self.directory / f"{name}_{self.steps}.safetensors"
                try:
                    if hash_file(path) != record["sha256"][path.name]:
                        raise WorldloopError(f"{path} is damaged; {remedy}")
                    tensors = load(path.read_bytes())
                except (OSError, SafetensorError) as error:
                    raise WorldloopError(f"{path} is damaged or missing; {remedy}") from error
                for member, kept in members.items():
                    kept.load_state_dict(share_like(strip(member, tensors), kept.state_dict()))
        self.context.log(f"{self.directory.name} goes on from step {self.steps}")
        return self.steps

    def keep(self, done: int, is_last: bool = False) -> None:
        """Write everything down if ``keep_every_s`` have passed since it last was; all workers together.

        ``is_last``: in any case, since others follow that could otherwise not begin without it.
        """
        workers, every = self.context.workers, self.context.keep_every_s
        if every == 0:
            return
        is_due = is_last or time.monotonic() - self.kept_at >= every
        if not workers.any(is_due and workers.is_first):  # the first worker's clock decides
            return
        self.kept_at = time.monotonic()
        for name, members in self.files.items():
            tensors: dict[str, Tensor] = {}
            for member, kept in members.items():
                tensors |= prefix(member, gather(kept.state_dict()))
            if name != "shared" or workers.is_first:
                data = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
                write_file(self.directory / f"{name}_{done}.safetensors", data, str(self.directory))
        workers.wait()
        if workers.is_first:
            present = [path for path in self.directory.glob("*.safetensors") if path.stem.endswith(f"_{done}")]
            record = {
                "schema_version": PARTIAL_SCHEMA_VERSION,
                "num_steps": done,
                "sha256": {path.name: hash_file(path) for path in present},
            }
            write_file(self.directory / "partial.json", to_json(record), str(self.directory))
            with disk_errors(str(self.directory)):
                for path in set(self.directory.glob("*.safetensors")) - set(present):
                    path.unlink()


def has_partial(context: Context, name: str) -> bool:
    """Whether the stage called ``name`` would go on in its middle."""
    return context.workers.any((_locate(context, name) / "partial.json").is_file())


def drop_partial(context: Context, name: str) -> None:
    """Delete what was kept, once the stage's result has been saved."""
    directory = _locate(context, name)
    if context.workers.is_first and directory.exists():
        with disk_errors(str(directory)):
            (directory / "partial.json").unlink(missing_ok=True)
            shutil.rmtree(directory)


def _locate(context: Context, name: str) -> Path:
    return context.run_dir / "partial" / name
