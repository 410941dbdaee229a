"""Make a game from a checkpoint, and from the simulator that the world model imitates if there is one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from worldloop.config.loading import build_config
from worldloop.config.schema import LoopConfig
from worldloop.core.device import choose_device
from worldloop.core.errors import WorldloopError
from worldloop.core.interfaces import Planner, TaskSimulator
from worldloop.core.specs import SimulatorSpec
from worldloop.factory.build import choose_simulator
from worldloop.factory.checkpoints import load_critic, load_policy
from worldloop.factory.classes import require_known
from worldloop.factory.config import SimulatorConfig
from worldloop.factory.pretrained import load_checked_world_model
from worldloop.play.session import PlaySession
from worldloop.policies.planner.policy import PlannerPolicy
from worldloop.simulators import SIMULATORS
from worldloop.storage.run_directory import RunDirectory
from worldloop.value.critic import Critic, average_value


def make_play_session(
    checkpoint: Path, simulator: SimulatorConfig | None, device: str = "auto", pretrained: str = ""
) -> PlaySession:
    """A game inside a checked world model, beside the simulator of ``simulator`` if one is given.

    ``checkpoint``, ``device`` and ``pretrained`` are as for `worldloop.from_pretrained`. If the simulator's ``Config``
    has ``for_play``, it runs one row, whose episodes neither a success nor a time limit ends. Raises `WorldloopError`
    if the simulator's cameras, tasks, actions or proprio differ from the world model's.
    """
    world_model, card = load_checked_world_model(checkpoint, pretrained)
    world_model = world_model.to(choose_device(device)).for_imagination()
    beside = None if simulator is None else _make_endless_simulator(simulator, world_model.spec)
    note = _describe_trust(card.closed_loop)
    try:
        critics = [critic.to(world_model.device) for critic in _load_critics(checkpoint, pretrained)]
    except WorldloopError as error:  # the game does not need them
        critics, note = [], f"{note}; no value: {error}".removeprefix("; ")
    try:
        planner = _load_planner(checkpoint, pretrained, world_model.device)
    except WorldloopError as error:
        planner, note = None, f"{note}; no plan: {error}".removeprefix("; ")
    return PlaySession(
        world_model,
        card.calibrations,
        card.starts,
        beside,
        note=note,
        start_actions=card.start_actions,
        value=partial(average_value, critics) if critics else None,
        plan=None if planner is None else partial(planner.plan, noise_key=None, num_frames=1),
    )


def _load_planner(checkpoint: Path, pretrained: str, device: torch.device) -> Planner | None:
    """The latest planner of the run that ``checkpoint`` is or lies in; none without a run, or if it is not there."""
    run = _find_run(checkpoint)
    path = "" if run is None else run.read_state().planner
    if run is None or not path or not (run.path / path).is_dir():
        return None
    policy = load_policy(run.path / path, pretrained)
    if not isinstance(policy, PlannerPolicy):
        raise WorldloopError(f"{path} holds no planner")
    return policy.to(device).planner


def _load_critics(checkpoint: Path, pretrained: str) -> list[Critic]:
    """The latest critics of the run that ``checkpoint`` is or lies in; none without a run, or if they are not there."""
    run = _find_run(checkpoint)
    paths = [] if run is None else [run.path / path for path in run.read_state().critics]
    return [load_critic(path, pretrained) for path in paths] if all(path.is_dir() for path in paths) else []


def _describe_trust(closed_loop: dict[str, Any]) -> str:
    """E.g. ``closed-loop AUC within groups .77 (.67 to .86)``, of the card; "" if it was not checked or has none."""
    figure = closed_loop.get("within_group_auc")
    if not figure:
        return ""
    bounds = "" if figure["low"] is None else f" ({figure['low']:.2f} to {figure['high']:.2f})"
    return f"closed-loop AUC within groups {figure['value']:.2f}{bounds}"


def find_simulator(
    checkpoint: Path, config: LoopConfig | None = None, own_code: bool = False
) -> SimulatorConfig | None:
    """The simulator of ``config``, or else of the run that ``checkpoint`` is or lies in.

    ``None`` if there is no run, or if the run learned from a recording. Raises `WorldloopError` if the run names a
    simulator that is not part of worldloop, unless ``own_code``.
    """
    given, config = config, config or _find_config(checkpoint)
    if config is None or config.source != "simulator":
        return None
    if given is None and not own_code:
        require_known(config.simulator.kind, SIMULATORS, f"the run of {checkpoint}")
    return config.simulator


def _find_config(checkpoint: Path) -> LoopConfig | None:
    run = _find_run(checkpoint)
    if run is None:
        return None
    return build_config([OmegaConf.create(run.read_config())], str(run.path / "config.yaml"))


def _find_run(checkpoint: Path) -> RunDirectory | None:
    """The run that ``checkpoint`` is, or in whose ``checkpoints/iteration_NNN`` it lies."""
    parents = checkpoint.resolve().parents
    lies_in_one = len(parents) > 2 and parents[1].name == "checkpoints" and parents[0].name.startswith("iteration_")
    run = RunDirectory(parents[2] if lies_in_one else checkpoint)
    return run if run.exists and (run.path / "state.json").is_file() else None


def _make_endless_simulator(config: SimulatorConfig, spec: SimulatorSpec) -> TaskSimulator:
    simulator_class, settings = choose_simulator(config)
    if hasattr(settings, "for_play"):
        settings = settings.for_play()
    _require_same_view(simulator_class.make_spec(settings), spec)
    return simulator_class(settings)


def _require_same_view(simulator: SimulatorSpec, world_model: SimulatorSpec) -> None:
    """Raise `WorldloopError` unless the simulator has the world model's tasks, cameras, actions and proprio."""
    remedy = "give the config that the world model was made with"
    pairs = {
        "actions_per_frame": (simulator.actions_per_frame, world_model.actions_per_frame),
        "action_names": (simulator.robot.action_names, world_model.robot.action_names),
        "proprio_names": (simulator.robot.proprio_names, world_model.robot.proprio_names),
    }
    for name, (simulated, imagined) in pairs.items():
        if simulated != imagined:
            raise WorldloopError(f"the simulator's {name} is {simulated}, the world model's {imagined}: {remedy}")
    for task in world_model.task_ids:
        if task not in simulator.task_ids:
            known = ", ".join(simulator.task_ids)
            raise WorldloopError(f"the world model's task {task!r} is not one of the simulator's {known}: {remedy}")
    cameras = {camera.name: camera for camera in simulator.robot.cameras}
    for camera in world_model.robot.cameras:
        other = cameras.get(camera.name)
        if other is None:
            raise WorldloopError(
                f"the world model's camera {camera.name!r} is not one of the simulator's {', '.join(cameras)}: {remedy}"
            )
        if other != camera:
            raise WorldloopError(
                f"the simulator's camera {camera.name!r} shows {other.height} x {other.width} pixels, "
                f"the world model's {camera.height} x {camera.width}: {remedy}"
            )
