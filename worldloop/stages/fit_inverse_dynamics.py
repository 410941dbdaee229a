"""Fit two inverse dynamics models on the video in SANS, of all sources: one to learn from and one to judge by (EVA).

The judge is another network, and learns from the episodes of the other half of the initial states. A training may
exploit errors of the first model. The judge does not share them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from worldloop.core.errors import WorldloopError, require_positive, require_range
from worldloop.core.randomness import derive_seed, make_generator
from worldloop.evaluation.episode_values import choose_fold
from worldloop.executability.inverse_dynamics import InverseDynamicsConfig
from worldloop.executability.training import fit_inverse_dynamics
from worldloop.stages.context import Schedule, StageContext
from worldloop.storage.run_directory import name_checkpoint
from worldloop.storage.run_state import LoopState

NAME = "fit_inverse_dynamics"
NAMES = ("inverse_dynamics", "inverse_dynamics_judge")  # their checkpoints; the number is the half they learn from


@dataclass(frozen=True)
class Config:
    enabled: bool = False  # fit them, and check them on held-out video, even if no other stage needs them
    num_steps: int = 1000  # optimizer steps of each
    batch_size: int = 64  # frame steps per optimizer step
    learning_rate: float = 1e-3  # peak

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size"):
            require_range(f"fit_inverse_dynamics.{name}", getattr(self, name), 1)
        require_positive("fit_inverse_dynamics.learning_rate", self.learning_rate)


def takes_part(config: Config, schedule: Schedule) -> bool:
    return schedule.fits_models and schedule.uses_inverse_dynamics


def run(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """Fit both on the training episodes of ``state.dataset``."""
    clips = context.open_clips(state.dataset, "train")
    normalisation = context.store.version(state.dataset).normalisation
    states = [meta.initial_state_id for meta in clips.cache.metas]
    half = torch.tensor([choose_fold(name, len(NAMES)) for name in states])
    paths = []
    for number, name in enumerate(NAMES):
        path = name_checkpoint(state.iteration, name)
        index = clips.candidates[half[clips.candidates[:, 0]] == number]
        if len(index) == 0:
            raise WorldloopError(
                f"{name} has no training episode to learn from: collect episodes from more initial states"
            )
        if not context.models.has(path):
            settings = context.config_of(InverseDynamicsConfig)
            settings = settings.for_judging() if number else settings
            key = (context.seed, state.iteration, NAME, name)
            model = context.models.new_inverse_dynamics(settings, normalisation, derive_seed(*key))
            model = fit_inverse_dynamics(
                model.to(context.device),
                clips,
                index,
                num_steps=config.num_steps,
                batch_size=config.batch_size,
                learning_rate=config.learning_rate,
                generator=make_generator(*key),
                reporter=context.reporter,
            )
            context.models.save_inverse_dynamics(model, path)
        paths.append(path)
    return replace(state, inverse_dynamics=paths[0], inverse_dynamics_judge=paths[1])
