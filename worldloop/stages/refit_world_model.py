"""Within an improvement, fit the world model further to what the simulator has just replayed.

The policy moves on with every round, to where the world model has seen little: a hand that lands on the cube,
or presses on the table. `check_closed_loop` adds the replays of the newest policy to SANS. Before the next round this
stage trains on them and all other episodes: first the proprio head, then video and success. The reader of landmarks
stays as it is. It works with the world
model that was fitted last; its checks, thresholds and card stay those of the fit before, until the next check.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from worldloop.core.errors import require_positive, require_range
from worldloop.stages import fit_world_model
from worldloop.stages.context import Schedule, StageContext
from worldloop.storage.run_directory import name_checkpoint
from worldloop.storage.run_state import LoopState

NAME = "refit_world_model"


@dataclass(frozen=True)
class Config:
    TRAINS: ClassVar[bool] = True

    num_steps: int = 0  # optimizer steps before each further round; 0: the world model stays
    num_proprio_steps: int = 300  # optimizer steps of the proprio head, before those
    learning_rate: float = 4e-4  # peak, AdamW; the proprio head has fit_world_model.proprio_learning_rate

    def __post_init__(self) -> None:
        require_range("refit_world_model.num_steps", self.num_steps, 0)
        require_range("refit_world_model.num_proprio_steps", self.num_proprio_steps, 0)
        require_positive("refit_world_model.learning_rate", self.learning_rate)


def takes_part(config: Config, schedule: Schedule) -> bool:
    return config.num_steps > 0 and not schedule.is_first and schedule.has_simulator and schedule.in_rounds


def run(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """Train ``state.world_model`` on ``state.dataset``; calibrations and trust stay."""
    fitting = context.config_of(fit_world_model.Config)
    model = context.models.load_world_model(state.world_model).to(context.device).train()
    clips = fit_world_model.open_training_clips(state, context)
    fit_world_model.set_ranges(model, clips.dataset)
    if not context.setup.has_checkpoint(NAME):
        fit_world_model.fit_proprio(
            model,
            clips,
            replace(fitting, num_proprio_steps=config.num_proprio_steps),
            context,
            name=f"{NAME}_proprio",
            tag=NAME,
            first_step=state.world_model_steps,
            draws=(state.iteration, NAME, state.num_rounds, "proprio"),
        )
    averaged = fit_world_model.fit(
        model,
        clips,
        state,
        fitting,
        context,
        name=NAME,
        num_steps=config.num_steps,
        learning_rate=config.learning_rate,
        pool_from=0,
        draws=(state.iteration, NAME, state.num_rounds),
    )
    path = name_checkpoint(state.iteration, f"world_model_round_{state.num_rounds + 1}")
    context.models.save_world_model(averaged, path)
    context.models.carry_card(state.world_model, path)
    context.setup.drop_checkpoint(NAME)
    context.setup.drop_checkpoint(f"{NAME}_proprio")
    return replace(state, world_model=path, teacher=path, world_model_steps=state.world_model_steps + config.num_steps)
