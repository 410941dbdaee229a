"""The networks of one run: make new ones from its config, save and load its checkpoints."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from worldloop.core.interfaces import Policy
from worldloop.core.specs import SimulatorSpec
from worldloop.core.success import Calibrations
from worldloop.core.types import Normalisation, Observation
from worldloop.executability.inverse_dynamics import InverseDynamics, InverseDynamicsConfig
from worldloop.factory import build, checkpoints
from worldloop.factory.config import PolicyConfig
from worldloop.policies.planner.policy import PlannerPolicy
from worldloop.storage.card import WorldModelCard, read_card, write_card
from worldloop.training.data_parallel import DataParallel
from worldloop.value.config import ValueConfig
from worldloop.value.critic import Critic
from worldloop.world_model.config import WorldModelConfig
from worldloop.world_model.model import VideoWorldModel
from worldloop.world_model.planner import VideoPlanner


class Models:
    """Makes, saves and loads the policies, world models and critics of one run.

    Paths are relative to the run directory. Only the main rank saves; the other ranks wait for it.
    """

    def __init__(
        self,
        policy: PolicyConfig,
        world_model: WorldModelConfig,
        value: ValueConfig,
        spec: SimulatorSpec,
        chunk_length: int,
        run_dir: Path,
        data_parallel: DataParallel,
    ) -> None:
        self.policy_config, self.world_model_config, self.value_config = policy, world_model, value
        self.spec, self.chunk_length = spec, chunk_length
        self.run_dir, self.data_parallel = run_dir, data_parallel

    def has(self, path: str) -> bool:
        """Whether a checkpoint has been saved at ``path``."""
        return self.data_parallel.any((self.run_dir / path / "checkpoint.json").is_file())

    def new_policy(self, normalisation: Normalisation, seed: int, planner: str = "") -> Policy:
        """A new policy; one that builds on a planner gets that of the policy at ``planner``, "" if there is none."""
        make_planner = partial(self.load_planner, planner) if planner else None
        return build.build_policy(self.policy_config, self.spec, normalisation, self.chunk_length, seed, make_planner)

    def load_policy(self, path: str) -> Policy:
        return checkpoints.load_policy(self.run_dir / path, own_kind=self.policy_config.kind)

    def save_policy(self, policy: Policy, path: str) -> None:
        if self.data_parallel.is_main:
            checkpoints.save_policy(policy, self.run_dir / path, self.policy_config, version=path)
        self.data_parallel.barrier()

    def new_world_model(self, normalisation: Normalisation, seed: int) -> VideoWorldModel:
        return build.build_world_model(self.world_model_config, self.spec, normalisation, seed)

    def load_world_model(self, path: str) -> VideoWorldModel:
        return checkpoints.load_world_model(self.run_dir / path)

    def save_world_model(self, world_model: VideoWorldModel, path: str) -> None:
        if self.data_parallel.is_main:
            checkpoints.save_world_model(world_model, self.run_dir / path)
        self.data_parallel.barrier()

    def new_critic(self, normalisation: Normalisation, world_model: str, seed: int) -> Critic:
        """A new critic; one that uses the fitted world model is built on a copy of the one at ``world_model``.

        It reads the cameras that the world model imagines, so that it can value imagined frames.
        """

        def make_world_model() -> VideoWorldModel:
            if self.value_config.uses_world_model:
                return self.load_world_model(world_model)
            return self.new_world_model(normalisation, seed)

        spec, _ = self.world_model_config.select_cameras(self.spec)
        return build.build_critic(self.value_config, spec, normalisation, make_world_model, seed)

    def load_critic(self, path: str) -> Critic:
        return checkpoints.load_critic(self.run_dir / path)

    def save_critic(self, critic: Critic, path: str) -> None:
        if self.data_parallel.is_main:
            checkpoints.save_critic(critic, self.value_config, self.run_dir / path)
        self.data_parallel.barrier()

    def new_inverse_dynamics(
        self, config: InverseDynamicsConfig, normalisation: Normalisation, seed: int
    ) -> InverseDynamics:
        """A new model that reads the cameras that the world model imagines, so that it can read imagined video."""
        spec, _ = self.world_model_config.select_cameras(self.spec)
        return build.build_inverse_dynamics(config, spec, normalisation, seed)

    def load_inverse_dynamics(self, path: str) -> InverseDynamics:
        return checkpoints.load_inverse_dynamics(self.run_dir / path)

    def save_inverse_dynamics(self, model: InverseDynamics, path: str) -> None:
        if self.data_parallel.is_main:
            checkpoints.save_inverse_dynamics(model, self.run_dir / path)
        self.data_parallel.barrier()

    def new_planner(self, fitted: VideoWorldModel, seed: int, **changes: Any) -> VideoPlanner:
        """A planner with the weights of ``fitted``; ``changes`` are settings that differ from those of ``fitted``."""
        config = replace(fitted.config, **changes)
        planner = build.build_planner(config, fitted.spec, fitted.normalisation, seed)
        planner.start_from(fitted)
        return planner

    def load_planner(self, path: str) -> VideoPlanner:
        """The planner of the policy at ``path``."""
        policy = self.load_policy(path)
        assert isinstance(policy, PlannerPolicy)
        assert isinstance(policy.planner, VideoPlanner)
        return policy.planner

    def save_planner_policy(self, planner: VideoPlanner, inverse_dynamics: InverseDynamics, path: str) -> None:
        """Save a policy that executes the plans of ``planner`` by ``inverse_dynamics``; `load_policy` loads it."""
        if self.data_parallel.is_main:
            directory = self.run_dir / path
            checkpoints.save_planner_policy(planner, inverse_dynamics, self.chunk_length, directory, version=path)
        self.data_parallel.barrier()

    def save_card(
        self, path: str, calibrations: Calibrations, figures: dict[str, Any], starts: Observation, actions: Tensor
    ) -> None:
        """Write the card of the world model at ``path`` beside its weights."""
        write_card(self.run_dir / path, WorldModelCard(calibrations, figures, starts, start_actions=actions))

    def carry_card(self, source: str, path: str) -> None:
        """Write the card of the world model at ``source`` for the one at ``path`` too, which was trained on from it."""
        if self.data_parallel.is_main:
            write_card(self.run_dir / path, read_card(self.run_dir / source))
        self.data_parallel.barrier()

    def update_card(self, path: str, calibrations: Calibrations, closed_loop: dict[str, Any]) -> None:
        """Put what a check in the closed loop found into the card of the world model at ``path``."""
        card = read_card(self.run_dir / path)
        write_card(self.run_dir / path, replace(card, calibrations=calibrations, closed_loop=closed_loop))
