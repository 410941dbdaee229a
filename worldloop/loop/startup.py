"""Checks of a config before a run records or writes anything."""

from __future__ import annotations

from functools import partial

import torch

from worldloop.config.schema import LoopConfig
from worldloop.core.device import choose_device
from worldloop.core.errors import WorldloopError
from worldloop.core.interfaces import GatedPolicy, Policy, WorldModel
from worldloop.core.packages import require_importable, require_packages
from worldloop.core.specs import SimulatorSpec
from worldloop.core.types import Normalisation
from worldloop.executability.reward import require_joints
from worldloop.factory.build import build_planner, build_policy, build_spec, build_world_model, choose_simulator
from worldloop.factory.classes import require_arguments, require_members
from worldloop.rollout.sides import require_sides
from worldloop.sans.demonstrations import open_demonstrations
from worldloop.sans.interaction import require_signs
from worldloop.sans.recordings import check_recording
from worldloop.simulators.base import ChunkedSimulator
from worldloop.stages import align_world_model, improve_policy, seed_dataset
from worldloop.world_model.model import VideoWorldModel

# What every run needs in the end: to write SANS and TensorBoard, and to judge frames.
PACKAGES = ("pyarrow", "pandas", "PIL", "tensorboard", "matplotlib", "torchmetrics")
SIMULATOR_MEMBERS = ("make_spec", "draw_initial_states", "reset", "step_chunk", "close")
SCRIPTED_MEMBERS = ("make_scripted_policy",)
POLICY_MEMBERS = (
    "spec", "normalisation", "chunk_length", "temperature", "version", "act", "prepare", "compute_imitation_loss",
)  # fmt: skip


def check_run_can_start(config: LoopConfig) -> None:
    """Raise `WorldloopError` if a class lacks something, a package, a GPU or a video is missing, or sizes do not fit.

    Reads the recording's metadata or inspects the simulator's class, and builds the networks once. Starts no simulator.
    """
    require_packages(*PACKAGES, *(["ray"] if config.runtime == "ray" else []))
    if config.runtime == "inline":  # with Ray a stage may run on another machine
        choose_device(config.resources.device)
    try:
        if config.source != "simulator":
            _check_recording(config)
        else:
            _check_simulator(config)
        spec = build_spec(config.source, config.simulator, config.recording)
        if config.chunk_length % spec.actions_per_frame:
            raise ValueError(
                f"chunk_length {config.chunk_length} is no multiple of its {spec.actions_per_frame} actions per frame"
            )
        normalisation = Normalisation(torch.zeros(spec.robot.proprio_dim), torch.ones(spec.robot.proprio_dim))
        world_model = build_world_model(config.world_model, spec, normalisation, seed=0)
        alignment = config.section(align_world_model.Config)
        if alignment.enabled and alignment.mode == "plan":
            require_joints(world_model.spec.robot)
        if config.source != "recording":
            method = improve_policy.METHODS[config.section(improve_policy.Config).method]
            seeding = config.section(seed_dataset.Config)
            if seeding.held_out_side:
                require_sides(spec)
            if seeding.demonstrations:
                open_demonstrations(config.recording, spec)
                _check_landmarks(world_model)
            policy = _check_policy(config, spec, normalisation, method.interface)
            if method.uses_world_model:
                _check_cameras(policy, world_model)
    except ValueError as error:
        raise WorldloopError(f"the config does not fit its {config.source}: {error}") from error
    except ImportError as error:
        require_importable(error)
        raise


def _check_recording(config: LoopConfig) -> None:
    recording = check_recording(config.recording)
    if config.source == "robot" and all(part.first_success is None for part in recording.used.values()):
        raise WorldloopError(
            f"no episode of {config.recording.root} succeeds, so there is nothing to imitate: see "
            "recording.success_key, labels and all_succeed"
        )


def _check_simulator(config: LoopConfig) -> None:
    simulator_class, settings = choose_simulator(config.simulator)
    scripted = SCRIPTED_MEMBERS if config.section(seed_dataset.Config).is_scripted else ()
    require_members((*SIMULATOR_MEMBERS, *scripted), simulator_class, config.simulator.kind)
    require_arguments(simulator_class, settings)
    if issubclass(simulator_class, ChunkedSimulator):
        simulator_class.require_installed()


def _check_policy(
    config: LoopConfig, spec: SimulatorSpec, normalisation: Normalisation, interface: type[Policy]
) -> Policy:
    make_planner = partial(build_planner, config.world_model, spec, normalisation, seed=0)
    policy = build_policy(config.policy, spec, normalisation, config.chunk_length, 0, make_planner)
    method = config.section(improve_policy.Config).method
    able = [name for name, other in improve_policy.METHODS.items() if isinstance(policy, other.interface)]
    needed = sorted(interface.__abstractmethods__ - Policy.__abstractmethods__)
    if able and (missing := [member for member in needed if getattr(policy, member, None) is None]):
        raise WorldloopError(
            f"{config.policy.kind} lacks {', '.join(missing)}, which improve_policy.method={method} needs: "
            f"set improve_policy.method to {' or '.join(able)}"
        )
    require_members((*POLICY_MEMBERS, *needed), policy, config.policy.kind)
    if isinstance(policy, GatedPolicy):
        require_signs(spec, policy.interaction, not config.section(seed_dataset.Config).demonstrations)
    if not isinstance(policy, interface):
        raise WorldloopError(f"{config.policy.kind} is no subclass of worldloop.core.interfaces.{interface.__name__}")
    return policy


def _check_landmarks(world_model: VideoWorldModel) -> None:
    """Raise `WorldloopError` if the world model learns where objects are, which a recording does not tell."""
    if world_model.landmarks is not None:
        raise WorldloopError(
            "world_model.landmarks learns from the simulator's state, which recorded demonstrations lack: set "
            "world_model.landmarks=false, or seed_dataset.demonstrations=false"
        )


def _check_cameras(policy: Policy, world_model: WorldModel) -> None:
    """Raise `WorldloopError` unless the world model imagines every camera that the policy reads."""
    imagined = world_model.spec.robot.camera_names
    missing = [name for name in policy.spec.robot.camera_names if name not in imagined]
    if missing:
        raise WorldloopError(
            f"the policy reads the camera {missing[0]!r}, and world_model.cameras is {', '.join(imagined)}: let the "
            "world model imagine it, or give the policy fewer cameras"
        )
