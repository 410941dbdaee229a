"""Fit the world model to the current SANS version: proprio first, then video and success in one joint loss.

The video depends on the predicted proprio, so the proprio head is trained first and then fixed; before it the reader of
landmarks, if the model has one. From ``self_rollout_start`` on, a share of every batch continues the model's own
predictions, so that the model learns to work on imagined frames.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from worldloop.core.errors import require_positive, require_range
from worldloop.core.randomness import derive_seed
from worldloop.sans.clips import BalancedClipSampler, ClipDataset, ClipSamplingConfig
from worldloop.stages.context import Schedule, StageContext
from worldloop.storage.run_directory import name_checkpoint
from worldloop.storage.run_state import LoopState
from worldloop.training.optimizer import Optimizer
from worldloop.training.trainer import Trainer
from worldloop.world_model.model import VideoWorldModel
from worldloop.world_model.proprio_training import ProprioObjective, ReadingObjective
from worldloop.world_model.training import ActionTerm, Target, WorldModelObjective

NAME = "fit_world_model"
PROPRIO, READING = "fit_world_model_proprio", "fit_world_model_reading"


@dataclass(frozen=True)
class Config:
    TRAINS: ClassVar[bool] = True
    MICROBATCHED: ClassVar[tuple[str, ...]] = ("batch_size", "proprio_batch_size")

    num_steps: int = 1500  # optimizer steps of the first fit
    num_refit_steps: int = 900  # optimizer steps of a refit, from the last model's weights
    batch_size: int = 64  # clips per step
    learning_rate: float = 6e-4  # peak, AdamW
    refit_learning_rate: float = 4e-4  # peak of a refit, AdamW
    weight_decay: float = 0.01  # AdamW, only of matrices
    self_rollout_start: float = 0.3  # share of the first fit's steps before the self-rollout pool is used, in [0, 1]
    num_reading_steps: int = 1000  # optimizer steps of the reader of landmarks, first in every iteration; 0: none
    num_proprio_steps: int = 2000  # optimizer steps of the proprio head, next in every iteration; 0: none
    proprio_batch_size: int = 128  # clips per step of the reader and of the proprio head
    proprio_frames: int = 5  # frames over which the proprio head is unrolled
    reading_learning_rate: float = 4e-3  # peak of the reader, AdamW
    proprio_learning_rate: float = 1e-3  # peak of the proprio head, AdamW
    inverse_dynamics_weight: float = 0.0  # of a loss on the actions that predicted frames show; 0: none

    def __post_init__(self) -> None:
        for name in ("num_steps", "num_refit_steps", "batch_size", "proprio_batch_size", "proprio_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"fit_world_model.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("num_reading_steps", "num_proprio_steps"):
            require_range(f"fit_world_model.{name}", getattr(self, name), 0)
        require_range("fit_world_model.self_rollout_start", self.self_rollout_start, 0, 1)
        require_range("fit_world_model.weight_decay", self.weight_decay, 0)
        require_range("fit_world_model.inverse_dynamics_weight", self.inverse_dynamics_weight, 0)
        for name in ("learning_rate", "refit_learning_rate", "reading_learning_rate", "proprio_learning_rate"):
            require_positive(f"fit_world_model.{name}", getattr(self, name))


def takes_part(config: Config, schedule: Schedule) -> bool:
    return schedule.fits_models and schedule.uses_world_model


def run(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """Fit on ``state.dataset``; save the averaged weights among this iteration's checkpoints.

    A further fit in the same iteration, see `check_world_model`, continues from the one before, without reader and
    proprio head.
    """
    fit_number = state.num_fits + 1
    is_refit = bool(state.world_model)
    if is_refit:
        model = context.models.load_world_model(state.teacher or state.world_model)
    else:
        normalisation = context.store.version(state.dataset).normalisation
        model = context.models.new_world_model(normalisation, derive_seed(context.seed, "world_model"))
    model = model.to(context.device).train()
    clips = open_training_clips(state, context)
    set_ranges(model, clips.dataset)
    if fit_number == 1 and not context.setup.has_checkpoint(NAME):
        if model.landmarks is not None and not context.setup.has_checkpoint(PROPRIO):
            fit_reading(model, clips, config, context, state.iteration)
        fit_proprio(
            model,
            clips,
            config,
            context,
            name=PROPRIO,
            tag=NAME,
            first_step=state.iteration * config.num_proprio_steps,
            draws=(state.iteration, "fit_world_model/proprio"),
        )
    num_steps = config.num_refit_steps if is_refit else config.num_steps
    averaged = fit(
        model,
        clips,
        state,
        config,
        context,
        name=NAME,
        num_steps=num_steps,
        learning_rate=config.refit_learning_rate if is_refit else config.learning_rate,
        pool_from=0 if is_refit else int(config.self_rollout_start * num_steps),
        draws=(state.iteration, NAME, fit_number),
    )
    path = name_checkpoint(state.iteration, "world_model", fit_number)
    context.models.save_world_model(averaged, path)
    for name in (NAME, PROPRIO, READING):
        context.setup.drop_checkpoint(name)
    steps = state.world_model_steps + num_steps
    state = replace(state, world_model=path, teacher=path, world_model_steps=steps, num_fits=fit_number)
    return replace(state, calibrations=None, trust={})


def make_action_term(state: LoopState, config: Config, context: StageContext) -> ActionTerm | None:
    """The loss by this iteration's inverse dynamics model, which is not trained here; ``None`` if its weight is 0."""
    if config.inverse_dynamics_weight == 0:
        return None
    model = context.models.load_inverse_dynamics(state.inverse_dynamics).to(context.device).requires_grad_(False)
    return ActionTerm(model.read_actions, config.inverse_dynamics_weight)


def open_training_clips(state: LoopState, context: StageContext) -> BalancedClipSampler:
    return BalancedClipSampler(context.open_clips(state.dataset, "train"), context.config_of(ClipSamplingConfig))


def set_ranges(model: VideoWorldModel, clips: ClipDataset) -> None:
    """Keep imagined proprio, and the landmarks that ``model`` carries on, where real ones were."""
    model.set_proprio_range(*clips.proprio_range())
    if model.landmarks is not None:
        model.landmarks.set_range(*clips.landmark_range())


def fit_proprio(
    model: VideoWorldModel,
    clips: BalancedClipSampler,
    config: Config,
    context: StageContext,
    *,
    name: str,
    tag: str,
    first_step: int,
    draws: tuple[int | str, ...],
) -> None:
    """Train the proprio head on its own unrolled predictions; other parts of ``model`` get no gradient.

    ``name`` is that of the checkpoint, ``tag`` that of the TensorBoard folder; ``draws`` seeds the random draws.
    """
    objective = ProprioObjective(
        model,
        clips,
        context.setup.make_generators(context.seed, *draws),
        batch_size=config.proprio_batch_size // context.setup.num_microbatches,
        num_frames=config.proprio_frames,
    )
    num_steps = config.num_proprio_steps
    _fit_apart(
        model,
        objective,
        num_steps,
        config.proprio_learning_rate,
        config,
        context,
        name=name,
        tag=tag,
        unit="proprio step",
        first_step=first_step,
    )


def fit_reading(
    model: VideoWorldModel, clips: BalancedClipSampler, config: Config, context: StageContext, iteration: int
) -> None:
    """Train the reader of landmarks; other parts of ``model`` get no gradient."""
    objective = ReadingObjective(
        model,
        clips,
        context.setup.make_generators(context.seed, iteration, "fit_world_model/reading"),
        batch_size=config.proprio_batch_size // context.setup.num_microbatches,
    )
    num_steps = config.num_reading_steps
    first = iteration * num_steps
    _fit_apart(
        model,
        objective,
        num_steps,
        config.reading_learning_rate,
        config,
        context,
        name=READING,
        tag=NAME,
        unit="reading step",
        first_step=first,
    )


def _fit_apart(
    model: VideoWorldModel,
    objective: ProprioObjective | ReadingObjective,
    num_steps: int,
    learning_rate: float,
    config: Config,
    context: StageContext,
    *,
    name: str,
    tag: str,
    unit: str,
    first_step: int,
) -> None:
    if num_steps == 0:
        return
    make_optimizer = partial(
        Optimizer, learning_rate=learning_rate, num_steps=num_steps, weight_decay=config.weight_decay
    )
    trainer = Trainer(
        model,
        make_optimizer,
        context.setup,
        context.reporter,
        name=name,
        tag=tag,
        unit=unit,
        first_step=first_step,
        checkpoints_end=True,  # a resumed fit needs what was trained
    )
    trainer.fit(objective, num_steps)


def fit(
    model: VideoWorldModel,
    clips: BalancedClipSampler,
    state: LoopState,
    config: Config,
    context: StageContext,
    *,
    name: str,
    num_steps: int,
    learning_rate: float,
    pool_from: int,
    draws: tuple[int | str, ...],
    target: Target | None = None,
) -> VideoWorldModel:
    """Train ``model`` on the joint loss; return the model with averaged weights. ``draws`` seeds the random draws."""
    setup = context.setup
    apart = ("proprio_head.", "landmarks.")  # trained before
    sharded = {n for n, p in model.named_parameters() if p.requires_grad and not n.startswith(apart)}
    make_optimizer = partial(
        Optimizer, learning_rate=learning_rate, num_steps=num_steps, weight_decay=config.weight_decay
    )
    trainer = Trainer(
        model,
        make_optimizer,
        setup,
        context.reporter,
        name=name,
        first_step=state.world_model_steps,
        ema_decay=model.config.ema_decay,
        sharded=sharded if setup.shard_world_model else frozenset(),
    )
    objective = WorldModelObjective(
        model,
        clips,
        setup.make_generators(context.seed, *draws),
        setup.data_parallel,
        batch_size=config.batch_size // setup.num_microbatches,
        pool_from=pool_from,
        target=target,
        action_term=make_action_term(state, config, context),
    )
    return trainer.fit(objective, num_steps)
