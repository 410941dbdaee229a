"""RECAP: imitate all episodes, told which actions were good; optionally imagined chunks as well."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from worldloop.core.errors import WorldloopError
from worldloop.core.interfaces import AdvantageConditionedPolicy
from worldloop.core.randomness import derive_seed
from worldloop.core.success import Calibrations, Trust
from worldloop.core.types import OUTCOMES, SOURCES
from worldloop.policies.imitation import (
    UNKNOWN,
    LabelledImitationSource,
    LabelledWithImagined,
    fit_by_conditioned_imitation,
)
from worldloop.rl.advantages import compute_group_advantages
from worldloop.rl.recap import LabelledChunks, label_first_chunks
from worldloop.rl.reward_context import RewardContext
from worldloop.rl.rewards import score_rollout
from worldloop.sans.advantages import read_labels
from worldloop.sans.imitation import EpisodeSelection, ImitationDataset, LabelledImitation
from worldloop.sans.interaction import find_interaction
from worldloop.stages import clone_policy, label_advantages
from worldloop.stages.context import StageContext
from worldloop.stages.improvement.config import NAME, ImprovementConfig
from worldloop.stages.improvement.groups import open_groups
from worldloop.storage.run_directory import name_checkpoint
from worldloop.storage.run_state import LoopState
from worldloop.training.resume import TrainingSetup
from worldloop.value.critic import value_as_return
from worldloop.value.returns import choose_threshold


def run_recap(state: LoopState, config: ImprovementConfig, context: StageContext) -> LoopState:
    """RECAP (arXiv:2511.14759, section IV): the one candidate imitates all episodes, told which actions were good.

    It starts from new weights. It then acts as if told that its next actions are good. With method ``recap_imagined`` a
    share of each batch are chunks that the policy samples from real states, labelled by what they lead to in the world
    model.
    """
    candidate = name_checkpoint(state.iteration, "policy")
    if not context.models.has(candidate):
        version = context.store.version(state.dataset)
        labels = read_labels(context.models.run_dir / state.labels, version.fingerprint)
        if labels.critics != label_advantages.hash_critics(state, context):
            raise WorldloopError(
                f"the labels in {state.labels} are of other critics than {', '.join(state.critics)}: they were made "
                "anew since; delete the run directory and run again"
            )
        seed = derive_seed(context.seed, state.iteration, NAME)
        policy = context.models.new_policy(version.normalisation, seed, state.planner)
        assert isinstance(policy, AdvantageConditionedPolicy)
        everything = EpisodeSelection(sources=SOURCES, outcomes=OUTCOMES)
        cache = context.open_cache(state.dataset)
        interaction = find_interaction(cache, context.spec, policy.interaction)
        episodes = ImitationDataset(cache, everything, policy.spec.robot.camera_names, interaction=interaction)
        cloning = replace(context.config_of(clone_policy.Config), num_steps=config.num_recap_steps)
        source: LabelledImitationSource = LabelledImitation(episodes, labels)
        imagined = imagine_chunks(state, config, context) if config.method == "recap_imagined" else None
        if imagined is not None:
            chunks = imagined.chunks
            if interaction is not None:  # nobody knows of imagined chunks
                chunks = replace(chunks, is_interaction=torch.full((len(chunks.valid),), UNKNOWN))
            weights = torch.ones(len(imagined))
            source = LabelledWithImagined(source, chunks, weights, config.imagined_share, imagined.is_good)
        policy = fit_by_conditioned_imitation(
            policy,
            source,
            cloning,
            context.setup.make_generators(context.seed, state.iteration, f"{NAME}/recap"),
            context.setup,
            context.reporter,
            name=NAME,
            first_step=state.iteration * config.num_recap_steps,
            indicator_dropout=config.indicator_dropout,
        )
        policy.guidance = config.guidance
        context.models.save_policy(policy, candidate)
    context.setup.drop_checkpoint(NAME)
    return replace(state, start=candidate, newest=candidate, candidates=(candidate,))


def imagine_chunks(state: LoopState, config: ImprovementConfig, context: StageContext) -> LabelledChunks | None:
    """Imagine ``group_size`` chunks of the current policy from each of ``num_imagined_groups`` real states.

    Each is followed by more chunks, up to ``imagination_horizon``. The return of a group's member is a declared success
    or else what the critics expect at its end; `label_first_chunks` labels the first chunk by it. ``None`` if the world
    model is trusted in no task.
    """
    tasks = tuple(task for task in context.spec.task_ids if state.trust.get(task, Trust(True)).is_trusted)
    if not tasks:
        context.reporter.log("no chunks are imagined: the world model is trusted in no task")
        return None
    policy = context.models.load_policy(state.policy).to(context.device).eval()
    policy.temperature = config.temperature
    calibrations = state.calibrations or Calibrations()
    key = (context.seed, state.iteration, "recap_imagined")
    setup = TrainingSetup(device=context.device)
    groups = open_groups(
        policy,
        state,
        config,
        context,
        tasks,
        key,
        setup,
        setup.make_generators(*key),
        num_groups=config.num_imagined_groups,
        mid_episode_share=1.0,
        truncates_uncertain=False,
    )
    rollout = groups.imagine(0, 0)
    critics = [context.models.load_critic(path).to(context.device) for path in state.critics]
    judging = RewardContext(context.spec, calibrations, value_as_return(critics, rollout.steps[-1].observation))
    returns, _ = score_rollout(rollout, {"success": 1.0}, judging)
    advantages = compute_group_advantages(returns, rollout.group_id, config.min_group_std, normalises=False)
    context.reporter.log(
        f"imagined {int(advantages.keep.sum())} chunks to learn from; {advantages.num_dropped} of "
        f"{config.num_imagined_groups} real states tell nothing"
    )
    positive_share = context.config_of(label_advantages.Config).positive_share
    task = np.array(rollout.observations[0].task)
    thresholds = {
        name: choose_threshold(advantages.advantages.numpy()[advantages.keep.numpy() & (task == name)], positive_share)
        for name in np.unique(task[advantages.keep.numpy()]).tolist()
    }
    return label_first_chunks(rollout, advantages, thresholds, policy.spec.robot.camera_names)
