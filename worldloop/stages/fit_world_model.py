"""The world model learns from the current SANS version: first its proprio head, then video and success in one loss.

The image follows the predicted proprio, so that goes first and stands still afterwards. From ``self_rollout_start`` on,
a share of every batch continues the model's own predictions (`SelfRolloutPool`), so that it learns to stay faithful on
the frames it will meet in imagination.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from worldloop.core.errors import require_positive, require_range
from worldloop.core.interfaces import Metrics
from worldloop.core.randomness import derive_seed
from worldloop.core.types import Clip
from worldloop.sans.clips import BalancedClipSampler, ClipDataset, ClipSamplingConfig
from worldloop.stages.context import Context
from worldloop.stages.data import open_clips
from worldloop.storage.run_state import LoopState
from worldloop.training.ema import EmaWeights
from worldloop.training.micro_batches import add_metrics, make_generators, sum_metrics
from worldloop.training.optimizer import Optimisation
from worldloop.training.resume import Kept, KeptGenerator, KeptModule, PartialStage, drop_partial, has_partial
from worldloop.training.sharding import gather, shard
from worldloop.world_model.self_rollout import SelfRolloutPool

NAME = "fit_world_model"
PROPRIO = "fit_world_model_proprio"


@dataclass(frozen=True)
class FitWorldModelConfig:
    num_steps: int = 1500  # optimizer steps in iteration 1
    num_refit_steps: int = 900  # optimizer steps in later iterations, from the last model's weights
    batch_size: int = 64  # clips per step
    learning_rate: float = 6e-4  # peak, AdamW
    refit_learning_rate: float = 4e-4  # peak in later iterations
    weight_decay: float = 0.01  # AdamW, matrices only
    self_rollout_start: float = 0.3  # share of the steps of iteration 1 after which the self-rollout pool is used
    num_proprio_steps: int = 2000  # optimizer steps of the proprio head, before the others, in every iteration
    proprio_batch_size: int = 128  # clips per step of the proprio head
    proprio_frames: int = 5  # frames that the proprio head is unrolled for
    proprio_learning_rate: float = 2e-3  # peak, AdamW

    def __post_init__(self) -> None:
        for name in ("num_steps", "num_refit_steps", "batch_size", "proprio_batch_size", "proprio_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"fit_world_model.{name} must be at least 1, got {getattr(self, name)}")
        if self.num_proprio_steps < 0:
            raise ValueError(f"fit_world_model.num_proprio_steps must be at least 0, got {self.num_proprio_steps}")
        require_range("fit_world_model.self_rollout_start", self.self_rollout_start, 0, 1)
        require_range("fit_world_model.weight_decay", self.weight_decay, 0)
        for name in ("learning_rate", "refit_learning_rate", "proprio_learning_rate"):
            require_positive(f"fit_world_model.{name}", getattr(self, name))


def run(state: LoopState, config: FitWorldModelConfig, sampling: ClipSamplingConfig, context: Context) -> LoopState:
    """Fit on ``state.dataset`` and save the averaged weights under this iteration's checkpoints.

    A second fit of the same iteration, see `check_world_model`, goes on from the first on the same dataset.
    """
    fit_number = state.num_fits + 1
    dataset = open_clips(context, state.dataset, "train")
    sampler = BalancedClipSampler(dataset, sampling)
    refit = bool(state.world_model)
    if refit:
        model = context.load_world_model(state.teacher or state.world_model)
    else:
        normalisation = context.store.version(state.dataset).normalisation
        model = context.new_world_model(normalisation, derive_seed(context.seed, "world_model"))
    model = model.to(context.device).train()
    if fit_number == 1 and not has_partial(context, NAME):
        fit_proprio(model, dataset, sampler, state.iteration, config, context)
    num_steps = config.num_refit_steps if refit else config.num_steps
    averaged = train(
        model,
        dataset,
        sampler,
        config,
        context,
        name=NAME,
        num_steps=num_steps,
        learning_rate=config.refit_learning_rate if refit else config.learning_rate,
        pool_from=0 if refit else int(config.self_rollout_start * num_steps),
        generators=make_generators(context, context.seed, state.iteration, "fit_world_model", fit_number),
        first_step=state.world_model_steps,
    )
    path = name_checkpoint(state.iteration, "world_model", fit_number)
    context.save_world_model(averaged, path)
    drop_partial(context, NAME)
    drop_partial(context, PROPRIO)
    steps = state.world_model_steps + num_steps
    state = replace(state, world_model=path, teacher=path, world_model_steps=steps, num_fits=fit_number)
    return replace(state, calibration=None, trust=None)


def name_checkpoint(iteration: int, name: str, fit_number: int) -> str:
    """Relative to the run directory."""
    return f"checkpoints/iteration_{iteration:03d}/{name}" + (f"_{fit_number}" if fit_number > 1 else "")


class _Part:
    """What belongs to one micro-batch: where its draws come from, and its own share of the self-rollout pool."""

    def __init__(self, model: Any, dataset: ClipDataset, batch_size: int, generator: torch.Generator) -> None:
        self.generator, self.batch_size = generator, batch_size
        share, num_steps = model.config.self_rollout.share, torch.from_numpy(dataset.cache.num_steps)
        self.pool = SelfRolloutPool(batch_size, share, num_steps)
        self.load = partial(dataset.load, num_context_frames=model.num_context_frames)

    def compose(self, sampler: BalancedClipSampler, from_pool: bool) -> Clip:
        if from_pool:
            return self.pool.compose(lambda count: sampler.sample(self.generator, count), self.load)
        return self.load(sampler.sample(self.generator, self.batch_size), 1)

    def kept(self) -> dict[str, Kept]:
        return {"generator": KeptGenerator(self.generator), "pool": self.pool}


def train(
    model: Any,
    dataset: ClipDataset,
    sampler: BalancedClipSampler,
    config: FitWorldModelConfig,
    context: Context,
    *,
    name: str,
    num_steps: int,
    learning_rate: float,
    pool_from: int,
    generators: dict[int, torch.Generator],
    first_step: int,
    teacher: Any | None = None,
) -> Any:
    """Optimizer steps on ``model``, with the self-rollout pool from step ``pool_from`` on; returns averaged weights.

    ``name`` is that of the TensorBoard writer, of its tags, whose steps begin at ``first_step``, and of what is kept of
    the stage until the caller drops it. ``generators`` are those of this worker's micro-batches.
    """
    ema = EmaWeights(model, model.config.ema_decay)
    workers = context.workers
    result = ema.module
    if context.shards_world_model:
        result = ema.copy()
        names = {n for n, p in model.named_parameters() if p.requires_grad and not n.startswith("proprio_head.")}
        for module in (model, ema.module):
            shard(module, names, context.device)
    optimisation = Optimisation(
        model.parameters(),
        learning_rate=learning_rate,
        num_steps=num_steps,
        weight_decay=config.weight_decay,
        name=name,
        workers=workers,
    )
    size = config.batch_size // context.num_microbatches
    parts = {number: _Part(model, dataset, size, generator) for number, generator in generators.items()}
    kept = PartialStage(
        context,
        name,
        {"model": KeptModule(model), "ema": ema, "optimisation": optimisation},
        {number: part.kept() for number, part in parts.items()},
    )
    done = kept.resume()
    with context.progress(num_steps - done, "step") as progress, context.writer(name, first_step + done) as writer:
        for step in range(done, num_steps):
            pooled = step >= pool_from
            clips = [part.compose(sampler, pooled) for part in parts.values()]
            measured = [model.measure(clip) for clip in clips]
            counts, reach = (torch.stack(values) for values in zip(*measured, strict=True))
            model.take_in(workers.sum(counts.sum(0)), workers.maximum(reach.amax(0)))
            metrics: Metrics = {}
            for part, clip, share in zip(
                parts.values(), clips, workers.shares([clip.valid.sum() for clip in clips]), strict=True
            ):
                output = model(clip.to(context.device), part.generator, teacher)
                optimisation.backward(output.loss * share.to(context.device))
                add_metrics(metrics, output.metrics, float(share))
                if pooled:
                    part.pool.update(clip, output)
            grad_norm = optimisation.step()
            ema.update(model)
            kept.keep(step + 1)
            progress.advance(loss=metrics["loss"])
            if step % 20 == 0:
                values = {**sum_metrics(metrics, workers), "grad_norm": grad_norm}
                writer.scalars(first_step + step, {f"{name}/{k}": v for k, v in values.items()})
    if context.shards_world_model:
        result.load_state_dict(gather(ema.module.state_dict()))
        result = result.to(context.device)
    return result


def fit_proprio(
    model: Any,
    dataset: ClipDataset,
    sampler: BalancedClipSampler,
    iteration: int,
    config: FitWorldModelConfig,
    context: Context,
) -> None:
    """Train the proprio head on its own unrolled predictions; nothing else of ``model`` gets a gradient."""
    if config.num_proprio_steps == 0:
        return
    workers = context.workers
    optimisation = Optimisation(
        model.parameters(),
        learning_rate=config.proprio_learning_rate,
        num_steps=config.num_proprio_steps,
        weight_decay=config.weight_decay,
        name="fit_world_model (proprio head)",
        workers=workers,
    )
    generators = make_generators(context, context.seed, iteration, "fit_world_model/proprio")
    size = config.proprio_batch_size // context.num_microbatches
    first = (iteration - 1) * config.num_proprio_steps
    kept = PartialStage(
        context,
        PROPRIO,
        {"model": KeptModule(model), "optimisation": optimisation},
        {number: {"generator": KeptGenerator(generator)} for number, generator in generators.items()},
    )
    done = kept.resume()
    with (
        context.progress(config.num_proprio_steps - done, "proprio step") as progress,
        context.writer(PROPRIO, purge_step=first + done) as writer,
    ):
        for step in range(done, config.num_proprio_steps):
            clips = [dataset.load(sampler.sample(g, size), config.proprio_frames) for g in generators.values()]
            total = 0.0
            for clip, share in zip(clips, workers.shares([clip.valid.sum() for clip in clips]), strict=True):
                loss = model.compute_proprio_loss(clip.to(context.device)) * share.to(context.device)
                optimisation.backward(loss)
                total += float(loss.detach())
            optimisation.step()
            kept.keep(step + 1, is_last=step + 1 == config.num_proprio_steps)
            progress.advance(loss=total)
            if step % 20 == 0:
                values = sum_metrics({"loss_proprio": total}, workers)
                writer.scalars(first + step, {f"fit_world_model/{k}": v for k, v in values.items()})
