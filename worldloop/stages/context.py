"""What a stage is given to work with. The implementation is composed above (`worldloop.loop.session`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch

from worldloop.core.success import Calibration
from worldloop.core.types import Episode, InitialStates, Normalisation, Observation, SimulatorSpec, Split
from worldloop.reporting.tensorboard import Writer
from worldloop.rollout.rollout import RolloutJob
from worldloop.sans.store import SansStore
from worldloop.training.data_parallel import Workers


class Progress(Protocol):
    """Progress of one stage; ``advance`` may raise ``KeyboardInterrupt`` where the run was interrupted."""

    def advance(self, count: int = 1, **figures: float) -> None: ...


class Context(Protocol):
    """Everything a stage may touch outside its own config.

    ``device`` is where networks train; ``precision`` of a network is its own config. ``seed`` is the run's. Training
    batches fall into ``num_microbatches`` parts, shared by ``workers``; what a stage has done is kept every
    ``keep_every_s``. Only the first of the workers writes, logs and shows progress: the others' calls do nothing.
    """

    run_dir: Path
    seed: int
    chunk_length: int
    device: torch.device
    spec: SimulatorSpec
    store: SansStore
    simulator_config: Any
    workers: Workers  # in a training stage: who else trains
    num_microbatches: int
    keep_every_s: float
    rows_at_once: int  # rows that go through the world model together, 0: all that fit
    shards_world_model: bool  # whether the workers share its weights out while they train it

    def progress(self, total: int, unit: str) -> AbstractContextManager[Progress]: ...

    def writer(self, name: str, purge_step: int) -> AbstractContextManager[Writer]: ...

    def log(self, line: str) -> None: ...

    def initial_states(self, split: Split, num_states: int) -> InitialStates:
        """The first ``num_states`` of the stored list of ``split``; the list is drawn on first use."""
        ...

    def run_rollouts(self, jobs: Iterable[RolloutJob]) -> Iterator[list[Episode]]:
        """Execute blocks on the pool of simulators; results come in the order of the jobs."""
        ...

    def new_policy(self, normalisation: Normalisation, seed: int) -> Any: ...

    def load_policy(self, path: str) -> Any: ...

    def save_policy(self, policy: Any, path: str) -> None: ...

    def new_world_model(self, normalisation: Normalisation, seed: int) -> Any: ...

    def load_world_model(self, path: str) -> Any: ...

    def save_world_model(self, world_model: Any, path: str) -> None: ...

    def save_card(self, path: str, calibration: Calibration, figures: dict[str, Any], starts: Observation) -> None:
        """Put what was found out about the world model at ``path`` beside its weights."""
        ...
