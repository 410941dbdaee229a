"""What a stage gets beside its own config: its place in the loop, and the objects it works with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from worldloop.core.reporting import Reporter
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
    """One iteration of the loop, for a stage's ``takes_part``. The loop has iteration 0 and ``num_iterations`` more.

    - ``has_simulator``: false if episodes come from a recording or from a robot; ``has_robot``: they come from a robot
    - ``uses_world_model``: a world model is fitted, because the policy improves in it, or critics or a planner build on
      it, or it is aligned, or there is no policy; ``in_rounds``: the policy improves in it round by round
    - ``uses_value``: there are critics; ``uses_advantages``: the method learns from labelled advantages
    - ``uses_inverse_dynamics``: inverse dynamics models are fitted; ``uses_planner``: a planner as well;
      ``policy_is_planned``: the policy builds on a planner, so that all of them are fitted in iteration 0 too
    - ``policy_is_gated``: the policy chooses between experts
    """

    iteration: int
    num_iterations: int
    has_simulator: bool
    uses_world_model: bool
    in_rounds: bool = True
    uses_value: bool = False
    uses_advantages: bool = False
    uses_inverse_dynamics: bool = False
    uses_planner: bool = False
    policy_is_planned: bool = False
    policy_is_gated: bool = False
    has_robot: bool = False

    @property
    def has_policy(self) -> bool:
        """Whether there is a policy, and something that it acts in."""
        return self.has_simulator or self.has_robot

    @property
    def is_first(self) -> bool:
        return self.iteration == 0

    @property
    def fits_models(self) -> bool:
        """Whether the world model, and what is fitted beside it, is fitted anew."""
        return not self.is_first or self.policy_is_planned

    @property
    def is_last(self) -> bool:
        return self.iteration == self.num_iterations


@dataclass(frozen=True)
class StageContext:
    """Everything that a stage may use outside its own config.

    - ``spec``: robot and tasks; ``store``: the dataset; ``models``: policies, world models and critics
    - ``simulation``: the real simulator, only with ``has_simulator``; ``setup``: device, ranks and checkpoints of
      training; ``reporter``: progress, log
    - ``max_imagination_batch``: most rows in the world model at once; 0: all
    - ``configs``: sections of the run's config by type, see `config_of`
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
    has_simulator: bool = True
    configs: Mapping[type, object] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.setup.device

    def config_of[T](self, kind: type[T]) -> T:
        """The section of type ``kind`` in the run's config, for settings that stages share."""
        config = self.configs[kind]
        assert isinstance(config, kind)
        return config

    def open_clips(self, version: str, split: Split, spec: SimulatorSpec | None = None) -> ClipDataset:
        """Clips of ``split`` in the SANS version ``version``, with the cameras of ``spec`` (default: all).

        Raises `WorldloopError`, with the shard's name, for a corrupt shard.
        """
        spec = spec or self.spec
        return ClipDataset(self.open_cache(version), split, spec.robot.camera_names, spec.tasks)

    def open_cache(self, version: str) -> VersionCache:
        """The decoded cache of ``version``. The main rank builds it if needed; the other ranks wait."""
        data_parallel, found = self.setup.data_parallel, self.store.version(version)
        if data_parallel.is_main:
            return self.store.open_cache(found, on_shard=data_parallel.barrier)
        # One barrier for each shard: hashing all of a large dataset takes longer than ranks wait for one another.
        for _ in found.shards:
            data_parallel.barrier()
        return self.store.open_cache(found)
