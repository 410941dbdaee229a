"""Real starts of generated videos, and what really followed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from worldloop.core import images
from worldloop.core.errors import WorldloopError
from worldloop.core.tensors import Rows
from worldloop.core.types import Clip, Observation
from worldloop.networks.views import map_views
from worldloop.sans.clips import ClipDataset
from worldloop.sans.imitation import EVERY_SUCCESS


@dataclass(frozen=True)
class Starts(Rows):
    """V real starts: ``observation``, and the ``clip`` that followed, M frames."""

    observation: Observation
    clip: Clip


def find_starts(clips: ClipDataset, num_frames: int, *, successes: bool) -> Tensor:
    """Frame steps int64 [N, 2] of the split that are followed by ``num_frames`` frames; of ``successes`` alone.

    Raises ``WorldloopError`` if there is none.
    """
    episode, step = clips.candidates.T
    remaining = torch.from_numpy(clips.cache.num_steps)[episode] - step
    is_long = remaining >= num_frames
    if successes:
        chosen = torch.from_numpy(clips.cache.select(split=clips.split, outcome=EVERY_SUCCESS.outcomes))
        is_long &= torch.isin(episode, chosen)
    if not is_long.any():
        what = "success" if successes else "episode"
        raise WorldloopError(
            f"align_world_model: no {clips.split} {what} has {num_frames} frames; lower align_world_model.num_frames"
        )
    return clips.candidates[is_long]


def draw_starts(clips: ClipDataset, index: Tensor, num_frames: int, generator: torch.Generator, number: int) -> Starts:
    """``number`` rows of ``index``, drawn with replacement."""
    rows = index[torch.randint(len(index), (number,), generator=generator)]
    return Starts(clips.observation(rows), clips.load(rows, num_frames))


def add_start(frames: Mapping[str, Tensor], starts: Starts, num_real: int) -> dict[str, Tensor]:
    """Generated ``frames``, camera -> [V, M, 3, h, w], after the ``num_real`` latest real ones of each start."""
    context = starts.clip.context
    return {
        camera: torch.cat([images.to_network(context[camera][:, -num_real:].to(latents.device)), latents], dim=1)
        for camera, latents in frames.items()
    }


def show_real(starts: Starts, device: torch.device) -> dict[str, Tensor]:
    """The real video of each start, camera -> float [V, M + 1, 3, h, w]."""
    real = map_views(lambda frames: images.to_network(frames.to(device)), starts.clip.frames)
    return add_start(real, starts, num_real=1)
