"""Follow a video in the simulator: inverse dynamics reads the actions that lead to its next frame (EVA).

The paper's planner executes the joint positions that it reads (arXiv:2603.17808). Our controllers take changes, and if
all of them were read from the video, their errors would add up. So the first window of a chunk ends at the video's next
frame, but begins with what the camera really shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worldloop.core.interfaces import ActionReader
from worldloop.core.types import ActionChunk, Observation
from worldloop.networks.views import map_views


@dataclass(frozen=True)
class Video:
    """Videos to follow: ``frames``, camera -> u8 [N, T, h, w, 3], the first of which shows the start.

    ``inverse_dynamics`` is the checkpoint of the model that reads them.
    """

    frames: dict[str, Tensor]
    inverse_dynamics: str

    def rows(self, index: Sequence[int]) -> Video:
        return Video(map_views(lambda frames: frames[list(index)], self.frames), self.inverse_dynamics)


class VideoFollower:
    """An `Actor` for one rollout that does what ``frames``, camera -> u8 [B, T, h, w, 3], show.

    After the last frame it tries to stay there. ``chunk_length`` is a multiple of ``actions_per_frame``.
    """

    version = "video"

    def __init__(self, model: ActionReader, frames: dict[str, Tensor], chunk_length: int) -> None:
        self.model, self.frames = model, frames
        self.num_frames = chunk_length // model.spec.actions_per_frame
        self._now = 0

    def act(self, observation: Observation, noise_key: Tensor | None) -> ActionChunk:
        steps = torch.arange(self._now + 1, self._now + 1 + self.num_frames)
        self._now += self.num_frames
        plan = map_views(lambda frames: frames[:, steps.clamp(max=frames.shape[1] - 1)], self.frames)
        return ActionChunk(self.model.read_plan(observation.frames, plan), policy_version=self.version)
