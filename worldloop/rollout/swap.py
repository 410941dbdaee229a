"""The swap test: in the real simulator the policy sees one part of its observation imagined, and the rest as it is.

It shows which imagined part misleads the policy: a camera, or proprio. The world model imagines along, from the first
frame on, with the actions that the policy chooses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worldloop.core.context_frames import shift_frames
from worldloop.core.interfaces import Actor, WorldModel, WorldState
from worldloop.core.types import ActionChunk, Observation

PROPRIO = "proprio"


@dataclass(frozen=True)
class Swap:
    """What a policy sees imagined: ``parts``, cameras by name or `PROPRIO`, by the checkpoint ``world_model``."""

    world_model: str
    parts: tuple[str, ...]


class PartlyImagined:
    """An `Actor` for one rollout: ``actor``, which sees ``parts`` as ``world_model`` imagines them.

    Raises ``ValueError`` for a part that the world model does not imagine.
    """

    def __init__(self, actor: Actor, world_model: WorldModel, parts: tuple[str, ...]) -> None:
        allowed = (*world_model.spec.robot.camera_names, PROPRIO)
        for part in parts:
            if part not in allowed:
                raise ValueError(f"{part!r} is not imagined, allowed: {', '.join(allowed)}")
        self.actor, self.world_model, self.parts, self.version = actor, world_model, parts, actor.version
        self._state: WorldState | None = None
        self._imagined: Observation | None = None

    def act(self, observation: Observation, noise_key: Tensor | None) -> ActionChunk:
        if self._state is None or self._imagined is None:
            self._imagined = observation
            keys = torch.zeros(len(observation), dtype=torch.long) if noise_key is None else noise_key
            self._state = self.world_model.start(observation, keys)
        chunk = self.actor.act(self._swap(observation, self._imagined), noise_key)
        self._state, imagined = self.world_model.imagine(self._state, chunk.actions)
        frames = dict(self._imagined.frames)
        for camera, images in imagined.frames.items():
            for image in images.cpu().unbind(1):
                frames[camera] = shift_frames(frames[camera], image)
        self._imagined = replace(self._imagined, frames=frames, proprio=imagined.proprio[:, -1].float().cpu())
        return chunk

    def _swap(self, real: Observation, imagined: Observation) -> Observation:
        frames = {camera: (imagined if camera in self.parts else real).frames[camera] for camera in real.frames}
        return replace(real, frames=frames, proprio=(imagined if PROPRIO in self.parts else real).proprio)
