"""Save and load policies, world models and critics. A checkpoint loads without the run that made it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from worldloop.core.errors import WorldloopError, first_line
from worldloop.core.interfaces import PlannedPolicy, Policy
from worldloop.core.tensors import prefix
from worldloop.executability.inverse_dynamics import InverseDynamics, InverseDynamicsConfig
from worldloop.factory.build import (
    build_critic,
    build_inverse_dynamics,
    build_planner,
    build_world_model,
    make_policy,
)
from worldloop.factory.classes import find_class, make_settings, require_known
from worldloop.factory.config import PolicyConfig
from worldloop.policies import POLICIES
from worldloop.policies.planner.policy import PlannerPolicy
from worldloop.storage.checkpoint import Checkpoint, load_checkpoint, load_weights, rebuild_dataclass, save_checkpoint
from worldloop.value.config import ValueConfig
from worldloop.value.critic import Critic
from worldloop.value.viva import VivaCritic
from worldloop.world_model.config import WorldModelConfig
from worldloop.world_model.model import VideoWorldModel
from worldloop.world_model.planner import VideoPlanner

PLANNER = "planner"  # the name of a policy that plans, in its checkpoint


def save_policy(policy: Policy, directory: Path, config: PolicyConfig, version: str) -> None:
    """Write ``policy``, which was built from ``config``, to the folder ``directory``; ``version`` names its weights."""
    settings = make_settings(find_class(config.kind, POLICIES), config)
    weights, extra = policy.state_dict(), {"chunk_length": policy.chunk_length, "version": version}
    if isinstance(policy, PlannedPolicy):
        planner = policy.planner
        assert isinstance(planner, VideoPlanner)
        assert policy.spec == planner.spec, "a policy that builds on a planner reads what the planner does"
        extra |= {"planner": _describe_world_model(planner.config)}
        weights = {
            name: value for name, value in weights.items() if name not in prefix_names("planner", planner.frozen)
        }
    checkpoint = Checkpoint(
        kind="policy",
        name=config.kind,
        config=asdict(policy.describe_settings(settings)),
        spec=policy.spec,
        normalisation=policy.normalisation,
        weights=weights,
        extra=extra,
    )
    save_checkpoint(directory, checkpoint)


def load_policy(directory: Path, pretrained: str = "", own_kind: str = "") -> Policy:
    """A policy in eval mode, from its checkpoint, and from the pretrained pipeline that its planner came from.

    ``pretrained`` is where that pipeline is now; "": where it was then. ``own_kind``, the `policy.kind` of a trusted
    config, is the one ``module:Class`` that may be imported, since a checkpoint may be a stranger's. Raises
    `WorldloopError` for another.
    """
    checkpoint = load_checkpoint(directory, "policy")
    remedy = "a class of your own is loaded in a run whose config has it as policy.kind"
    require_known(checkpoint.name, (*POLICIES, PLANNER, own_kind), f"the policy {directory}", remedy)
    if checkpoint.name == PLANNER:
        return _load_planner_policy(checkpoint, directory, pretrained)
    with _of_this_version(directory, "clone the policy again"):
        policy_class = find_class(checkpoint.name, POLICIES)
        settings = rebuild_dataclass(policy_class.Config, checkpoint.config)
        length, version = int(checkpoint.extra["chunk_length"]), str(checkpoint.extra["version"])
        spec, normalisation = checkpoint.spec, checkpoint.normalisation

        def make_planner() -> VideoPlanner:
            planner = rebuild_dataclass(WorldModelConfig, checkpoint.extra["planner"])
            planner = replace(planner, pretrained=pretrained or planner.pretrained)
            return build_planner(planner, spec, normalisation, seed=0)

        policy = make_policy(policy_class, settings, spec, normalisation, length, 0, make_planner)
    planned = policy.planner if isinstance(policy, PlannedPolicy) else None
    frozen = prefix_names("planner", planned.frozen) if isinstance(planned, VideoPlanner) else frozenset()
    load_weights(policy, checkpoint, directory, frozen)
    policy.version = version
    return policy.eval()


def save_planner_policy(
    planner: VideoPlanner, inverse_dynamics: InverseDynamics, chunk_length: int, directory: Path, version: str
) -> None:
    """Write a `PlannerPolicy` of ``planner`` and ``inverse_dynamics`` to the folder ``directory``."""
    weights = prefix("planner", planner.trained_state()) | prefix("inverse_dynamics", inverse_dynamics.state_dict())
    checkpoint = Checkpoint(
        kind="policy",
        name=PLANNER,
        config=_describe_world_model(planner.config),
        spec=planner.spec,
        normalisation=planner.normalisation,
        weights=weights,
        extra={
            "chunk_length": chunk_length,
            "version": version,
            "inverse_dynamics": asdict(inverse_dynamics.config),
        },
    )
    save_checkpoint(directory, checkpoint)


def _load_planner_policy(checkpoint: Checkpoint, directory: Path, pretrained: str) -> PlannerPolicy:
    with _of_this_version(directory, "fit the planner again"):
        config = rebuild_dataclass(WorldModelConfig, checkpoint.config)
        config = replace(config, pretrained=pretrained or config.pretrained)
        reading = rebuild_dataclass(InverseDynamicsConfig, checkpoint.extra["inverse_dynamics"])
        spec, normalisation = checkpoint.spec, checkpoint.normalisation
        planner = build_planner(config, spec, normalisation, seed=0)
        inverse_dynamics = build_inverse_dynamics(reading, spec, normalisation, seed=0)
        policy = PlannerPolicy(planner, inverse_dynamics, int(checkpoint.extra["chunk_length"]))
    load_weights(policy, checkpoint, directory, prefix_names("planner", planner.frozen))
    policy.version = str(checkpoint.extra["version"])
    return policy.eval()


def save_world_model(world_model: VideoWorldModel, directory: Path) -> None:
    """Write the trained weights of ``world_model``, and all it is rebuilt from, to the folder ``directory``."""
    checkpoint = Checkpoint(
        kind="world_model",
        name="video_world_model",
        config=_describe_world_model(world_model.config),
        spec=world_model.spec,
        normalisation=world_model.normalisation,
        weights=world_model.trained_state(),
    )
    save_checkpoint(directory, checkpoint)


def load_world_model(directory: Path, pretrained: str = "") -> VideoWorldModel:
    """A world model in eval mode, from its checkpoint, and from the pretrained pipeline if it was fine-tuned from one.

    ``pretrained`` is where that pipeline is now; "": where it was then.
    """
    checkpoint = load_checkpoint(directory, "world_model")
    with _of_this_version(directory, "fit the world model again"):
        config = rebuild_dataclass(WorldModelConfig, checkpoint.config)
        if pretrained:
            config = replace(config, pretrained=pretrained)
        model = build_world_model(config, checkpoint.spec, checkpoint.normalisation, seed=0)
    load_weights(model, checkpoint, directory, model.frozen)
    return model.eval()


def save_critic(critic: Critic, config: ValueConfig, directory: Path) -> None:
    """Write ``critic``, which was built from ``config``, to the folder ``directory``."""
    extra: dict[str, Any] = {}
    if isinstance(critic, VivaCritic):
        assert isinstance(critic.world_model, VideoWorldModel)
        extra["world_model"] = _describe_world_model(critic.world_model.config)
    checkpoint = Checkpoint(
        kind="critic",
        name=config.kind,
        config=asdict(config),
        spec=critic.spec,
        normalisation=critic.normalisation,
        weights=critic.trained_state(),
        extra=extra,
    )
    save_checkpoint(directory, checkpoint)


def load_critic(directory: Path, pretrained: str = "") -> Critic:
    """A critic in eval mode, from its checkpoint, and from the pretrained pipeline that its world model came from.

    ``pretrained`` is where that pipeline is now; "": where it was then.
    """
    checkpoint = load_checkpoint(directory, "critic")
    with _of_this_version(directory, "fit the critics again"):
        config = rebuild_dataclass(ValueConfig, checkpoint.config)

        def make_world_model() -> VideoWorldModel:
            settings = rebuild_dataclass(WorldModelConfig, checkpoint.extra["world_model"])
            if pretrained and settings.pretrained:
                settings = replace(settings, pretrained=pretrained)
            return build_world_model(settings, checkpoint.spec, checkpoint.normalisation, seed=0)

        critic = build_critic(config, checkpoint.spec, checkpoint.normalisation, make_world_model, seed=0)
    load_weights(critic, checkpoint, directory, critic.frozen)
    return critic.eval()


def save_inverse_dynamics(model: InverseDynamics, directory: Path) -> None:
    """Write ``model``, and all it is rebuilt from, to the folder ``directory``."""
    checkpoint = Checkpoint(
        kind="inverse_dynamics",
        name="inverse_dynamics",
        config=asdict(model.config),
        spec=model.spec,
        normalisation=model.normalisation,
        weights=model.state_dict(),
    )
    save_checkpoint(directory, checkpoint)


def load_inverse_dynamics(directory: Path) -> InverseDynamics:
    """An inverse dynamics model in eval mode, from its checkpoint only."""
    checkpoint = load_checkpoint(directory, "inverse_dynamics")
    with _of_this_version(directory, "fit it again"):
        config = rebuild_dataclass(InverseDynamicsConfig, checkpoint.config)
        model = build_inverse_dynamics(config, checkpoint.spec, checkpoint.normalisation, seed=0)
    load_weights(model, checkpoint, directory)
    return model.eval()


def prefix_names(part: str, names: frozenset[str]) -> frozenset[str]:
    """The names of the weights of ``part`` in the state dict of the whole."""
    return frozenset(f"{part}.{name}" for name in names)


def _describe_world_model(config: WorldModelConfig) -> dict[str, Any]:
    """``config`` as plain values, with an absolute path of the pretrained pipeline: a relative one breaks elsewhere."""
    described = asdict(config)
    if config.pretrained and Path(config.pretrained).exists():
        described["pretrained"] = str(Path(config.pretrained).resolve())
    return described


@contextmanager
def _of_this_version(directory: Path, remedy: str) -> Iterator[None]:
    """Within this context, an error from settings that this version does not know becomes one `WorldloopError`."""
    try:
        yield
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise WorldloopError(
            f"checkpoint {directory} has settings that this version does not know ({first_line(error)}): "
            f"it was made by another version of worldloop; {remedy}"
        ) from error
