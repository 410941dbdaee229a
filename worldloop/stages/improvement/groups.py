"""What a method imagines: groups of rollouts from training states, as `improve_policy` sets them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from worldloop.core.interfaces import Actor
from worldloop.core.success import Calibrations
from worldloop.rollout.groups import GroupedImagination, GroupSettings
from worldloop.stages.context import StageContext
from worldloop.stages.improvement.config import ImprovementConfig
from worldloop.storage.run_state import LoopState
from worldloop.training.resume import TrainingSetup


def open_groups(
    policy: Actor,
    state: LoopState,
    config: ImprovementConfig,
    context: StageContext,
    tasks: tuple[str, ...],
    key: tuple[int | str, ...],
    setup: TrainingSetup,
    generators: Mapping[int, torch.Generator],
    *,
    num_groups: int,
    mid_episode_share: float | None = None,
    truncates_uncertain: bool | None = None,
) -> GroupedImagination:
    """Groups of ``policy`` in ``state.world_model``: ``num_groups`` in each microbatch and round, seeded by ``key``.

    ``mid_episode_share`` and ``truncates_uncertain`` are the config's unless they are given.
    """
    world_model = context.models.load_world_model(state.world_model).to(context.device).for_imagination()
    settings = GroupSettings(
        num_groups=num_groups,
        tasks=tasks,
        group_size=config.group_size,
        mid_episode_share=config.mid_episode_share if mid_episode_share is None else mid_episode_share,
        imagination_horizon=config.imagination_horizon,
        truncates_uncertain=config.truncates_uncertain if truncates_uncertain is None else truncates_uncertain,
        max_imagination_batch=context.max_imagination_batch,
        key=key,
    )
    dataset = context.open_clips(state.dataset, "train")
    calibrations = state.calibrations or Calibrations()
    return GroupedImagination(policy, world_model, calibrations, dataset, settings, setup, generators)
