"""Reinforcement learning on generated video: one objective, three algorithms.

- `flow_grpo` (Flow-GRPO, arXiv:2505.05470): some sampler steps are random and have exact log-probabilities
- `nft` (DiffusionNFT, arXiv:2509.16117): on the forward process, see `rl.nft`
- `pathwise`: the reward's gradient through inverse dynamics and the last sampler step of each frame

Departures:

1. Members of a group share their start and, for flow_grpo, their initial noise: they differ in the random steps alone.
2. A video is made frame after frame. Gradients do not flow from a frame to the one before.
3. The old policy of nft is the model at the start of the round, not a moving average.
4. The distance to the model before alignment is, for nft and pathwise, the squared distance of predicted frames.

Shapes: V videos, M generated frames, n = V x M, R random steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from worldloop.core.interfaces import Metrics
from worldloop.core.randomness import make_row_keys
from worldloop.core.tensors import Rows
from worldloop.networks import flow
from worldloop.networks.views import map_views
from worldloop.rl.advantages import compute_group_advantages, shuffle_rows
from worldloop.rl.grpo import compute_policy_loss
from worldloop.rl.nft import compute_nft_loss
from worldloop.stages.alignment.config import AlignmentConfig
from worldloop.stages.alignment.starts import Starts
from worldloop.training.data_parallel import add_metrics
from worldloop.training.trainer import Objective
from worldloop.world_model.tracing import (
    Sampling,
    TracedFrames,
    Tracer,
    compute_random_steps,
    predict,
    predict_last,
    trace,
)


class Mode(ABC):
    """What is aligned: where videos start, what conditions them, and how they are rewarded."""

    @abstractmethod
    def draw_starts(self, generator: torch.Generator, number: int) -> Starts:
        """Draw ``number`` real starts."""

    @abstractmethod
    def make_tracer(self, starts: Starts | None, *, reference: bool = False) -> Tracer:
        """The tracer of the model in training, or of the ``reference`` before alignment.

        Without ``starts`` it can only recall what conditioned traced frames.
        """

    @abstractmethod
    def score(self, frames: Mapping[str, Tensor], starts: Starts) -> tuple[Tensor, dict[str, Tensor]]:
        """The reward f32 [V] of generated latents, camera -> [V, M, C, h, w], with gradients; and figures [V]."""


@dataclass(frozen=True)
class Generated(Rows):
    """V generated videos to learn from.

    - ``traced``: with [V, M, ...] in place of [n, ...]; ``starts``; ``advantages`` f32 [V]
    - ``log_probs`` f32 [V, M, R] of flow_grpo
    - ``t`` f32 [V, M], ``noisy`` and ``old``, camera -> [V, M, C, h, w], of nft
    """

    traced: TracedFrames
    starts: Starts
    advantages: Tensor
    log_probs: Tensor
    t: Tensor
    noisy: dict[str, Tensor]
    old: dict[str, Tensor]


class AlignmentObjective(Objective[Generated]):
    """One step is a round: generate groups of videos, score them, then take optimizer steps over them.

    ``max_batch``: most videos that are generated at once; 0: all of a microbatch.
    """

    progress_metric = "reward"
    log_every = 1

    def __init__(
        self,
        mode: Mode,
        config: AlignmentConfig,
        sampling: Sampling,
        generators: Mapping[int, torch.Generator],
        *,
        key: tuple[int | str, ...],
        num_microbatches: int,
        device: torch.device,
        max_batch: int = 0,
    ) -> None:
        super().__init__(generators)
        self.mode, self.config, self.sampling, self.key = mode, config, sampling, key
        self.num_microbatches, self.device, self.max_batch = num_microbatches, device, max_batch

    def batches(self, step: int) -> Iterable[Mapping[int, Generated]]:
        rounds = {number: self._generate(step, number) for number in self.generators}
        size = max(1, self.config.minibatch_size // self.num_microbatches)
        orders = {
            number: torch.randperm(len(videos.advantages), generator=self.generators[number]).split(size)
            for number, videos in rounds.items()
        }
        for i in range(max(len(order) for order in orders.values())):
            yield {number: rounds[number].rows(order[i]) for number, order in orders.items()}

    def count(self, batch: Generated) -> Tensor:
        return torch.tensor(len(batch.advantages))

    def compute_loss(self, batch: Generated, number: int) -> tuple[Tensor, Metrics]:
        compute = {"flow_grpo": self._flow_grpo, "nft": self._nft, "pathwise": self._pathwise}
        loss, metrics = compute[self.config.algorithm](batch)
        return loss, metrics | {"loss": float(loss.detach())}

    def _generate(self, step: int, number: int) -> Generated:
        """The videos of one microbatch, with advantages; adds its part to the round's metrics."""
        config = self.config
        num_starts = config.starts_per_update // self.num_microbatches
        groups = torch.arange(num_starts).repeat_interleave(config.group_size)
        starts = self.mode.draw_starts(self.generators[number], num_starts).rows(groups)
        draws = (*self.key, step, "micro-batch", number)
        own, shared = make_row_keys(len(groups), *draws, "video"), make_row_keys(num_starts, *draws, "start")[groups]
        noise = shared if config.algorithm == "flow_grpo" else own
        blocks = torch.arange(len(groups)).split(self.max_batch or len(groups))
        traced = TracedFrames.cat([self._trace(starts.rows(rows), noise[rows], own[rows]) for rows in blocks])
        with torch.no_grad():
            rewards, figures = self.mode.score(traced.data, starts)
        means = {"reward": rewards} | {f"reward_{name}": values for name, values in figures.items()}
        add_metrics(
            self.step_metrics,
            {name: float(values.mean()) / self.num_microbatches for name, values in means.items()},
        )
        rewards = rewards.cpu()
        if config.shuffle_rewards:
            rewards = rewards[shuffle_rows(len(rewards), self.generators[number])]
        judged = compute_group_advantages(rewards, groups, config.min_group_std)
        if config.algorithm != "pathwise":  # which compares no videos
            add_metrics(self.step_metrics, {"groups_dropped": float(judged.num_dropped)})
        return self._prepare(traced, starts, judged.advantages.to(self.device), number)

    def _trace(self, starts: Starts, noise_key: Tensor, step_key: Tensor) -> TracedFrames:
        """The videos after ``starts``, with [V, M, ...] in place of [n, ...]."""
        tracer = self.mode.make_tracer(starts)
        num_frames = self.config.num_frames
        return _stack_frames(trace(tracer, starts.observation, noise_key, num_frames, self.sampling, step_key))

    @torch.no_grad()
    def _prepare(self, traced: TracedFrames, starts: Starts, advantages: Tensor, number: int) -> Generated:
        """What the algorithm needs of the model that generated the videos."""
        tracer = self.mode.make_tracer(None)
        V, M = traced.instruction.shape[:2]
        nothing = advantages.new_zeros(V, M, 0)
        log_probs, t = nothing, nothing
        noisy: dict[str, Tensor] = {}
        old: dict[str, Tensor] = {}
        if self.config.algorithm == "flow_grpo":
            log_probs = _in_parts(
                lambda part: compute_random_steps(tracer, part, self.sampling).log_probs,
                traced,
                self.config.minibatch_size,
            )
        elif self.config.algorithm == "nft":
            generator = self.generators[number]
            t = torch.rand(V, M, generator=generator).to(self.device)
            for camera, data in traced.data.items():
                noise = torch.randn(data.shape, generator=generator).to(self.device)
                noisy[camera] = flow.interpolate(noise.flatten(0, 1), data.flatten(0, 1), t.flatten()).unflatten(
                    0, (V, M)
                )
            old = self._predict_noised(tracer, traced, noisy, t)
        return Generated(traced, starts, advantages, log_probs, t, noisy, old)

    def _predict_noised(
        self, tracer: Tracer, traced: TracedFrames, noisy: Mapping[str, Tensor], t: Tensor
    ) -> dict[str, Tensor]:
        """Camera -> [V, M, C, h, w]."""
        parts = []
        for rows in torch.arange(len(t)).split(self.config.minibatch_size):
            flat = map_views(lambda latents, r=rows: latents[r].flatten(0, 1), noisy)
            found = predict(tracer, flat, t[rows].flatten(), _flatten(traced.rows(rows)))
            parts.append(map_views(lambda latents: latents.unflatten(0, (-1, t.shape[1])), found))
        return map_views(lambda *latents: torch.cat(latents), *parts)

    def _flow_grpo(self, batch: Generated) -> tuple[Tensor, Metrics]:
        config, traced = self.config, _flatten(batch.traced)
        tracer = self.mode.make_tracer(None)
        steps = compute_random_steps(tracer, traced, self.sampling)
        old = batch.log_probs.flatten(0, 1)
        advantages = batch.advantages.repeat_interleave(batch.log_probs.shape[1])
        everything = torch.ones_like(old, dtype=torch.bool)
        loss, metrics = compute_policy_loss(
            steps.log_probs, old, advantages, everything, config.clip_ratio, config.clip_ratio
        )
        if config.kl_coefficient:
            with torch.no_grad():
                reference = compute_random_steps(self.mode.make_tracer(None, reference=True), traced, self.sampling)
            variance = 2 * reference.stds.square()[None, :, None, None, None]
            distances = [
                ((steps.means[camera] - reference.means[camera]).square() / variance).mean() for camera in steps.means
            ]
            kl = torch.stack(distances).mean()
            loss = loss + config.kl_coefficient * kl
            metrics["kl_to_start"] = float(kl.detach())
        return loss, metrics

    def _nft(self, batch: Generated) -> tuple[Tensor, Metrics]:
        config, traced = self.config, _flatten(batch.traced)
        noisy, old = (map_views(lambda latents: latents.flatten(0, 1), views) for views in (batch.noisy, batch.old))
        t = batch.t.flatten()
        predicted = predict(self.mode.make_tracer(None), noisy, t, traced)
        by_row = compute_nft_loss(
            predicted,
            old,
            traced.data,
            batch.advantages.repeat_interleave(batch.t.shape[1]),
            strength=config.strength,
            max_advantage=config.max_advantage,
        )
        metrics = {"loss_nft": float(by_row.detach().mean())}
        return self._keep_near(by_row.mean(), metrics, predicted, noisy, t, traced)

    def _pathwise(self, batch: Generated) -> tuple[Tensor, Metrics]:
        traced = _flatten(batch.traced)
        V, M = batch.traced.instruction.shape[:2]
        predicted = predict_last(self.mode.make_tracer(None), traced, self.sampling)
        rewards, _ = self.mode.score(map_views(lambda latents: latents.unflatten(0, (V, M)), predicted), batch.starts)
        metrics = {"loss_reward": -float(rewards.detach().mean())}
        t, _ = self.sampling.times(self.sampling.num_steps - 1, len(traced), self.device)
        return self._keep_near(-rewards.mean(), metrics, predicted, traced.last, t, traced)

    def _keep_near(
        self,
        loss: Tensor,
        metrics: Metrics,
        predicted: Mapping[str, Tensor],
        noisy: Mapping[str, Tensor],
        t: Tensor,
        traced: TracedFrames,
    ) -> tuple[Tensor, Metrics]:
        """``loss`` plus the weighted squared distance of ``predicted`` to what the reference predicts there."""
        if not self.config.kl_coefficient:
            return loss, metrics
        with torch.no_grad():
            reference = predict(self.mode.make_tracer(None, reference=True), noisy, t, traced)
        distance = torch.stack([(predicted[c] - reference[c]).square().mean() for c in predicted]).mean()
        metrics["distance_to_start"] = float(distance.detach())
        return loss + self.config.kl_coefficient * distance, metrics


def _flatten(traced: TracedFrames) -> TracedFrames:
    """[V, M, ...] -> [n, ...]."""
    return traced._map(lambda tensor: tensor.flatten(0, 1), lambda value: value)


def _stack_frames(frames: list[TracedFrames]) -> TracedFrames:
    """M entries of V rows each -> [V, M, ...]."""
    flat = TracedFrames.cat(frames)
    return flat._map(lambda tensor: tensor.unflatten(0, (len(frames), -1)).transpose(0, 1), lambda value: value)


def _in_parts(compute: Callable[[TracedFrames], Tensor], traced: TracedFrames, size: int) -> Tensor:
    """``compute(flattened part)`` f32 [n, R] for ``size`` videos at a time, as [V, M, R]."""
    M = traced.instruction.shape[1]
    parts = torch.arange(len(traced.instruction)).split(size)
    return torch.cat([compute(_flatten(traced.rows(rows))).unflatten(0, (-1, M)) for rows in parts])
