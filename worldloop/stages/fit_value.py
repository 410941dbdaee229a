"""Fit critics to the returns of all training episodes, one for each fold: for RECAP (arXiv:2511.14759), or for GRPO.

Every iteration starts from new weights: RECAP goes back to its anchor each time, and data accumulate. The critic of a
fold learns from the episodes of the other folds, so each episode can be valued by a critic that has not seen it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from worldloop.core.errors import WorldloopError, require_range
from worldloop.core.randomness import derive_seed, make_generator
from worldloop.evaluation.episode_values import EpisodeFrames
from worldloop.stages.context import Schedule, StageContext
from worldloop.storage.run_directory import name_checkpoint
from worldloop.storage.run_state import LoopState
from worldloop.value.config import ValueConfig
from worldloop.value.critic import ValueRows, fit_critic

NAME = "fit_value"


@dataclass(frozen=True)
class Config:
    num_steps: int = 800  # optimizer steps of each critic
    batch_size: int = 64  # frames per step
    num_folds: int = 2  # critics; each learns from the episodes of the other folds

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size"):
            require_range(f"fit_value.{name}", getattr(self, name), 1)
        require_range("fit_value.num_folds", self.num_folds, 2)


def takes_part(config: Config, schedule: Schedule) -> bool:
    return not schedule.is_first and schedule.has_policy and schedule.uses_value


def run(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """Fit ``num_folds`` critics on ``state.dataset``; their checkpoints become ``state.critics``."""
    frames, value = open_frames(state, config, context), context.config_of(ValueConfig)
    normalisation = context.store.version(state.dataset).normalisation
    paths = []
    for fold in range(config.num_folds):
        path = name_checkpoint(state.iteration, f"critic_{fold}")
        rows = torch.from_numpy(np.flatnonzero(frames.fold != fold))
        if len(rows) in (0, len(frames)):
            missing = "all" if len(rows) == 0 else "none"
            raise WorldloopError(
                f"fold {fold} has {missing} of the {len(frames.episodes)} training episodes, so a critic of "
                f"fit_value.num_folds={config.num_folds} cannot be tested: collect episodes from more initial states"
            )
        if not context.models.has(path):
            key = (context.seed, state.iteration, NAME, fold)
            critic = context.models.new_critic(normalisation, state.world_model, derive_seed(*key))
            critic = fit_critic(
                critic.to(context.device).train(),
                partial(load_rows, frames, rows),
                len(rows),
                num_steps=config.num_steps,
                batch_size=config.batch_size,
                generator=make_generator(*key),
                reporter=context.reporter,
            )
            context.models.save_critic(critic, path)
        paths.append(path)
    num_episodes = len(frames.episodes)
    context.reporter.log(f"{config.num_folds} {value.kind} critics of {num_episodes} episodes, target {value.target}")
    return replace(state, critics=tuple(paths))


def load_rows(frames: EpisodeFrames, rows: Tensor, chosen: Tensor) -> ValueRows:
    """What a critic learns from at ``rows[chosen]``."""
    return frames.load(rows[chosen])


def open_frames(state: LoopState, config: Config, context: StageContext) -> EpisodeFrames:
    """The frames of all training episodes of ``state.dataset``, with their returns and folds."""
    cache = context.open_cache(state.dataset)
    value = context.config_of(ValueConfig)
    return EpisodeFrames(
        cache,
        context.spec,
        cache.select(split="train"),
        target=value.target,
        num_folds=config.num_folds,
        future_steps=value.future_steps,
    )
