"""GRPO inside the world model, in rounds.

The first run makes the policy that GRPO starts from: one that imitates every success in SANS (World-VLA-Loop starts
from the clone; ``restart_from`` chooses). Each further run is a round of updates and leaves a candidate. A round goes
on from the averaged weights of the newest candidate, the policy that was checked, with a fresh optimizer.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from worldloop.core.errors import WorldloopError
from worldloop.core.interfaces import LikelihoodPolicy
from worldloop.core.success import Calibrations
from worldloop.rl.grpo import GrpoObjective
from worldloop.rollout.groups import GroupedImagination, GroupSettings
from worldloop.stages.context import StageContext
from worldloop.stages.improvement.config import NAME, ImprovementConfig
from worldloop.stages.improvement.imitation import imitate_into
from worldloop.storage.run_directory import name_checkpoint
from worldloop.storage.run_state import LoopState
from worldloop.training.optimizer import Optimizer
from worldloop.training.trainer import Trainer
from worldloop.value.critic import value_as_return


def run_grpo(state: LoopState, config: ImprovementConfig, context: StageContext) -> LoopState:
    """Choose where GRPO starts, then one round of it in the tasks in which the last check trusts the world model.

    With ``restart_from: successes`` the policy that imitates all successes is a candidate too, even without GRPO.
    """
    if not state.start:
        return choose_start(state, config, context)
    distrusted = {task: trust.reason for task, trust in state.trust.items() if not trust.is_trusted}
    tasks = tuple(task for task in context.spec.task_ids if task not in distrusted)
    if distrusted:
        context.reporter.log(f"improved without: {describe_distrust(distrusted, len(context.spec.tasks))}")
    path = name_checkpoint(state.iteration, f"policy_after_{divide_updates(config)[state.num_rounds + 1]:03d}")
    state = improve_in_imagination(state, config, context, tasks, path)
    return replace(state, candidates=(*state.candidates, path), newest=path, num_rounds=state.num_rounds + 1)


def choose_start(state: LoopState, config: ImprovementConfig, context: StageContext) -> LoopState:
    """Set ``state.start``; with ``restart_from: successes`` it is a new policy and the first candidate."""
    start = {"clone": state.clone, "policy": state.policy}.get(config.restart_from, "")
    candidates: tuple[str, ...] = ()
    if not start:
        start = name_checkpoint(state.iteration, "policy_of_successes")
        imitate_into(state, config, context, start)
        candidates = (start,)
    return note_distrust(replace(state, start=start, newest=start, candidates=candidates), context)


def note_distrust(state: LoopState, context: StageContext) -> LoopState:
    """Record and log why GRPO leaves tasks out, or ends; nothing if every task is trusted."""
    distrusted = {task: trust.reason for task, trust in state.trust.items() if not trust.is_trusted}
    if not distrusted:
        return state
    reason = describe_distrust(distrusted, len(context.spec.tasks))
    if state.is_distrusted:
        what = "no further round" if state.num_rounds else "no GRPO"
        context.reporter.log(f"{what}, {describe_candidates(state.candidates)}: {reason}")
    return state.record(improvement_skipped=reason)


def describe_distrust(reasons: dict[str, str], num_tasks: int) -> str:
    """Why tasks are left out, from task -> reason; with one task just the reason."""
    return "; ".join(reason if num_tasks == 1 else f"{task}: {reason}" for task, reason in reasons.items())


def describe_candidates(candidates: tuple[str, ...]) -> str:
    """What is left for promotion to choose from."""
    if not candidates:
        return "the policy stays"
    names = [candidate.rsplit("/", 1)[-1] for candidate in candidates]
    return f"the only candidate is {names[0]}" if len(names) == 1 else f"the candidates are {', '.join(names)}"


def divide_updates(config: ImprovementConfig) -> tuple[int, ...]:
    """The updates done after 0, 1, ... rounds, e.g. (0, 14, 28): evenly divided."""
    return tuple(np.linspace(0, config.num_updates, config.num_candidates + 1).round().astype(int).tolist())


def count_updates(state: LoopState, config: ImprovementConfig) -> int:
    """The updates of GRPO so far, over all iterations."""
    return (state.iteration - 1) * config.num_updates + divide_updates(config)[state.num_rounds]


def improve_in_imagination(
    state: LoopState, config: ImprovementConfig, context: StageContext, tasks: tuple[str, ...], path: str
) -> LoopState:
    """One round of GRPO in ``tasks`` from ``state.newest``, into the checkpoint ``path``; returns its figures."""
    policy, reference = (load_likelihood_policy(start, config, context) for start in (state.newest, state.start))
    world_model = context.models.load_world_model(state.world_model).to(context.device).for_imagination()
    calibrations = state.calibrations or Calibrations()
    dataset = context.open_clips(state.dataset, "train")
    paths = state.critics if config.uses_value else ()
    critics = [context.models.load_critic(path).to(context.device) for path in paths]
    setup = context.setup
    key = (context.seed, state.iteration, NAME, state.num_rounds)
    generators = setup.make_generators(*key)
    groups = GroupedImagination(
        policy,
        world_model,
        calibrations,
        dataset,
        GroupSettings(
            num_groups=config.groups_per_update // setup.num_microbatches,
            tasks=tasks,
            group_size=config.group_size,
            mid_episode_share=config.mid_episode_share,
            imagination_horizon=config.imagination_horizon,
            truncates_uncertain=config.truncates_uncertain,
            max_imagination_batch=context.max_imagination_batch,
            key=key,
        ),
        setup,
        generators,
    )
    done, end = divide_updates(config)[state.num_rounds : state.num_rounds + 2]
    trainer = Trainer(
        policy,
        partial(Optimizer, learning_rate=config.learning_rate, num_steps=None, weight_decay=0.0, warmup_steps=4),
        setup,
        context.reporter,
        name=NAME,
        unit="update",
        first_step=count_updates(state, config),
        ema_decay=config.ema_decay,
    )
    objective = GrpoObjective(
        policy,
        reference.eval(),
        config,
        groups.imagine,
        generators,
        calibrations=calibrations,
        num_microbatches=setup.num_microbatches,
        data_parallel=setup.data_parallel,
        device=context.device,
        value=partial(value_as_return, critics) if critics else None,
    )
    context.models.save_policy(trainer.fit(objective, end - done), path)
    setup.drop_checkpoint(NAME)
    first, last = objective.history.first_success, objective.history.last_success
    context.reporter.log(f"imagined success {first:.3f} -> {last:.3f} over {end - done} updates")
    before = state.recorded("imagined_success_in_training", {"first_update": first})
    return state.record(
        imagined_success_in_training=before | {"last_update": last},
        imagined_frames=state.recorded("imagined_frames", 0) + int(objective.history.num_frames),
    )


def load_likelihood_policy(path: str, config: ImprovementConfig, context: StageContext) -> LikelihoodPolicy:
    policy = context.models.load_policy(path).to(context.device)
    if not isinstance(policy, LikelihoodPolicy):
        raise WorldloopError(
            f"improve_policy.method grpo needs exact log-probabilities, and {type(policy).__name__} is no "
            "LikelihoodPolicy: use improve_policy.method=imitate_successes, or give it log_prob"
        )
    policy.temperature = config.temperature
    return policy
