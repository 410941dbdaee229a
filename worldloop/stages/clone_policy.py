"""Behaviour cloning: iteration 0's policy, and the control that imitates every success in SANS."""

from __future__ import annotations

from dataclasses import dataclass, replace

from worldloop.randomness import derive_seed, make_generator
from worldloop.sans.imitation import EXPERT_DEMONSTRATIONS, EpisodeSelection, ImitationDataset
from worldloop.stages.context import Context
from worldloop.stages.optimisation import PRECISIONS, Optimisation, autocast
from worldloop.stages.state import LoopState


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
    """Train a fresh policy on the ``select``ed episodes of the dataset; save it at ``path``."""
    version = context.store.version(state.dataset)
    dataset = ImitationDataset(context.store.open_cache(version), select, context.spec.camera)
    seed = derive_seed(context.seed, state.iteration, "clone_policy")
    policy = context.new_policy(version.normalisation, seed).to(context.device).train()
    policy.fit_image_statistics(dataset.images())
    optimisation = Optimisation(
        policy.parameters(),
        learning_rate=config.learning_rate,
        num_steps=config.num_steps,
        weight_decay=config.weight_decay,
        name="clone_policy",
    )
    generator = make_generator(context.seed, state.iteration, "clone_policy/batches")
    first = state.iteration * config.num_steps
    context.log(f"imitating {len(dataset.episodes)} episodes ({', '.join(select.sources)})")
    with (
        context.progress(config.num_steps, "step") as progress,
        context.writer("clone_policy", purge_step=first) as writer,
    ):
        for step in range(config.num_steps):
            batch = dataset.sample(generator, config.batch_size, context.chunk_length).to(context.device)
            with autocast(context.device, config.precision):
                loss, metrics = policy.compute_imitation_loss(batch, generator)
            metrics["grad_norm"] = optimisation.step(loss)
            progress.advance(loss=float(loss.detach()))
            if step % 20 == 0:
                writer.scalars(first + step, {f"clone_policy/{k}": v for k, v in metrics.items()})
    context.save_policy(policy, path)
