"""The `Context` that stages work with, composed from a run's configuration, runtime and directory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch

from worldloop.config.schema import LoopConfig
from worldloop.core.device import choose_device
from worldloop.core.randomness import derive_seed
from worldloop.core.success import Calibration
from worldloop.core.types import Episode, InitialStates, Normalisation, Observation, Split
from worldloop.factory import build, checkpoints
from worldloop.reporting.progress import Display
from worldloop.reporting.tensorboard import SilentWriter, open_writer
from worldloop.rollout import jobs as rollout_jobs
from worldloop.rollout.rollout import RolloutJob
from worldloop.sans.store import SansStore
from worldloop.storage.card import WorldModelCard, write_card
from worldloop.storage.run_directory import RunDirectory
from worldloop.training.data_parallel import Workers

# Validation and evaluation states are the same for every run and seed; training states follow the run's seed.
_FIXED_SEED = 0
_DRAWN_AT_ONCE = 50  # states per simulator call


class Executor(Protocol):
    def map(self, function: Any, items: Iterable[Any]) -> Iterator[Any]: ...


class _Bar:
    def __init__(self, display: Display) -> None:
        self._display = display

    def advance(self, count: int = 1, **figures: float) -> None:
        self._display.advance(count, figures)


class Session:
    """See `worldloop.stages.context.Context`."""

    def __init__(
        self,
        config: LoopConfig,
        run_dir: Path,
        stage: str,
        executor: Executor,
        display: Display,
        workers: Workers | None = None,
    ) -> None:
        self.config = config
        self.run_dir = run_dir
        self.seed = config.seed
        self.chunk_length = config.chunk_length
        self.simulator_config = config.simulator
        self.spec = build.build_spec(config)
        self.store = SansStore(run_dir / "sans")
        self.device = choose_device(config.resources.device)
        self.workers = workers or Workers()
        self.num_microbatches = config.num_microbatches
        self.keep_every_s = config.resources.keep_every_s
        self.rows_at_once = config.resources.rows_at_once
        self.shards_world_model = config.resources.shard_world_model and self.workers.size > 1
        self._stage, self._executor, self._display = stage, executor, display
        torch.set_num_threads(config.resources.num_threads)

    @contextmanager
    def progress(self, total: int, unit: str) -> Iterator[_Bar]:
        self._display.open(self._stage, total, unit)
        try:
            yield _Bar(self._display)
        finally:
            self._display.close()

    def writer(self, name: str, purge_step: int) -> AbstractContextManager[Any]:
        if not self.workers.is_first:
            return nullcontext(SilentWriter())
        return open_writer(self.run_dir / "tensorboard" / name, purge_step)

    def log(self, line: str) -> None:
        self._display.log(f"  {line}")

    def initial_states(self, split: Split, num_states: int) -> InitialStates:
        directory = RunDirectory(self.run_dir)
        states = directory.read_initial_states(split)
        have = 0 if states is None else len(states)
        if states is None or have < num_states:
            seed = derive_seed(self.seed, "initial_states") if split == "train" else _FIXED_SEED
            blocks = [
                (self.simulator_config, split, min(_DRAWN_AT_ONCE, num_states - first), seed, first)
                for first in range(have, num_states, _DRAWN_AT_ONCE)
            ]
            drawn = self._executor.map(rollout_jobs.draw_initial_states, blocks)
            states = InitialStates.cat([*([] if states is None else [states]), *drawn])
            directory.write_initial_states(states)
        return states.select(range(num_states))

    def run_rollouts(self, jobs: Iterable[RolloutJob]) -> Iterator[list[Episode]]:
        return self._executor.map(rollout_jobs.execute_rollout_job, jobs)

    def new_policy(self, normalisation: Normalisation, seed: int) -> Any:
        return build.build_policy(self.config.policy, self.spec, normalisation, self.chunk_length, seed)

    def load_policy(self, path: str) -> Any:
        return checkpoints.load_policy(self.run_dir / path)

    def save_policy(self, policy: Any, path: str) -> None:
        if self.workers.is_first:
            checkpoints.save_policy(policy, self.run_dir / path, self.config.policy, version=path)
        self.workers.wait()

    def new_world_model(self, normalisation: Normalisation, seed: int) -> Any:
        return build.build_world_model(self.config.world_model, self.spec, normalisation, seed)

    def load_world_model(self, path: str) -> Any:
        return checkpoints.load_world_model(self.run_dir / path)

    def save_world_model(self, world_model: Any, path: str) -> None:
        if self.workers.is_first:
            checkpoints.save_world_model(world_model, self.run_dir / path)
        self.workers.wait()

    def save_card(self, path: str, calibration: Calibration, figures: dict[str, Any], starts: Observation) -> None:
        write_card(self.run_dir / path, WorldModelCard(calibration, figures, starts))
