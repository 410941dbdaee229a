"""From configuration to objects, by explicit ``match``; a user's own class is named ``module:Class``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from worldloop.core.errors import WorldloopError, first_line
from worldloop.core.success import Calibration
from worldloop.core.types import Normalisation, Observation, SimulatorSpec
from worldloop.envs.vector_env import WorldModelVectorEnv
from worldloop.envs.world_model_env import WorldModelEnv
from worldloop.factory.config import SIMULATORS, PolicyConfig, SimulatorConfig
from worldloop.play.session import PlaySession
from worldloop.policies.token_vla.policy import TokenVLA, TokenVLAConfig
from worldloop.sans.recordings import check_recorded, recorded_spec
from worldloop.simulators.maniskill.simulator import ManiSkillSimulator, maniskill_spec, require_maniskill
from worldloop.simulators.toy.simulator import ToySimulator, toy_spec
from worldloop.storage.card import read_card
from worldloop.storage.checkpoint import Checkpoint, load_checkpoint, load_weights, save_checkpoint
from worldloop.storage.hub import HUB_NAME, export_world_model, fetch_from_hub
from worldloop.storage.run_directory import RunDirectory
from worldloop.world_model.config import WorldModelConfig
from worldloop.world_model.model import VideoWorldModel

_ENDLESS = 10**6  # steps, of a game
# What a class of one's own must have, see `worldloop.core.interfaces`.
SIMULATOR_MEMBERS = ("make_spec", "draw_initial_states", "make_scripted_policy", "reset", "step_chunk", "close")
POLICY_MEMBERS = (
    "spec", "normalisation", "chunk_length", "temperature", "version", "act", "log_prob", "compute_imitation_loss",
    "state_dict",
)  # fmt: skip


def _own_class(name: str) -> Any:
    """The class behind ``module:Class``; raises `WorldloopError` naming what is missing."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise WorldloopError(f"cannot load {name!r}: {error}; is its folder on PYTHONPATH?") from error


def _make_own(maker: Any, name: str, *arguments: Any, **options: Any) -> Any:
    """``maker(*arguments, **options)``; raises `WorldloopError` where it does not take them."""
    try:
        inspect.signature(maker).bind(*arguments, **options)
    except TypeError as error:
        raise WorldloopError(f"{name} does not take the config's options: {error}") from error
    return maker(*arguments, **options)


def build_spec(config: SimulatorConfig) -> SimulatorSpec:
    """What the simulator will look like, without starting it; an own class says so by ``make_spec(**options)``."""
    match config.kind:
        case "maniskill":
            return maniskill_spec(config.maniskill)
        case "toy":
            return toy_spec(config.toy)
        case "recorded":
            return recorded_spec(config.recorded)
        case _:
            return _make_own(_own_class(config.kind).make_spec, config.kind, **config.options)


def build_simulator(config: SimulatorConfig) -> Any:
    match config.kind:
        case "maniskill":
            return ManiSkillSimulator(config.maniskill)
        case "toy":
            return ToySimulator(config.toy)
        case "recorded":
            raise WorldloopError("simulator.kind recorded is a dataset: there is nothing to simulate with")
        case _:
            return _make_own(_own_class(config.kind), config.kind, **config.options)


def build_policy(
    config: PolicyConfig, spec: SimulatorSpec, normalisation: Normalisation, chunk_length: int, seed: int
) -> Any:
    """A policy with fresh weights drawn from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        match config.kind:
            case "token_vla":
                return TokenVLA(config.token_vla, spec, normalisation, chunk_length)
            case _:
                own = _own_class(config.kind)
                return _make_own(own, config.kind, spec, normalisation, chunk_length, **config.options)


def build_world_model(
    config: WorldModelConfig, spec: SimulatorSpec, normalisation: Normalisation, seed: int
) -> VideoWorldModel:
    """A world model with fresh weights drawn from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VideoWorldModel(config, spec, normalisation)


def check_networks(config: Any) -> None:
    """Build the networks once and drop them: what does not fit the simulator is refused before anything is recorded.

    Raises `WorldloopError` with the reason.
    """
    if config.simulator.kind not in SIMULATORS:
        _require(SIMULATOR_MEMBERS, _own_class(config.simulator.kind), config.simulator.kind)
    if config.simulator.kind == "maniskill":
        require_maniskill()
    try:
        spec = build_spec(config.simulator)
        if config.chunk_length % spec.actions_per_frame:
            raise ValueError(
                f"chunk_length {config.chunk_length} is no multiple of its {spec.actions_per_frame} actions per frame"
            )
        normalisation = Normalisation(torch.zeros(spec.proprio_dim), torch.ones(spec.proprio_dim))
        if config.simulator.kind == "recorded":
            check_recorded(config.simulator.recorded)
        else:
            policy = build_policy(config.policy, spec, normalisation, config.chunk_length, seed=0)
            _require(POLICY_MEMBERS, policy, config.policy.kind)
        build_world_model(config.world_model, spec, normalisation, seed=0)
    except ValueError as error:
        raise WorldloopError(f"the config does not fit its simulator: {error}") from error


def _require(members: tuple[str, ...], part: Any, name: str) -> None:
    missing = [member for member in members if getattr(part, member, None) is None]
    if missing:
        raise WorldloopError(f"{name} lacks {', '.join(missing)}: worldloop/interfaces.py says what they do")


def save_policy(policy: Any, directory: Path, config: PolicyConfig, version: str) -> None:
    checkpoint = Checkpoint(
        kind="policy",
        name=config.kind,
        config=asdict(config.token_vla) if config.kind == "token_vla" else dict(config.options),
        spec=policy.spec,
        normalisation=policy.normalisation,
        weights=policy.state_dict(),
        extra={"chunk_length": policy.chunk_length, "version": version},
    )
    save_checkpoint(directory, checkpoint)


def load_policy(directory: Path) -> Any:
    """A policy in eval mode, from its checkpoint alone."""
    checkpoint = load_checkpoint(directory, "policy")
    with _of_this_version(directory, "clone the policy again"):
        if checkpoint.name == "token_vla":
            config = PolicyConfig(token_vla=TokenVLAConfig(**_tuples(checkpoint.config)))
        else:
            config = PolicyConfig(kind=checkpoint.name, options=checkpoint.config)
        length, version = int(checkpoint.extra["chunk_length"]), str(checkpoint.extra["version"])
        policy = build_policy(config, checkpoint.spec, checkpoint.normalisation, length, seed=0)
    load_weights(policy, checkpoint, directory)
    policy.version = version
    return policy.eval()


@contextmanager
def _of_this_version(directory: Path, remedy: str) -> Iterator[None]:
    """Within it, settings of a checkpoint that this version does not know, or cannot build, become one clear error."""
    try:
        yield
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise WorldloopError(
            f"checkpoint {directory} has settings that this version does not know ({first_line(error)}): "
            f"it was made by another version of worldloop; {remedy}"
        ) from error


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def save_world_model(world_model: VideoWorldModel, directory: Path) -> None:
    config = asdict(world_model.config)
    if config["pretrained"] and Path(config["pretrained"]).exists():  # seen from elsewhere it would be another folder
        config["pretrained"] = str(Path(config["pretrained"]).resolve())
    checkpoint = Checkpoint(
        kind="world_model",
        name="video_world_model",
        config=config,
        spec=world_model.spec,
        normalisation=world_model.normalisation,
        weights=world_model.trained_state(),
    )
    save_checkpoint(directory, checkpoint)


def load_world_model(directory: Path, pretrained: str = "") -> VideoWorldModel:
    """A world model in eval mode, from its checkpoint alone, and from the published pipeline it was fine-tuned from.

    ``pretrained`` is where that pipeline is now, if it is no longer where it was.
    """
    checkpoint = load_checkpoint(directory, "world_model")
    with _of_this_version(directory, "fit the world model again"):
        config = _world_model_config(checkpoint.config)
        if pretrained:
            config = replace(config, pretrained=pretrained)
        model = build_world_model(config, checkpoint.spec, checkpoint.normalisation, seed=0)
    load_weights(model, checkpoint, directory, model.frozen)
    return model.eval()


def from_pretrained(checkpoint: str | Path, device: str = "auto", pretrained: str = "") -> VideoWorldModel:
    """The world model of a run, of a checkpoint's directory or of that name on the Hub, in eval mode on ``device``.

    Arguments and errors as for `make_vector_env`.
    """
    return load_world_model(find_world_model(Path(checkpoint)), pretrained).to(choose_device(device))


def save_pretrained(checkpoint: str | Path, out: str | Path) -> None:
    """Write a checked world model with its model card to the new folder ``out``, see `worldloop.storage.hub`."""
    export_world_model(find_world_model(Path(checkpoint)), Path(out))


def make_env(checkpoint: str | Path, **options: Any) -> WorldModelEnv:
    """``gymnasium.make("worldloop/WorldModel-v0", checkpoint=...)``, see `make_vector_env`."""
    parts, rest = _environment_parts(Path(checkpoint), **options)
    return WorldModelEnv(*parts, **rest)


def make_vector_env(checkpoint: str | Path, num_envs: int = 1, **options: Any) -> WorldModelVectorEnv:
    """``gymnasium.make_vec("worldloop/WorldModel-v0", num_envs=..., checkpoint=...)``.

    - ``checkpoint``: a checked world model's directory, its name on the Hub (owner/model), or a run directory, which
      means its latest world model
    - ``task``: refused unless it is the checkpoint's own
    - ``starts``: an `Observation` of N rows to start from instead of the checkpoint's own
    - ``device``: ``auto`` (a GPU where there is one), ``cpu`` or ``cuda``
    - ``pretrained``: the published pipeline that it was fine-tuned from, if that is no longer where it was

    and what `WorldModelVectorEnv` takes. Raises `WorldloopError` for anything that does not fit.
    """
    parts, rest = _environment_parts(Path(checkpoint), **options)
    return WorldModelVectorEnv(*parts, num_envs=num_envs, **rest)


def _environment_parts(
    directory: Path,
    task: str = "",
    starts: Observation | None = None,
    device: str = "auto",
    pretrained: str = "",
    **rest: Any,
) -> tuple[tuple[VideoWorldModel, Observation, Calibration], dict[str, Any]]:
    directory = find_world_model(directory)
    world_model = load_world_model(directory, pretrained)
    card = read_card(directory)
    if task and task != world_model.spec.task:
        raise WorldloopError(
            f"task {task!r} is not known to checkpoint {directory}: it imagines {world_model.spec.task}"
        )
    chosen = card.starts if starts is None else starts
    return (world_model.to(choose_device(device)).for_imagination(), chosen, card.calibration), rest


def find_world_model(directory: Path) -> Path:
    """``directory``, or the latest world model of the run that it is, or the one of that name on the Hub.

    Raises `WorldloopError` where there is none.
    """
    if not directory.exists() and HUB_NAME.fullmatch(str(directory)):
        return fetch_from_hub(str(directory))
    if not (directory / "state.json").is_file():
        return directory
    path = RunDirectory(directory).read_state().world_model
    if not path:
        raise WorldloopError(f"run {directory} has no world model yet: let its fit_world_model stage end first")
    return directory / path


def choose_device(name: str) -> torch.device:
    """``auto``, ``cpu`` or ``cuda``; raises `WorldloopError` where there is no such device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise WorldloopError(f"device {name!r} is not known: auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise WorldloopError("device is cuda (resources.device in a config), but torch sees no GPU; use cpu or auto")
    return torch.device(name)


def make_play_session(
    checkpoint: Path, simulator: SimulatorConfig | None, device: str = "auto", pretrained: str = ""
) -> PlaySession:
    """A game inside a checked world model, beside the simulator of that configuration where one is given.

    The simulator is started with one row, and neither its time limit nor a success ends an episode. Raises
    `WorldloopError` where it shows something else than the world model does, or cannot be started.
    """
    (world_model, starts, calibration), _ = _environment_parts(checkpoint, device=device, pretrained=pretrained)
    if simulator is None:
        return PlaySession(world_model, calibration, starts)
    endless = replace(
        simulator,
        maniskill=replace(
            simulator.maniskill, backend="cpu", num_envs=1, max_episode_steps=_ENDLESS, success_hold_frames=_ENDLESS
        ),
        toy=replace(simulator.toy, num_envs=1, max_episode_steps=_ENDLESS, success_hold_frames=_ENDLESS),
    )
    spec, other = world_model.spec, build_spec(endless)
    for name in ("task", "image_size", "actions_per_frame", "action_names", "proprio_names"):
        if getattr(spec, name) != getattr(other, name):
            raise WorldloopError(
                f"the simulator's {name} is {getattr(other, name)}, the world model's {getattr(spec, name)}: "
                "give the config that the world model was made with"
            )
    return PlaySession(world_model, calibration, starts, build_simulator(endless))


def find_simulator(checkpoint: Path) -> SimulatorConfig | None:
    """The simulator of the run that ``checkpoint`` is, or lies in; ``None`` where there is no run or no simulator."""
    for directory in (checkpoint, *checkpoint.resolve().parents[:3]):
        run = RunDirectory(directory)
        if run.exists:
            from worldloop.config.schema import build_config

            simulator = build_config([OmegaConf.create(run.read_config())], str(directory / "config.yaml")).simulator
            return None if simulator.kind == "recorded" else simulator
    return None


def _world_model_config(values: dict[str, Any]) -> WorldModelConfig:
    defaults = WorldModelConfig()
    nested = {
        f.name: type(getattr(defaults, f.name))(**_tuples(values[f.name]))
        for f in fields(defaults)
        if is_dataclass(getattr(defaults, f.name)) and f.name in values
    }
    return WorldModelConfig(**{**values, **nested})
