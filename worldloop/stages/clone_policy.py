"""Behaviour cloning: iteration 0's policy, and the control that imitates every success in SANS."""

from __future__ import annotations

from dataclasses import dataclass, replace

from worldloop.core.interfaces import Metrics
from worldloop.core.randomness import derive_seed
from worldloop.sans.imitation import EXPERT_DEMONSTRATIONS, EpisodeSelection, ImitationDataset
from worldloop.stages.context import Context
from worldloop.stages.data import open_cache
from worldloop.storage.run_state import LoopState
from worldloop.training.micro_batches import add_metrics, make_generators, sum_metrics
from worldloop.training.optimizer import PRECISIONS, Optimisation, autocast
from worldloop.training.resume import KeptGenerator, PartialStage, drop_partial

NAME = "clone_policy"


@dataclass(frozen=True)
class ClonePolicyConfig:
    num_steps: int = 300  # optimizer steps
    batch_size: int = 32  # action chunks per step
    learning_rate: float = 1e-3  # peak, AdamW
    weight_decay: float = 0.01  # AdamW, matrices only
    precision: str = "bf16"  # fp32 | bf16 (autocast; weights stay fp32)

    def __post_init__(self) -> None:
        if self.num_steps < 1 or self.batch_size < 1:
            raise ValueError("clone_policy.num_steps and clone_policy.batch_size must be at least 1")
        if self.precision not in PRECISIONS:
            raise ValueError(f"clone_policy.precision {self.precision!r} is not one of {', '.join(PRECISIONS)}")
        if self.learning_rate <= 0:
            raise ValueError(f"clone_policy.learning_rate must be > 0, got {self.learning_rate}")


def run(state: LoopState, config: ClonePolicyConfig, context: Context) -> LoopState:
    """Clone the expert demonstrations into ``checkpoints/iteration_000/policy``."""
    path = "checkpoints/iteration_000/policy"
    imitate(state, config, context, EXPERT_DEMONSTRATIONS, path)
    return replace(state, clone=path, policy=path)


def imitate(state: LoopState, config: ClonePolicyConfig, context: Context, select: EpisodeSelection, path: str) -> None:
    """Train a fresh policy on the ``select``ed episodes of the dataset; save it at ``path``.

    One that is there is what an earlier try of the stage ended with, and stays.
    """
    if context.workers.any((context.run_dir / path / "checkpoint.json").is_file()):
        drop_partial(context, NAME)
        return
    version = context.store.version(state.dataset)
    dataset = ImitationDataset(open_cache(context, state.dataset), select, context.spec.camera)
    seed = derive_seed(context.seed, state.iteration, "clone_policy")
    policy = context.new_policy(version.normalisation, seed)
    policy.fit_image_statistics(dataset.images())  # before it moves: all frames at once
    policy = policy.to(context.device).train()
    optimisation = Optimisation(
        policy.parameters(),
        learning_rate=config.learning_rate,
        num_steps=config.num_steps,
        weight_decay=config.weight_decay,
        name=NAME,
        workers=context.workers,
    )
    generators = make_generators(context, context.seed, state.iteration, "clone_policy/batches")
    kept = PartialStage(
        context,
        NAME,
        {"policy": policy, "optimisation": optimisation},
        {number: {"generator": KeptGenerator(generator)} for number, generator in generators.items()},
    )
    size = config.batch_size // context.num_microbatches
    first = state.iteration * config.num_steps
    context.log(f"imitating {len(dataset.episodes)} episodes ({', '.join(select.sources)})")
    done = kept.resume()
    with context.progress(config.num_steps - done, "step") as progress, context.writer(NAME, first + done) as writer:
        for step in range(done, config.num_steps):
            batches = [dataset.sample(generator, size, context.chunk_length) for generator in generators.values()]
            shares = context.workers.shares([batch.valid.sum() for batch in batches])
            metrics: Metrics = {}
            for batch, share, generator in zip(batches, shares, generators.values(), strict=True):
                with autocast(context.device, config.precision):
                    loss, own = policy.compute_imitation_loss(batch.to(context.device), generator)
                optimisation.backward(loss * share.to(context.device))
                add_metrics(metrics, {**own, "loss": float(loss.detach())}, float(share))
            grad_norm = optimisation.step()
            kept.keep(step + 1)
            progress.advance(loss=metrics.pop("loss"))
            if step % 20 == 0:
                values = {**sum_metrics(metrics, context.workers), "grad_norm": grad_norm}
                writer.scalars(first + step, {f"{NAME}/{k}": v for k, v in values.items()})
    context.save_policy(policy, path)
    drop_partial(context, NAME)
