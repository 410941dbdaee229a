"""What a stage is given to work with, beside its own config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from worldloop.core.interfaces import Reporter
from worldloop.core.specs import SimulatorSpec
from worldloop.core.types import Split
from worldloop.factory.models import Models
from worldloop.rollout.simulation import Simulation
from worldloop.sans.cache import VersionCache
from worldloop.sans.clips import ClipDataset
from worldloop.sans.store import SansStore
from worldloop.training.resume import TrainingSetup


@dataclass(frozen=True)
class Schedule:
    """One iteration of a loop of ``num_iterations`` after iteration 0, as a stage's ``takes_part`` sees it.

    ``has_simulator``: false where episodes come from a recording. ``uses_world_model``: whether the policy improves in
    one (or there is no policy).
    """

    iteration: int
    num_iterations: int
    has_simulator: bool
    uses_world_model: bool

    @property
    def is_first(self) -> bool:
        return self.iteration == 0

    @property
    def is_last(self) -> bool:
        return self.iteration == self.num_iterations


@dataclass(frozen=True)
class StageContext:
    """Everything a stage may touch outside its own config.

    - ``spec``: robot and tasks; ``store``: the dataset; ``models``: policies and world models
    - ``simulation``: the real simulator; ``setup``: where it trains; ``reporter``: what a person sees
    - ``max_imagination_batch``: rows that go through the world model together, 0 for all
    - ``configs``: the configs of all stages by type, see `config_of`
    """

    seed: int
    chunk_length: int
    spec: SimulatorSpec
    store: SansStore
    models: Models
    simulation: Simulation
    setup: TrainingSetup
    reporter: Reporter
    max_imagination_batch: int = 0
    configs: Mapping[type, object] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.setup.device

    def config_of[T](self, kind: type[T]) -> T:
        """The section of the run's config that is of type ``kind``, where a stage shares one with another."""
        config = self.configs[kind]
        assert isinstance(config, kind)
        return config

    def open_clips(self, version: str, split: Split, spec: SimulatorSpec | None = None) -> ClipDataset:
        """Clips of ``split`` in the SANS version called ``version``, seen by the cameras of ``spec`` (default: all).

        A corrupt shard is refused by name.
        """
        return ClipDataset(self.open_cache(version), split, (spec or self.spec).robot.camera_names)

    def open_cache(self, version: str) -> VersionCache:
        """The decoded cache of ``version``; of several ranks the main one builds it, where it has to be built."""
        data_parallel = self.setup.data_parallel
        if not data_parallel.is_main:
            data_parallel.barrier()
        cache = self.store.open_cache(self.store.version(version))
        if data_parallel.is_main:
            data_parallel.barrier()
        return cache
