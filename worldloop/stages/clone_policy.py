"""Behaviour cloning: iteration 0's policy imitates the expert demonstrations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from worldloop.core.randomness import derive_seed
from worldloop.policies.imitation import ImitationConfig, fit_by_imitation
from worldloop.sans.imitation import EXPERT_DEMONSTRATIONS, RECORDED_DEMONSTRATIONS, EpisodeSelection, ImitationDataset
from worldloop.sans.interaction import find_interaction
from worldloop.stages.context import Schedule, StageContext
from worldloop.storage.run_directory import name_checkpoint
from worldloop.storage.run_state import LoopState

NAME = "clone_policy"


@dataclass(frozen=True)
class Config(ImitationConfig):
    """Settings of every cloning in a run, in this stage and in `improve_policy`."""

    TRAINS: ClassVar[bool] = True
    MICROBATCHED: ClassVar[tuple[str, ...]] = ("batch_size",)


def takes_part(config: Config, schedule: Schedule) -> bool:
    return schedule.is_first and schedule.has_policy


def run(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """Clone the expert demonstrations into ``checkpoints/iteration_000/policy``."""
    path = name_checkpoint(0, "policy")
    select = EXPERT_DEMONSTRATIONS if context.has_simulator else RECORDED_DEMONSTRATIONS
    imitate(state, config, context, select, path)
    return replace(state, clone=path, policy=path)


def imitate(
    state: LoopState, config: ImitationConfig, context: StageContext, select: EpisodeSelection, path: str
) -> None:
    """Train a new policy on the episodes of the dataset that ``select`` chooses; save it at ``path``.

    If ``path`` exists, an earlier attempt of this stage finished it, and it is kept.
    """
    if not context.models.has(path):
        normalisation = context.store.version(state.dataset).normalisation
        seed = derive_seed(context.seed, state.iteration, "clone_policy")
        policy = context.models.new_policy(normalisation, seed, state.planner)
        cameras = policy.spec.robot.camera_names
        cache = context.open_cache(state.dataset)
        interaction = find_interaction(cache, context.spec, policy.interaction)
        dataset = ImitationDataset(cache, select, cameras, interaction=interaction)
        found = {cache.metas[episode].source for episode in dataset.episodes.tolist()}
        sources = ", ".join(source for source in select.sources if source in found)
        context.reporter.log(f"imitating {len(dataset.episodes)} episodes ({sources})")
        policy = fit_by_imitation(
            policy,
            dataset,
            config,
            context.setup.make_generators(context.seed, state.iteration, "clone_policy/batches"),
            context.setup,
            context.reporter,
            name=NAME,
            first_step=state.iteration * config.num_steps,
        )
        context.models.save_policy(policy, path)
    context.setup.drop_checkpoint(NAME)
