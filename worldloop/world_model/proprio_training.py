"""Training of the proprio head, and of the reader of landmarks beside it, before video and success.

Shapes: B rows, M target frames, K members of the head, S proprio, P coordinates of landmarks, D = S + P.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from worldloop.core.interfaces import Metrics
from worldloop.core.types import Clip
from worldloop.training.trainer import BatchObjective
from worldloop.world_model.landmarks import compute_landmark_loss
from worldloop.world_model.model import VideoWorldModel
from worldloop.world_model.training import ClipSource
from worldloop.world_model.variation import vary_landmarks

PROPRIO_DELTA = 0.3  # standard deviations; from there on an error of proprio counts linearly, not squared


def compute_proprio_loss(model: VideoWorldModel, clip: Clip, generator: torch.Generator) -> Tensor:
    """Huber loss of proprio, and of landmarks that the model carries on, unrolled over M frames on own predictions.

    Images, if the head reads any, are real. Gradients flow through the unrolled steps, to the proprio head alone. Only
    valid frames count. Contacts are rare, and there the head is wrong by centimetres. The absolute error, whose best
    guess is the median, all but ignores them; a policy trained in the world model then finds them.
    """
    clip = clip.to(model.device)
    seen = model.proprio_head.cameras
    images = model.codec.encode({c: torch.cat([clip.context[c][:, -1:], clip.frames[c][:, :-1]], dim=1) for c in seen})
    S = clip.context_proprio.shape[1]
    num_members = len(model.proprio_head.members)
    low_dim = torch.stack(
        [vary_landmarks(model, clip.context_proprio, clip.context_landmarks, generator) for _ in range(num_members)],
        dim=1,
    )
    real = model.normalise(clip.proprio, clip.landmarks)[:, :, None].expand(-1, -1, num_members, -1)
    error = torch.zeros_like(clip.valid, dtype=torch.float32)
    for m in range(clip.valid.shape[1]):
        now = {camera: latents[:, m] for camera, latents in images.items()}
        low_dim = model.predict_low_dim(low_dim, model.scale_actions(clip.actions[:, m]), now)
        target = real[:, m]
        off = functional.huber_loss(low_dim[..., :S], target[..., :S], delta=PROPRIO_DELTA, reduction="none").mean(2)
        if model.landmarks is not None:
            off = off + compute_landmark_loss(low_dim[..., S:], target[..., S:])
            robot, there = (model.landmarks.find_robot(model.denormalise(both)[0]) for both in (low_dim, target))
            off = off + (compute_landmark_loss(robot, there) if robot.shape[-1] else 0.0)
        error[:, m] = off.mean(1)
    return (error * clip.valid).sum() / clip.valid.sum().clamp_min(1) / PROPRIO_DELTA


def compute_reading_loss(model: VideoWorldModel, clip: Clip) -> Tensor:
    """The loss of `LandmarkReader` on the frames from which the clips start."""
    assert model.landmarks is not None
    clip = clip.to(model.device)
    with model.autocast():
        instruction = model.instruction(clip.instruction).detach()
    context = model.codec.encode({camera: clip.context[camera] for camera in model.head_cameras})
    read = model.read_landmarks(context, model.normalisation.normalise(clip.context_proprio), instruction)
    return compute_landmark_loss(read, model.landmarks.scale(clip.context_landmarks)).mean() / PROPRIO_DELTA


class ProprioObjective(BatchObjective[Clip]):
    """The proprio head's loss on clips of ``num_frames`` frame steps; ``batch_size`` is the size of a microbatch.

    Only images that the head reads are loaded.
    """

    progress_metric = "loss_proprio"

    def __init__(
        self,
        model: VideoWorldModel,
        clips: ClipSource,
        generators: Mapping[int, torch.Generator],
        *,
        batch_size: int,
        num_frames: int,
    ) -> None:
        super().__init__(generators)
        self.model, self.clips, self.batch_size, self.num_frames = model, clips, batch_size, num_frames

    def draw(self, generator: torch.Generator) -> Clip:
        index = self.clips.sample(generator, self.batch_size)
        return self.clips.load(index, self.num_frames, cameras=self.model.proprio_head.cameras)

    def count(self, batch: Clip) -> Tensor:
        return batch.valid.sum()

    def compute_loss(self, batch: Clip, number: int) -> tuple[Tensor, Metrics]:
        loss = compute_proprio_loss(self.model, batch, self.generators[number])
        return loss, {"loss_proprio": float(loss.detach())}


class ReadingObjective(BatchObjective[Clip]):
    """The loss of `LandmarkReader`; ``batch_size`` is the size of a microbatch."""

    progress_metric = "loss_reading"

    def __init__(
        self, model: VideoWorldModel, clips: ClipSource, generators: Mapping[int, torch.Generator], *, batch_size: int
    ) -> None:
        super().__init__(generators)
        self.model, self.clips, self.batch_size = model, clips, batch_size

    def draw(self, generator: torch.Generator) -> Clip:
        index = self.clips.sample(generator, self.batch_size)
        return self.clips.load(index, 1, cameras=self.model.head_cameras)

    def count(self, batch: Clip) -> Tensor:
        return torch.tensor(len(batch.index))

    def compute_loss(self, batch: Clip, number: int) -> tuple[Tensor, Metrics]:
        loss = compute_reading_loss(self.model, batch)
        return loss, {"loss_reading": float(loss.detach())}
