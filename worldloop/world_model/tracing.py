"""Generated frames with everything needed to compute again how they came about, for reinforcement learning on video.

`trace` lets a world model, or a planner, generate frames; some sampler steps may be random (`flow.sde_step`).
`predict` and `compute_random_steps` repeat single steps with gradients.

Shapes: B rows, n = B x M frames, K context frames, R random steps, C x h x w latents.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worldloop.core.randomness import row_normal
from worldloop.core.tensors import Rows
from worldloop.core.types import Observation
from worldloop.networks import flow
from worldloop.networks.views import map_views
from worldloop.world_model.denoiser import Conditioning
from worldloop.world_model.model import VideoWorldModel
from worldloop.world_model.planner import VideoPlanner
from worldloop.world_model.state import ImaginationState


@dataclass(frozen=True)
class Sampling:
    """How frames are sampled: in ``num_steps``, those numbered ``random_steps`` (from 0) at noise ``level``.

    The first step cannot be random, see `flow.sde_step`; the last one would leave noise in the frame.
    """

    num_steps: int
    random_steps: tuple[int, ...] = ()
    level: float = 0.0

    def __post_init__(self) -> None:
        steps = self.random_steps
        if not all(0 < step < self.num_steps - 1 for step in steps) or list(steps) != sorted(set(steps)):
            raise ValueError(
                f"random steps are {steps}, allowed: 1..{self.num_steps - 2} of {self.num_steps} steps, in order"
            )

    def times(self, step: int, num_rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The times f32 [num_rows] at which ``step`` begins and ends."""
        begin, end = (torch.full((num_rows,), i / self.num_steps, device=device) for i in (step, step + 1))
        return begin, end


@dataclass(frozen=True)
class TracedFrames(Rows):
    """n generated frames.

    - ``context``, camera -> [n, K, C, h, w], ``instruction`` [n, E], ``actions`` [n, s, A], ``proprio`` and
      ``next_proprio`` [n, D]: what the denoiser saw; in a plan actions and proprio are stand-ins
    - ``noisy`` and ``reached``, camera -> [n, R, C, h, w]: before and after each random step
    - ``last``, camera -> [n, C, h, w]: the input of the last step; ``data``: the frame itself
    """

    context: dict[str, Tensor]
    instruction: Tensor
    actions: Tensor
    proprio: Tensor
    next_proprio: Tensor
    noisy: dict[str, Tensor]
    reached: dict[str, Tensor]
    last: dict[str, Tensor]
    data: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.instruction)


class Tracer(ABC):
    """Tells the denoiser of ``model`` what conditions each frame."""

    def __init__(self, model: VideoWorldModel) -> None:
        self.model = model

    @abstractmethod
    def condition(self, state: ImaginationState, number: int) -> Conditioning:
        """The conditioning of the frame ``number`` (from 0) after ``state``."""

    @abstractmethod
    def recall(self, traced: TracedFrames) -> Conditioning:
        """The conditioning of frames that have been traced, with gradients where it has weights."""


class PlanTracer(Tracer):
    """Frames of a plan."""

    def __init__(self, planner: VideoPlanner) -> None:
        super().__init__(planner.world_model)
        self.planner = planner

    def condition(self, state: ImaginationState, number: int) -> Conditioning:
        return self.planner.condition(state.instruction)

    def recall(self, traced: TracedFrames) -> Conditioning:
        return self.planner.condition(traced.instruction)


class ActionTracer(Tracer):
    """Frames that follow ``actions`` f32 [B, M, s, A], in environment units."""

    def __init__(self, model: VideoWorldModel, actions: Tensor | None = None) -> None:
        super().__init__(model)
        self.actions = None if actions is None else model.scale_actions(actions.to(model.device))

    def condition(self, state: ImaginationState, number: int) -> Conditioning:
        assert self.actions is not None
        conditioning, _ = self.model.condition(state.context, state.low_dim, self.actions[:, number], state.instruction)
        return conditioning

    def recall(self, traced: TracedFrames) -> Conditioning:
        return Conditioning(traced.actions[:, None], traced.proprio, traced.next_proprio[:, None], traced.instruction)


@torch.no_grad()
def trace(
    tracer: Tracer,
    context: Observation,
    noise_key: Tensor,
    num_frames: int,
    sampling: Sampling,
    step_key: Tensor | None = None,
) -> list[TracedFrames]:
    """Generate ``num_frames`` frames after ``context``, one after the other; each entry has B of them.

    ``noise_key`` int64 [B] seeds the initial noise, ``step_key`` int64 [B] that of the random steps.
    """
    model = tracer.model
    state, traced = model.start(context, noise_key), []
    for number in range(num_frames):
        with model.autocast():
            frames = _trace_frame(tracer, state, number, sampling, step_key)
            memory = model.denoiser.shift(state.memory, frames.data, state.instruction)
        state = replace(state, memory=memory, low_dim=frames.next_proprio, step=state.step + 1)
        traced.append(frames)
    return traced


def _trace_frame(
    tracer: Tracer, state: ImaginationState, number: int, sampling: Sampling, step_key: Tensor | None
) -> TracedFrames:
    model = tracer.model
    conditioning = tracer.condition(state, number)
    noisy = model.draw_noise(state)
    before: list[dict[str, Tensor]] = []
    after: list[dict[str, Tensor]] = []
    for step in range(sampling.num_steps):
        t, t_next = sampling.times(step, len(state), model.device)
        output = model.denoiser(noisy, t, state.memory, conditioning)
        data, last = map_views(lambda latents: latents.float(), output.data), noisy
        if step in sampling.random_steps:
            assert step_key is not None
            counter = state.step * sampling.num_steps + step
            means = _step_all(last, data, t, t_next, sampling.level)
            draws = _draw_normal(step_key, counter, {camera: mean for camera, mean, _ in means})
            noisy = {camera: mean + std * draws[camera] for camera, mean, std in means}
            before.append(map_views(_first, last))
            after.append(map_views(_first, noisy))
        else:
            noisy = {camera: flow.euler_step(last[camera], frame, t, t_next) for camera, frame in data.items()}
    limit = model.codec.limit
    return TracedFrames(
        context={camera: frames.clone() for camera, frames in state.context.items()},
        instruction=state.instruction,
        actions=conditioning.actions[:, 0],
        proprio=conditioning.proprio,
        next_proprio=conditioning.next_proprio[:, 0],
        noisy=_stack(before, last),
        reached=_stack(after, last),
        last=map_views(_first, last),
        data=map_views(lambda latents: latents[:, 0].clamp(-limit, limit), data),
    )


def predict(tracer: Tracer, noisy: Mapping[str, Tensor], t: Tensor, traced: TracedFrames) -> dict[str, Tensor]:
    """The clean latents that follow from ``noisy``, camera -> [n, C, h, w], at ``t`` [n], with gradients."""
    model = tracer.model
    with model.autocast():
        memory = model.denoiser.remember(traced.context, traced.instruction)
        single = map_views(lambda latents: latents[:, None], noisy)
        output = model.denoiser(single, t, memory, tracer.recall(traced))
    return map_views(lambda latents: latents[:, 0].float(), output.data)


def predict_last(tracer: Tracer, traced: TracedFrames, sampling: Sampling) -> dict[str, Tensor]:
    """The frames themselves, camera -> [n, C, h, w], with gradients through the last sampler step alone."""
    t, _ = sampling.times(sampling.num_steps - 1, len(traced), tracer.model.device)
    limit = tracer.model.codec.limit
    return map_views(lambda latents: latents.clamp(-limit, limit), predict(tracer, traced.last, t, traced))


@dataclass(frozen=True)
class RandomSteps:
    """``log_probs`` f32 [n, R] of the steps that were taken; ``means``, camera -> [n, R, C, h, w]; ``stds`` [R]."""

    log_probs: Tensor
    means: dict[str, Tensor]
    stds: Tensor


def compute_random_steps(tracer: Tracer, traced: TracedFrames, sampling: Sampling) -> RandomSteps:
    """The random steps of ``traced`` again, with gradients. Log-probabilities are means over dimensions and cameras."""
    log_probs: list[Tensor] = []
    means: list[dict[str, Tensor]] = []
    stds: list[Tensor] = []
    for number, step in enumerate(sampling.random_steps):
        t, t_next = sampling.times(step, len(traced), tracer.model.device)
        noisy = map_views(lambda latents, r=number: latents[:, r], traced.noisy)
        data = predict(tracer, noisy, t, traced)
        by_camera, mean_of = [], {}
        for camera, mean, std in _step_all(noisy, data, t, t_next, sampling.level):
            by_camera.append(flow.compute_log_prob(traced.reached[camera][:, number], mean, std))
            mean_of[camera] = mean
        log_probs.append(torch.stack(by_camera).mean(0))
        means.append(mean_of)
        stds.append(std.flatten()[0])
    stacked = map_views(lambda *frames: torch.stack(frames, dim=1), *means)
    return RandomSteps(torch.stack(log_probs, dim=1), stacked, torch.stack(stds))


def _step_all(
    noisy: Mapping[str, Tensor], data: Mapping[str, Tensor], t: Tensor, t_next: Tensor, level: float
) -> list[tuple[str, Tensor, Tensor]]:
    """Camera, mean and std of the random step of each view."""
    return [(camera, *flow.sde_step(noisy[camera], frame, t, t_next, level)) for camera, frame in data.items()]


def _draw_normal(key: Tensor, step: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Standard normal noise of the shapes of ``like``, camera -> [B, ...]; each camera has a part of one draw."""
    counts = [latents[0].numel() for latents in like.values()]
    parts = row_normal(key, step, (sum(counts),)).split(counts, dim=1)
    return {camera: part.reshape(like[camera].shape).to(like[camera]) for camera, part in zip(like, parts, strict=True)}


def _first(latents: Tensor) -> Tensor:
    """[B, 1, ...] -> [B, ...]."""
    return latents[:, 0]


def _stack(steps: Sequence[Mapping[str, Tensor]], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Camera -> [B, R, C, h, w], also for R = 0; ``like``, camera -> [B, 1, C, h, w]."""
    if not steps:
        return map_views(lambda latents: latents[:, :0], like)
    return map_views(lambda *frames: torch.stack(frames, dim=1), *steps)
