"""Save and load policies, world models and critics. A checkpoint loads without the run that made it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from worldloop.core.errors import WorldloopError, first_line
from worldloop.core.interfaces import Policy
from worldloop.core.types import Normalisation
from worldloop.factory.build import build_world_model, make_policy
from worldloop.factory.classes import find_class, make_settings
from worldloop.factory.config import PolicyConfig
from worldloop.policies import POLICIES
from worldloop.storage.checkpoint import Checkpoint, load_checkpoint, load_weights, rebuild_dataclass, save_checkpoint
from worldloop.value.categorical import CategoricalCritic
from worldloop.world_model.config import WorldModelConfig
from worldloop.world_model.model import VideoWorldModel


def save_policy(policy: Policy, directory: Path, config: PolicyConfig, version: str) -> None:
    """Write ``policy``, which was built from ``config``, to the folder ``directory``; ``version`` names its weights."""
    settings = make_settings(find_class(config.kind, POLICIES), config)
    checkpoint = Checkpoint(
        kind="policy",
        name=config.kind,
        config=asdict(settings),
        spec=policy.spec,
        normalisation=policy.normalisation,
        weights=policy.state_dict(),
        extra={"chunk_length": policy.chunk_length, "version": version},
    )
    save_checkpoint(directory, checkpoint)


def load_policy(directory: Path) -> Policy:
    """A policy in eval mode, from its checkpoint only."""
    checkpoint = load_checkpoint(directory, "policy")
    with _of_this_version(directory, "clone the policy again"):
        policy_class = find_class(checkpoint.name, POLICIES)
        settings = rebuild_dataclass(policy_class.Config, checkpoint.config)
        length, version = int(checkpoint.extra["chunk_length"]), str(checkpoint.extra["version"])
        policy = make_policy(policy_class, settings, checkpoint.spec, checkpoint.normalisation, length, seed=0)
    load_weights(policy, checkpoint, directory)
    policy.version = version
    return policy.eval()


def save_world_model(world_model: VideoWorldModel, directory: Path) -> None:
    """Write the trained weights of ``world_model``, and all it is rebuilt from, to the folder ``directory``."""
    config = asdict(world_model.config)
    if config["pretrained"] and Path(config["pretrained"]).exists():  # a relative path would break elsewhere
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


def save_critic(critic: CategoricalCritic, normalisation: Normalisation, directory: Path) -> None:
    """Write ``critic`` to the folder ``directory``; ``normalisation`` is that of the dataset that it learned from."""
    checkpoint = Checkpoint(
        kind="critic",
        name="categorical",
        config={},
        spec=critic.spec,
        normalisation=normalisation,
        weights=critic.state_dict(),
    )
    save_checkpoint(directory, checkpoint)


def load_critic(directory: Path) -> CategoricalCritic:
    """A critic in eval mode, from its checkpoint only."""
    checkpoint = load_checkpoint(directory, "critic")
    critic = CategoricalCritic.empty(checkpoint.spec, len(checkpoint.normalisation.proprio_mean))
    load_weights(critic, checkpoint, directory)
    return critic.eval()


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
