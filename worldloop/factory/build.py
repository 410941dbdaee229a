"""Build specs, simulators, policies and world models from a configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from worldloop.core.errors import WorldloopError
from worldloop.core.interfaces import PlannedPolicy, Policy, TaskSimulator
from worldloop.core.specs import SimulatorSpec
from worldloop.core.types import Normalisation
from worldloop.executability.inverse_dynamics import InverseDynamics, InverseDynamicsConfig
from worldloop.factory.classes import find_class, make_settings, require_arguments, require_members
from worldloop.factory.config import PolicyConfig, SimulatorConfig
from worldloop.policies import POLICIES
from worldloop.sans.recordings import RecordingConfig, recording_spec
from worldloop.simulators import SIMULATORS
from worldloop.value import CRITICS
from worldloop.value.config import ValueConfig
from worldloop.value.critic import Critic
from worldloop.value.viva import VivaCritic
from worldloop.world_model.config import WorldModelConfig
from worldloop.world_model.model import VideoWorldModel
from worldloop.world_model.planner import VideoPlanner


def build_spec(source: str, simulator: SimulatorConfig, recording: RecordingConfig) -> SimulatorSpec:
    """The spec of a run whose ``source`` is ``simulator``, ``recording`` or ``robot``. Starts nothing."""
    return build_simulator_spec(simulator) if source == "simulator" else recording_spec(recording)


def build_simulator_spec(config: SimulatorConfig) -> SimulatorSpec:
    """The simulator's spec, without starting it."""
    simulator_class, settings = choose_simulator(config)
    return simulator_class.make_spec(settings)


def build_simulator(config: SimulatorConfig) -> TaskSimulator:
    """A running simulator."""
    simulator_class, settings = choose_simulator(config)
    return simulator_class(settings)


def list_variations(config: SimulatorConfig) -> tuple[str, ...]:
    """The names of what the simulator can change to test a policy: its class's ``VARIATIONS``, () without one."""
    simulator_class, _ = choose_simulator(config)
    return tuple(getattr(simulator_class, "VARIATIONS", ()))


def vary_simulator(config: SimulatorConfig, variation: str) -> SimulatorConfig:
    """``config`` with that ``variation``; "": unchanged."""
    if not variation:
        return config
    if ":" in config.kind:
        return replace(config, options=config.options | {"variation": variation})
    return replace(config, **{config.kind: replace(config.chosen_section(), variation=variation)})


def choose_simulator(config: SimulatorConfig) -> tuple[type[TaskSimulator], Any]:
    """The simulator class that ``config`` names, and its settings, an instance of the class's ``Config``."""
    simulator_class = find_class(config.kind, SIMULATORS)
    require_members(("make_spec",), simulator_class, config.kind)
    return simulator_class, make_settings(simulator_class, config)


def is_policy(config: PolicyConfig, interface: type[Policy]) -> bool:
    """Whether the class that ``config`` names is one of ``interface``."""
    return issubclass(find_class(config.kind, POLICIES), interface)


def build_policy(
    config: PolicyConfig,
    spec: SimulatorSpec,
    normalisation: Normalisation,
    chunk_length: int,
    seed: int,
    make_planner: Callable[[], VideoPlanner] | None = None,
) -> Policy:
    """A policy with fresh weights drawn from ``seed``; see `make_policy`."""
    policy_class = find_class(config.kind, POLICIES)
    settings = make_settings(policy_class, config)
    return make_policy(policy_class, settings, spec, normalisation, chunk_length, seed, make_planner)


def make_policy(
    policy_class: type[Policy],
    settings: Any,
    spec: SimulatorSpec,
    normalisation: Normalisation,
    chunk_length: int,
    seed: int,
    make_planner: Callable[[], VideoPlanner] | None = None,
) -> Policy:
    """A ``policy_class`` with fresh weights drawn from ``seed``. ``settings`` is an instance of its ``Config``.

    A `PlannedPolicy` is built on what ``make_planner`` returns; `WorldloopError` without it.
    """
    arguments: tuple[Any, ...] = (settings, spec, normalisation, chunk_length)
    if issubclass(policy_class, PlannedPolicy):
        if make_planner is None:
            raise WorldloopError(f"{policy_class.__name__} builds on a planner; there is none: fit_planner makes it")
        arguments = (settings, make_planner(), chunk_length)
    if issubclass(policy_class, Policy):
        policy_class = policy_class.choose_class(settings)
    require_arguments(policy_class, *arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return policy_class(*arguments)


def build_world_model(
    config: WorldModelConfig, spec: SimulatorSpec, normalisation: Normalisation, seed: int
) -> VideoWorldModel:
    """A world model with fresh weights drawn from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VideoWorldModel(config, spec, normalisation)


def build_planner(
    config: WorldModelConfig, spec: SimulatorSpec, normalisation: Normalisation, seed: int
) -> VideoPlanner:
    """A planner with fresh weights drawn from ``seed``; ``config`` is that of its networks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VideoPlanner(config, spec, normalisation)


def build_inverse_dynamics(
    config: InverseDynamicsConfig, spec: SimulatorSpec, normalisation: Normalisation, seed: int
) -> InverseDynamics:
    """An inverse dynamics model with fresh weights drawn from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return InverseDynamics(config, spec, normalisation)


def build_critic(
    config: ValueConfig,
    spec: SimulatorSpec,
    normalisation: Normalisation,
    make_world_model: Callable[[], VideoWorldModel],
    seed: int,
) -> Critic:
    """A critic with fresh weights drawn from ``seed``; only `viva` calls ``make_world_model`` and is built on it."""
    world_model = make_world_model() if config.kind == "viva" else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if world_model is not None:
            return VivaCritic(config, world_model)
        return CRITICS[config.kind](spec, normalisation)
