"""The contract of every registry: one line brings a class, its config section and its place in the loop."""

import dataclasses
import inspect
from typing import Any

import pytest

from worldloop.core.interfaces import PlannedPolicy
from worldloop.core.specs import SimulatorSpec
from worldloop.factory.build import build_simulator_spec, choose_simulator
from worldloop.factory.config import PolicyConfig, SimulatorConfig
from worldloop.loop.startup import POLICY_MEMBERS, SIMULATOR_MEMBERS
from worldloop.policies import POLICIES
from worldloop.simulators import SIMULATORS
from worldloop.world_model import CODECS, DENOISERS
from worldloop.world_model.config import WorldModelConfig

SIZES = ["channels", "sizes", "proprio_dim", "action_dim", "actions_per_frame", "instruction_dim"]


def _list_arguments(part_class: Any) -> list[str]:
    """The names that the constructor cannot do without."""
    parameters = inspect.signature(part_class).parameters.values()
    return [p.name for p in parameters if p.default is p.empty]


def _check_section(part_class: Any, config: Any, name: str) -> None:
    """The class's settings are frozen, have defaults, and are a section of ``config``."""
    assert dataclasses.is_dataclass(part_class.Config)
    assert part_class.Config.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert getattr(config, name) == part_class.Config()


@pytest.mark.parametrize("name", SIMULATORS)
def test_a_simulator_follows_its_contract(name: str) -> None:
    simulator_class, config = SIMULATORS[name], SimulatorConfig(kind=name)
    _check_section(simulator_class, config, name)
    assert _list_arguments(simulator_class) == ["config"]
    assert all(callable(getattr(simulator_class, member)) for member in SIMULATOR_MEMBERS)
    assert choose_simulator(config) == (simulator_class, config.chosen_section())
    assert isinstance(build_simulator_spec(config), SimulatorSpec)


@pytest.mark.parametrize("name", SIMULATORS)
def test_a_simulator_can_be_played_without_end(name: str) -> None:
    endless = SIMULATORS[name].Config().for_play()
    assert getattr(endless, "num_envs", 1) == 1  # LIBERO has one row per process anyway
    assert SIMULATORS[name].make_spec(endless).max_episode_steps >= 10**6


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_follows_its_contract(name: str) -> None:
    policy_class, config = POLICIES[name], PolicyConfig(kind=name)
    _check_section(policy_class, config, name)
    assert config.chosen_section() == policy_class.Config()
    built_on = ["planner"] if issubclass(policy_class, PlannedPolicy) else ["spec", "normalisation"]
    assert _list_arguments(policy_class) == ["config", *built_on, "chunk_length"]
    set_when_built = {"spec", "normalisation", "chunk_length", "temperature", "version"}
    assert all(hasattr(policy_class, member) for member in POLICY_MEMBERS if member not in set_when_built)


@pytest.mark.parametrize("name", DENOISERS)
def test_a_denoiser_follows_its_contract(name: str) -> None:
    config = WorldModelConfig(denoiser=name)
    _check_section(DENOISERS[name], config, name)
    assert config.denoiser_config() == DENOISERS[name].Config()
    assert _list_arguments(DENOISERS[name]) == ["config", *SIZES]


@pytest.mark.parametrize("name", CODECS)
def test_a_codec_is_built_from_the_cameras_and_a_pipeline(name: str) -> None:
    assert list(inspect.signature(CODECS[name]).parameters) == ["cameras", "pretrained"]
