"""Fit a planner on the successes in SANS, from the fitted world model, and make a policy that executes its plans (EVA).

The policy is a checkpoint like any other: it acts in the simulator wherever a policy does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch

from worldloop.core.errors import require_positive, require_range
from worldloop.core.randomness import derive_seed
from worldloop.sans.imitation import EVERY_SUCCESS, ImitationDataset
from worldloop.stages.context import Schedule, StageContext
from worldloop.storage.run_directory import name_checkpoint
from worldloop.storage.run_state import LoopState
from worldloop.training.optimizer import Optimizer
from worldloop.training.trainer import Trainer
from worldloop.world_model.planner import PlannerObjective

NAME = "fit_planner"


@dataclass(frozen=True)
class Config:
    TRAINS: ClassVar[bool] = True
    MICROBATCHED: ClassVar[tuple[str, ...]] = ("batch_size",)

    enabled: bool = False  # fit it, and check it; inverse dynamics models are fitted as well
    num_steps: int = 600  # optimizer steps, from the fitted world model's weights
    batch_size: int = 32  # clips per step
    learning_rate: float = 6e-4  # peak, AdamW
    weight_decay: float = 0.01  # AdamW, only of matrices
    num_frames: int = 4  # frames of a clip, each planned from the one before
    num_sampler_steps: int = 4  # denoising steps per planned frame; 1: the mean of all ways to go on
    zero_time_share: float = 0.5  # share of training samples that start from pure noise, in [0, 1]

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "num_frames", "num_sampler_steps"):
            require_range(f"fit_planner.{name}", getattr(self, name), 1)
        require_positive("fit_planner.learning_rate", self.learning_rate)
        require_range("fit_planner.weight_decay", self.weight_decay, 0)
        require_range("fit_planner.zero_time_share", self.zero_time_share, 0, 1)


def takes_part(config: Config, schedule: Schedule) -> bool:
    return schedule.fits_models and schedule.uses_planner


def run(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """Fit on the training successes of ``state.dataset``; clips start before the success, and may end after it."""
    path = name_checkpoint(state.iteration, "planner", max(1, state.num_fits))  # a further fit, a further planner
    if not context.models.has(path):
        fitted = context.models.load_world_model(state.teacher or state.world_model)
        settings = {"num_sampler_steps": config.num_sampler_steps, "zero_time_share": config.zero_time_share}
        planner = context.models.new_planner(fitted, derive_seed(context.seed, "planner"), **settings)
        planner = planner.to(context.device).train()
        clips = context.open_clips(state.dataset, "train")
        successes = ImitationDataset(clips.cache, EVERY_SUCCESS, planner.spec.robot.camera_names)

        def draw_starts(generator: torch.Generator, number: int) -> torch.Tensor:
            """All tasks are drawn equally often."""
            return torch.from_numpy(successes.starts[successes.draw_starts(generator, number)])

        trainer = Trainer(
            planner,
            partial(
                Optimizer,
                learning_rate=config.learning_rate,
                num_steps=config.num_steps,
                weight_decay=config.weight_decay,
            ),
            context.setup,
            context.reporter,
            name=NAME,
            first_step=state.iteration * config.num_steps,
            ema_decay=planner.config.ema_decay,
        )
        objective = PlannerObjective(
            planner,
            clips,
            draw_starts,
            context.setup.make_generators(context.seed, state.iteration, NAME),
            batch_size=config.batch_size // context.setup.num_microbatches,
            num_frames=config.num_frames,
        )
        averaged = trainer.fit(objective, config.num_steps)
        inverse_dynamics = context.models.load_inverse_dynamics(state.inverse_dynamics)
        context.models.save_planner_policy(averaged, inverse_dynamics, path)
    context.setup.drop_checkpoint(NAME)
    return replace(state, planner=path)
