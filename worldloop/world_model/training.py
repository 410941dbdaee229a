"""Training of a world model: the joint loss of video and success, and its objective.

`compute_joint_loss` predicts M frames of a clip, each from the one before, and compares each with a `Target`. That is
the real frame (`DataTarget`, flow matching) or the result of a teacher's sampler (`TeacherTarget`, distillation).
`WorldModelObjective` and `ProprioObjective` give the losses to the `Trainer`.

Latents are a dict by camera; the video loss and the PSNR that the error head learns are means over cameras.
Shapes: B rows, M target frames, s actions per frame, S proprio, A action, C x h x w latents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from worldloop.core.context_frames import NUM_CONTEXT_FRAMES, shift_frames
from worldloop.core.interfaces import Metrics
from worldloop.core.types import Clip
from worldloop.networks import flow
from worldloop.networks.views import map_views
from worldloop.training.data_parallel import DataParallel
from worldloop.training.resume import Stateful
from worldloop.training.trainer import BatchObjective
from worldloop.world_model import losses
from worldloop.world_model.model import VideoWorldModel
from worldloop.world_model.self_rollout import OwnPrediction, SelfRolloutPool
from worldloop.world_model.variation import vary_context, vary_judged, vary_landmarks

POSITIVE_RATE_DECAY = 0.99


@dataclass(frozen=True)
class NoisyFrame:
    """One frame to predict: ``noisy``, camera -> [B, C, h, w], at time ``t`` [B] on the path from noise to ``data``.

    It follows ``context``, camera -> [B, K, C, h, w], under ``low_dim`` [B, D], see `VideoWorldModel.normalise`, and
    ``actions`` [B, s, A] in [-1, 1].
    """

    noisy: dict[str, Tensor]
    t: Tensor
    data: dict[str, Tensor]
    context: dict[str, Tensor]
    low_dim: Tensor
    actions: Tensor
    instruction: tuple[str, ...]


class Target(Protocol):
    """Defines which data the denoiser learns to predict for a noisy frame."""

    def sample_times(self, num_rows: int, generator: torch.Generator) -> Tensor:
        """Draw times f32 [num_rows] in [0, 1), on the CPU."""
        ...

    def find(self, frame: NoisyFrame) -> dict[str, Tensor]:
        """The correct prediction for ``frame``, camera -> [B, C, h, w], without gradients."""
        ...


@dataclass(frozen=True)
class DataTarget:
    """Flow matching: the target is the real frame. ``zero_time_share`` of the rows start from pure noise (t = 0)."""

    zero_time_share: float

    def sample_times(self, num_rows: int, generator: torch.Generator) -> Tensor:
        return flow.sample_times(num_rows, self.zero_time_share, generator)

    def find(self, frame: NoisyFrame) -> dict[str, Tensor]:
        return frame.data


@dataclass(frozen=True)
class TeacherTarget:
    """Distillation: with the target, one of the student's ``num_steps`` ends where several steps of ``teacher`` end.

    Progressive distillation (arXiv:2202.00512, section 3) on this flow path, with all halvings in one. ``num_steps``
    must divide the teacher's ``num_sampler_steps``. Both models imagine the same cameras.
    """

    teacher: VideoWorldModel
    num_steps: int

    def sample_times(self, num_rows: int, generator: torch.Generator) -> Tensor:
        return torch.randint(self.num_steps, (num_rows,), generator=generator) / self.num_steps

    @torch.no_grad()
    def find(self, frame: NoisyFrame) -> dict[str, Tensor]:
        teacher, num_steps = self.teacher, self.num_steps
        own = teacher.config.num_sampler_steps
        step = (frame.t * num_steps).round().long()
        covered = own // num_steps
        with teacher.autocast():
            embedded = teacher.instruction(frame.instruction)
            conditioning, _ = teacher.condition(frame.context, frame.low_dim, frame.actions, embedded)
            memory = teacher.denoiser.remember(frame.context, embedded)
            reached = frame.noisy
            for i in range(covered):
                t, t_next = ((step * covered + k) / own for k in (i, i + 1))
                output = teacher.denoiser(map_views(_as_single, reached), t, memory, conditioning)
                reached = {c: flow.euler_step(reached[c], d[:, 0].float(), t, t_next) for c, d in output.data.items()}

        def find_data(noisy: Tensor, end: Tensor) -> Tensor:
            return flow.data_from_velocity(noisy, (end - noisy) * num_steps, step / num_steps)

        return map_views(find_data, frame.noisy, reached)


@dataclass(frozen=True)
class ActionTerm:
    """A loss on what the predicted frame shows the robot do: its actions, read back by inverse dynamics.

    ``read`` gets windows of the frames before, now and next, camera -> float [B, 3, 3, h, w] in [-1, 1], and returns
    actions f32 [B, s, A], which are -1 to 1 in bounds, with gradients. The loss is their squared error times
    ``weight``. It helped a policy that learned inside the world model (WAM, arXiv:2603.28955).
    """

    read: Callable[[Mapping[str, Tensor]], Tensor]
    weight: float

    def compute_loss(self, context: Mapping[str, Tensor], predicted: Mapping[str, Tensor], actions: Tensor) -> Tensor:
        """[B], from ``context``, camera -> [B, K, 3, h, w], and ``predicted``, camera -> [B, 3, h, w]."""
        windows = {c: torch.cat([context[c][:, -2:], frame[:, None]], dim=1) for c, frame in predicted.items()}
        return self.weight * (self.read(windows) - actions).square().mean(dim=(1, 2))


@dataclass(frozen=True)
class _Prediction:
    """One frame's losses and its detached prediction, ``next_latent`` camera -> [B, C, h, w]."""

    terms: losses.FrameLosses
    next_latent: dict[str, Tensor]
    next_low_dim: Tensor
    is_prediction: Tensor


def compute_joint_loss(
    model: VideoWorldModel,
    clip: Clip,
    generator: torch.Generator,
    target: Target | None = None,
    action_term: ActionTerm | None = None,
) -> tuple[Tensor, Metrics, OwnPrediction]:
    """The joint loss over the M frames of ``clip``, each predicted from the one before; metrics; the first prediction.

    From the second frame on, the context continues with the model's own detached frame and proprio if that prediction
    started from pure noise, else with the real ones. ``generator`` is a CPU generator; only valid frames count. The
    proprio head gets no gradient here, see `compute_proprio_loss`.
    """
    target = target or DataTarget(model.config.zero_time_share)
    clip = clip.to(model.device)
    context, frames = model.encode(clip.context), model.encode(clip.frames)
    low_dim = vary_landmarks(model, clip.context_proprio, clip.context_landmarks, generator)
    real_low_dim = model.normalise(clip.proprio, clip.landmarks)
    with model.autocast():
        instruction = model.instruction(clip.instruction)
    predictions: list[_Prediction] = []
    for m in range(clip.valid.shape[1]):
        real = {camera: latents[:, m] for camera, latents in frames.items()}
        prediction = _predict_frame(
            model, clip, m, context, real, real_low_dim[:, m], low_dim, instruction, generator, target, action_term
        )
        predictions.append(prediction)
        blind = prediction.is_prediction[:, None]
        for camera, latent in prediction.next_latent.items():
            following = torch.where(blind[:, :, None, None], latent, real[camera])
            context[camera] = shift_frames(context[camera], following)
        low_dim = torch.where(blind, prediction.next_low_dim, real_low_dim[:, m])
    loss, metrics = losses.add_up([p.terms for p in predictions], clip.valid, model.config.success_weight)
    first = predictions[0]
    proprio, landmarks = model.denormalise(first.next_low_dim)
    own = OwnPrediction(
        frames=model.codec.decode(first.next_latent),
        proprio=proprio,
        landmarks=clip.landmarks[:, 0] if model.landmarks is None else landmarks,
        is_prediction=first.is_prediction & clip.valid[:, 0],
    )
    return loss, metrics, own


def _predict_frame(
    model: VideoWorldModel,
    clip: Clip,
    m: int,
    context: dict[str, Tensor],
    data: dict[str, Tensor],
    data_low_dim: Tensor,
    low_dim: Tensor,
    instruction: Tensor,
    generator: torch.Generator,
    target: Target,
    action_term: ActionTerm | None,
) -> _Prediction:
    config, limit = model.config, model.codec.limit

    # the noisy frame, and a varied context
    t = target.sample_times(len(low_dim), generator).to(model.device)
    noise = map_views(lambda real: torch.randn(real.shape, generator=generator).to(model.device), data)
    seen = vary_context(context, config.context_noise, generator)
    actions = model.scale_actions(clip.actions[:, m])
    noisy = map_views(partial(flow.interpolate, t=t), noise, data)
    aim = target.find(NoisyFrame(noisy, t, data, seen, low_dim, actions, clip.instruction))

    # the predicted frame and the heads' outputs
    with model.autocast():
        conditioning, next_low_dim = model.condition(seen, low_dim, actions, instruction)
        memory = model.denoiser.remember(seen, instruction)
        output = model.denoiser(map_views(_as_single, noisy), t, memory, conditioning)
        token_logit = model.success_head.read_tokens(output.features)[:, 0]
        judged = vary_judged(map_views(lambda latents: latents[:, 0], context), data, data_low_dim, generator)
        frame_logit = model.success_head.read_frame(*judged, instruction)
        logits = [frame_logit]
        if model.success_head.read_gaps is not None:
            gaps = model.find_gaps(vary_landmarks(model, clip.proprio[:, m], clip.landmarks[:, m], generator))
            logits.append(model.success_head.read_gaps(gaps, instruction))
        expected_db = model.error_head(output.features)[:, 0]
    predicted = map_views(lambda latents: latents[:, 0].float(), output.data)
    next_latent = map_views(lambda latents: latents.detach().clamp(-limit, limit), predicted)

    # losses, per row
    video, actual_db = [], []
    for camera, size in model.codec.sizes.items():
        weights = losses.weigh_target(clip, m, camera, size, config.moved_weight, config.rare_weight)
        video.append(losses.compute_video_loss(config.video_loss, predicted[camera], aim[camera], weights))
        actual_db.append(losses.compute_latent_psnr_db(next_latent[camera], data[camera], limit))
    by_tokens, *others = (
        losses.compute_success_loss(config.success_loss, logit, clip.holds[:, m], model.positive_rate)
        for logit in (token_logit, *logits)
    )
    error = model.error_head.compute_loss(expected_db, torch.stack(actual_db).mean(0))
    terms = losses.FrameLosses(
        video=torch.stack(video).mean(0),
        success=torch.stack(others).sum(0) + by_tokens * losses.weigh_times(t, config.success_time_weight_max),
        error=error * (t == 0),  # imagination uses the error head only at t = 0
        actions=None if action_term is None else action_term.compute_loss(context, predicted, actions),
    )
    return _Prediction(terms, next_latent, next_low_dim, is_prediction=t == 0)


def _as_single(latents: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, 1, C, h, w], the denoiser's input for one frame."""
    return latents[:, None]


@torch.no_grad()
def update_positive_rate(model: VideoWorldModel, clips: Sequence[Clip], data_parallel: DataParallel) -> None:
    """Update the moving average of the share of success frames, which balances the success loss, with one batch.

    ``clips`` are this rank's microbatches; all ranks get the same average.
    """
    counts = []
    for clip in clips:
        valid = clip.valid.float()
        counts.append(torch.stack([(clip.holds * valid).sum(), valid.sum()]).to(model.device))
    successes, total = data_parallel.all_reduce_sum(torch.stack(counts).sum(0))
    model.positive_rate.lerp_(successes / total.clamp_min(1), 1 - POSITIVE_RATE_DECAY)


class ClipSource(Protocol):
    """Training clips. An index row is (episode, frame step of "now"); ``num_frame_steps`` int64 [E] is by episode."""

    @property
    def num_frame_steps(self) -> Tensor: ...

    def sample(self, generator: torch.Generator, batch_size: int) -> Tensor:
        """Draw index rows int64 [B, 2]."""
        ...

    def load(
        self,
        index: Tensor,
        num_frames: int,
        num_context_frames: int = NUM_CONTEXT_FRAMES,
        cameras: Sequence[str] | None = None,
    ) -> Clip:
        """See `ClipDataset.load`."""
        ...


class WorldModelObjective(BatchObjective[Clip]):
    """The joint loss on clips of one frame step.

    From training step ``pool_from`` on, a share of every microbatch continues the model's own predictions
    (`SelfRolloutPool`). ``batch_size`` is the size of a microbatch.
    """

    def __init__(
        self,
        model: VideoWorldModel,
        clips: ClipSource,
        generators: Mapping[int, torch.Generator],
        data_parallel: DataParallel,
        *,
        batch_size: int,
        pool_from: int = 0,
        target: Target | None = None,
        action_term: ActionTerm | None = None,
    ) -> None:
        super().__init__(generators)
        self.model, self.clips, self.data_parallel = model, clips, data_parallel
        self.batch_size, self.pool_from, self.target = batch_size, pool_from, target
        self.action_term = action_term
        share = model.config.self_rollout.share
        self._uses_pool = dict.fromkeys(generators, False)
        self.pools = {number: SelfRolloutPool(batch_size, share, clips.num_frame_steps) for number in generators}

    def draw_batch(self, step: int, number: int) -> Clip:
        generator = self.generators[number]
        self._uses_pool[number] = step >= self.pool_from
        if self._uses_pool[number]:
            return self.pools[number].compose(partial(self.clips.sample, generator), self._load)
        return self.draw(generator)

    def draw(self, generator: torch.Generator) -> Clip:
        return self._load(self.clips.sample(generator, self.batch_size), 1)

    def _load(self, index: Tensor, num_frames: int) -> Clip:
        return self.clips.load(index, num_frames, self.model.num_context_frames)

    def count(self, batch: Clip) -> Tensor:
        return batch.valid.sum()

    def prepare_update(self, batches: Mapping[int, Clip]) -> None:
        update_positive_rate(self.model, list(batches.values()), self.data_parallel)

    def compute_loss(self, batch: Clip, number: int) -> tuple[Tensor, Metrics]:
        clip, generator = batch.to(self.model.device), self.generators[number]
        loss, metrics, own = self.model(compute_joint_loss, clip, generator, self.target, self.action_term)
        if self._uses_pool[number]:
            self.pools[number].update(batch, own)
        return loss, metrics

    def microbatch_state(self) -> dict[int, dict[str, Stateful]]:
        return {number: state | {"pool": self.pools[number]} for number, state in super().microbatch_state().items()}
