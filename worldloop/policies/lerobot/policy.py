"""Any of LeRobot's policies that makes a chunk of actions from one observation, e.g. ACT, Diffusion, SmolVLA or pi0.

    Observation -> batch by LeRobot's names -> preprocessor -> policy -> postprocessor -> actions

Weights, loss and both processors are LeRobot's own. What is ours:

1. Normalisation: mean and standard deviation of proprio are those of SANS, frozen with its version 1; other statistics
   are those of the episodes that are imitated (`prepare`).
2. Noise comes from the row's noise key (`draw_by_row`); without a key a policy starts from no noise at all.
3. Actions are clipped to the robot's bounds.
4. A policy trained on what ``worldloop sans merge`` writes makes rows of s actions, those between two frames. They are
   taken apart here.

Shapes: B rows, H actions a chunk, A action dimensions, s = ``actions_per_row``.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldloop.core.errors import WorldloopError
from worldloop.core.hub import HUB_ADDRESS, fetch_snapshot
from worldloop.core.interfaces import ImitationSource, Metrics, Policy
from worldloop.core.specs import SimulatorSpec
from worldloop.core.types import ActionChunk, ImitationBatch, Normalisation, Observation
from worldloop.policies.lerobot import statistics
from worldloop.policies.lerobot.config import LeRobotConfig
from worldloop.policies.lerobot.library import (
    ACTION,
    IMAGES,
    POSTPROCESSOR,
    PREPROCESSOR,
    STATE,
    Description,
    Features,
    describe_fresh,
    open_parts,
    read_folder,
)
from worldloop.policies.lerobot.noise import draw_by_row
from worldloop.policies.lerobot.statistics import Statistics, Table

_HUB_FILES = ("*.json", "*.safetensors")


class LeRobotPolicy(Policy):
    """``policy`` is LeRobot's own module. Fresh weights come from torch's global generator.

    Before `prepare` the statistics of proprio are guessed from ``normalisation``, and those of actions from the robot's
    bounds. Raises `WorldloopError` if LeRobot cannot build the policy, or if it cannot work here.
    """

    Config = LeRobotConfig

    def __init__(
        self, config: LeRobotConfig, spec: SimulatorSpec, normalisation: Normalisation, chunk_length: int
    ) -> None:
        super().__init__()
        self.config, self.normalisation, self.chunk_length = config, normalisation, chunk_length
        self.temperature, self.version = 1.0, ""
        description, folder = _describe(config, chunk_length)
        self.image_features = _name_cameras(config, spec, description)
        self.spec = spec.with_cameras(tuple(self.image_features))
        self.actions_per_row = _count_actions_per_row(description, self.spec)
        features = _list_features(self.spec, self.image_features, self.actions_per_row)
        self.statistics = Statistics(features.statistics)
        self._guess_statistics()
        keeps = config.keeps_statistics and folder is not None
        table: Table = {} if keeps else self.statistics.table()
        self._parts = open_parts(description, features, table, chunk_length // self.actions_per_row, folder)
        self.policy = self._parts.policy
        if config.saved:
            _remember_loading(self._parts.config, config.saved["config"])
        if keeps:
            self._keep_statistics(self._parts.read_statistics())
        self.horizon = len(self._parts.config.action_delta_indices) * self.actions_per_row
        self._use_statistics()

    @classmethod
    def choose_class(cls, settings: LeRobotConfig) -> type[Policy]:
        """One with log-probabilities if ``sde_level`` is above 0, one for RECAP with ``tells_advantage``."""
        from worldloop.policies.lerobot.advantage import LeRobotAdvantagePolicy
        from worldloop.policies.lerobot.likelihood import LeRobotFlowPolicy

        if settings.tells_advantage:
            return LeRobotAdvantagePolicy
        return LeRobotFlowPolicy if settings.sde_level > 0 else cls

    @property
    def imitation_length(self) -> int:
        """The policy's own horizon, rounded up to whole frames."""
        s = self.spec.actions_per_frame
        return -(-self.horizon // s) * s

    def describe_settings(self, settings: LeRobotConfig) -> LeRobotConfig:
        """``settings`` with config and processors in full, so that no folder is needed to build the policy again."""
        saved = self._parts.describe()
        return replace(settings, type=saved["config"]["type"], path="", config={}, saved=saved)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As `torch.nn.Module.load_state_dict`; a weight takes over the precision that it was saved in."""
        for name, own in self.state_dict(keep_vars=True).items():
            if name in state_dict and state_dict[name].dtype != own.dtype:
                own.data = own.data.to(state_dict[name].dtype)
        result = super().load_state_dict(state_dict, strict, assign)
        self._use_statistics()
        return result

    def prepare(self, dataset: ImitationSource) -> None:
        """Take the statistics of ``dataset``; with ``keeps_statistics`` those of the pretrained policy stay.

        Raises ``ValueError`` for a missing camera.
        """
        if self.config.keeps_statistics:
            return
        frames = dataset.images()
        for camera, feature in self.image_features.items():
            if camera not in frames:
                raise ValueError(f"the episodes to imitate have no camera {camera!r}: they have {', '.join(frames)}")
            self.statistics.put(feature, self._describe_images(frames[camera]))
        proprio = statistics.widen(statistics.describe_vectors(dataset.proprio()))
        proprio[:2] = self._frozen_proprio()
        self.statistics.put(STATE, proprio)
        self.statistics.put(ACTION, statistics.describe_vectors(dataset.actions()).repeat(1, self.actions_per_row))
        self._use_statistics()

    @torch.no_grad()
    def act(self, observation: Observation, noise_key: Tensor | None) -> ActionChunk:
        """See `Actor.act`. The chunk is the first part of LeRobot's own, with zero noise if there is no key."""
        batch = self.preprocess(observation)
        was_training = self.policy.training
        self.policy.reset()  # type: ignore[operator]
        with draw_by_row(noise_key, observation.env_step, self.temperature, self._device):
            chunk = self.policy.predict_action_chunk(batch)  # type: ignore[operator]
        self.policy.train(was_training)
        actions = self._parts.postprocessor(chunk).unflatten(2, (self.actions_per_row, -1)).flatten(1, 2)
        return ActionChunk(self._clip(actions), policy_version=self.version)

    def compute_imitation_loss(self, batch: ImitationBatch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """LeRobot's own loss; rows with invalid actions count as padding. ``generator`` seeds all that it draws."""
        length = self.horizon - batch.actions.shape[1]
        actions, is_pad = batch.actions[:, : self.horizon], ~batch.valid[:, : self.horizon]
        if length > 0:
            actions = torch.cat([actions, actions[:, -1:].expand(-1, length, -1)], dim=1)
            is_pad = torch.cat([is_pad, torch.ones_like(is_pad[:, :1]).expand(-1, length)], dim=1)
        actions, is_pad = (value.unflatten(1, (-1, self.actions_per_row)) for value in (actions, is_pad))
        rows = {ACTION: actions.flatten(2), f"{ACTION}_is_pad": is_pad.any(dim=-1)}
        inputs = self.preprocess(batch.observation, rows)
        seed = int(torch.randint(2**62, (), generator=generator))
        devices = [self._device] if self._device.type == "cuda" else []
        # PyTorch 2.11's bf16 convolutions on the CPU leave gradients uninitialised where a kernel meets padding alone.
        is_exact = self._device.type == "cpu" and any(_learns_by_convolution(part) for part in self.policy.modules())
        with (
            torch.random.fork_rng(devices=devices),
            torch.autocast("cpu", enabled=False) if is_exact else nullcontext(),
        ):
            torch.manual_seed(seed)
            loss, told = self.policy(inputs)
        return loss, {name: float(value) for name, value in (told or {}).items() if isinstance(value, int | float)}

    def preprocess(self, observation: Observation, more: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
        """What LeRobot's policy takes: ``observation``, and the batch's other entries, through the preprocessor."""
        if observation.proprio is None:
            raise WorldloopError("LeRobot's policies need proprio, and the observation has none")
        self._parts.follow(self._device)
        batch: dict[str, Any] = {
            feature: observation.frames[camera][:, -1].to(self._device).movedim(-1, 1).float() / 255
            for camera, feature in self.image_features.items()
        }
        batch[STATE] = observation.proprio.to(self._device).float()
        if self._parts.config.observation_delta_indices is not None:  # then LeRobot's datasets have an axis of time
            batch = {feature: value[:, None] for feature, value in batch.items()}
        batch["task"] = list(observation.instruction)
        batch |= {name: value.to(self._device) for name, value in (more or {}).items()}
        return self._parts.preprocessor(batch)  # type: ignore[no-any-return]

    def save_pretrained(self, folder: Path) -> None:
        """Write a folder that LeRobot loads, with ``from_pretrained`` of the policy's class and of its processors."""
        self._parts.save(folder)

    def _clip(self, actions: Tensor) -> Tensor:
        """The first H of the actions, on the CPU and within the robot's bounds."""
        low, high = torch.tensor(self.spec.robot.action_low), torch.tensor(self.spec.robot.action_high)
        return actions[:, : self.chunk_length].float().cpu().clamp(low, high)

    @property
    def _device(self) -> torch.device:
        return self.statistics[STATE].device

    def _use_statistics(self) -> None:
        self._parts.use_statistics(self.statistics.table())

    def _keep_statistics(self, held: Table) -> None:
        """Take over what a pretrained policy's processors hold, where the shapes agree."""
        for feature in self.statistics.features:
            values = self.statistics[feature]
            for number, name in enumerate(statistics.NAMES):
                value = held.get(feature, {}).get(name)
                if value is not None and value.numel() == values[number].numel():
                    values[number] = value.reshape(values[number].shape)

    def _frozen_proprio(self) -> Tensor:
        """Mean and standard deviation f32 [2, S] of SANS."""
        return torch.stack([self.normalisation.proprio_mean, self.normalisation.proprio_std]).float()

    def _describe_images(self, images: Tensor) -> Tensor:
        values = statistics.describe_images(images)
        if self.config.imagenet_statistics:
            values[0, :, 0, 0] = torch.tensor(statistics.IMAGENET_MEAN)
            values[1, :, 0, 0] = torch.tensor(statistics.IMAGENET_STD)
        return values

    def _guess_statistics(self) -> None:
        """Statistics from what is known without a dataset."""
        robot = self.spec.robot
        low, high = (torch.tensor(bound).clamp(-1e3, 1e3) for bound in (robot.action_low, robot.action_high))
        self.statistics.put(STATE, statistics.guess(*self._frozen_proprio()))
        guessed = statistics.guess((low + high) / 2, (high - low) / 6)
        self.statistics.put(ACTION, guessed.repeat(1, self.actions_per_row))
        for feature in self.image_features.values():
            self.statistics.put(
                feature, self._describe_images(torch.arange(256).byte().reshape(1, 1, -1, 1).expand(-1, -1, -1, 3))
            )


def _learns_by_convolution(part: nn.Module) -> bool:
    return isinstance(part, nn.Conv1d | nn.Conv2d) and part.weight.requires_grad


def _describe(config: LeRobotConfig, chunk_length: int) -> tuple[Description, Path | None]:
    """The policy that ``config`` names, and the folder of its weights; ``None``: fresh ones."""
    if config.saved:
        saved = config.saved
        loaded = {key: value for key, value in _SKIPPED_LOADING.items() if key in saved["config"]}
        return Description(saved["config"] | loaded, saved[PREPROCESSOR], saved[POSTPROCESSOR]), None
    if not config.path:
        if not config.type:
            raise WorldloopError(
                "policy.kind=lerobot: set policy.lerobot.type, e.g. act, diffusion or smolvla, or policy.lerobot.path"
            )
        if config.keeps_statistics:
            raise WorldloopError("policy.lerobot.keeps_statistics keeps those of policy.lerobot.path, which is not set")
        return describe_fresh(config.type, config.config, chunk_length), None
    address = HUB_ADDRESS.fullmatch(config.path)
    folder = fetch_snapshot(address["name"], address["revision"], _HUB_FILES) if address else Path(config.path)
    if not folder.is_dir():
        raise WorldloopError(f"policy.lerobot.path {config.path} is no folder; on the Hub it would be hf://owner/name")
    description = read_folder(folder, config.config)
    if config.type not in ("", description.type):
        raise WorldloopError(
            f"policy.lerobot.type is {config.type}, and {config.path} holds a {description.type}: leave type out"
        )
    return description, folder


# What a policy downloads when it is built anew, although a checkpoint holds its weights.
_SKIPPED_LOADING = {"pretrained_backbone_weights": None, "load_vlm_weights": False}


def _remember_loading(config: Any, saved: Mapping[str, Any]) -> None:
    """Let an export say what the policy was made from; its backbone's weights are in it."""
    if "load_vlm_weights" in saved:
        config.load_vlm_weights = saved["load_vlm_weights"]


def _name_cameras(config: LeRobotConfig, spec: SimulatorSpec, description: Description) -> dict[str, str]:
    """Our camera -> its feature in the policy, in the order of the pretrained policy's own, else of ours."""
    known = spec.robot.camera_names
    chosen = config.cameras or {name: name for name in known}
    for name in chosen:
        if name not in known:
            raise WorldloopError(f"policy.lerobot.cameras: camera {name!r} is not one of {', '.join(known)}")
    named = {name: theirs if theirs.startswith("observation.") else IMAGES + theirs for name, theirs in chosen.items()}
    if not config.path:
        return named
    inputs = description.config.get("input_features") or {}
    theirs = [feature for feature, value in inputs.items() if value["type"] == "VISUAL"]
    if not config.cameras:
        named = {name: feature for name, feature in named.items() if feature in theirs}
    unknown = [feature for feature in named.values() if feature not in theirs]
    if unknown or not named:
        raise WorldloopError(
            f"the policy in {config.path} reads {', '.join(theirs) or 'no image'}, and the cameras here are "
            f"{', '.join(known)}: set policy.lerobot.cameras={{{known[0]}: NAME}}"
        )
    return dict(sorted(named.items(), key=lambda item: theirs.index(item[1])))


def _count_actions_per_row(description: Description, spec: SimulatorSpec) -> int:
    """s of a policy that was trained on rows of s = ``spec.actions_per_frame`` actions side by side, else 1."""
    shape = ((description.config.get("output_features") or {}).get(ACTION) or {}).get("shape") or [0]
    s = spec.actions_per_frame
    return s if shape[0] == s * spec.robot.action_dim else 1


def _list_features(spec: SimulatorSpec, image_features: Mapping[str, str], actions_per_row: int) -> Features:
    robot = spec.robot
    sizes = {camera.name: (3, camera.height, camera.width) for camera in robot.cameras}
    return Features(
        {feature: sizes[camera] for camera, feature in image_features.items()},
        (robot.proprio_dim,),
        (actions_per_row * robot.action_dim,),
    )
