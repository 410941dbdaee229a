"""Distil the fitted world model (the teacher) into a student with fewer sampler steps; use it if it is as good.

The student starts from the teacher's weights. One of its steps learns to end where several of the teacher's steps end,
see `TeacherTarget`; its heads go on learning from real frames and outcomes. Then both imagine the held-out episodes.
The student is accepted if it is not inferior, see `find_loss`: the paired 95 % intervals of its success head's AUC and
of its PSNR, minus the teacher's, must stay above the allowed loss. Later fits continue from the teacher.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from worldloop.core.errors import require_positive
from worldloop.evaluation.open_loop import ImaginedEpisodes, imagine_held_out
from worldloop.evaluation.student import compare_students, find_loss
from worldloop.reporting.student import describe_accepted, describe_refused, make_student_record
from worldloop.stages import fit_world_model
from worldloop.stages.context import Schedule, StageContext
from worldloop.storage.run_directory import name_checkpoint
from worldloop.storage.run_state import LoopState
from worldloop.world_model.training import TeacherTarget

NAME = "distil_world_model"


@dataclass(frozen=True)
class Config:
    TRAINS: ClassVar[bool] = True

    num_steps: int = 0  # optimizer steps per fit; 0: no student
    num_sampler_steps: int = 1  # sampler steps of the student; divides world_model.num_sampler_steps
    learning_rate: float = 2e-4  # peak, AdamW
    max_auc_loss: float = 0.02  # AUC of the success head that the student may lose
    max_psnr_loss_db: float = 0.5  # PSNR of imagined frames that the student may lose, in dB
    batch_size: int = 64  # held-out episodes imagined at once
    max_episodes: int = 400  # most held-out episodes per source and task; the latest are used

    def __post_init__(self) -> None:
        if self.num_steps < 0 or self.num_sampler_steps < 1:
            raise ValueError("distil_world_model: num_steps must be >= 0 and num_sampler_steps >= 1")
        if self.max_auc_loss < 0 or self.max_psnr_loss_db < 0:
            raise ValueError("distil_world_model: max_auc_loss and max_psnr_loss_db must be >= 0")
        if self.batch_size < 1 or self.max_episodes < 1:
            raise ValueError("distil_world_model: batch_size and max_episodes must be >= 1")
        require_positive("distil_world_model.learning_rate", self.learning_rate)


def takes_part(config: Config, schedule: Schedule) -> bool:
    return config.num_steps > 0 and not schedule.is_first and schedule.uses_world_model


def run(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """Train a student of ``state.teacher``; it becomes ``state.world_model`` if it is as good."""
    teacher = context.models.load_world_model(state.teacher).to(context.device).for_imagination()
    student = context.models.load_world_model(state.teacher).to(context.device).train()
    student.config = replace(student.config, num_sampler_steps=config.num_sampler_steps)
    student = fit_world_model.fit(
        student,
        fit_world_model.open_training_clips(state, context),
        state,
        context.config_of(fit_world_model.Config),
        context,
        name=NAME,
        num_steps=config.num_steps,
        learning_rate=config.learning_rate,
        pool_from=0,
        draws=(state.iteration, NAME, state.num_fits),
        target=TeacherTarget(teacher, config.num_sampler_steps),
    ).eval()
    held_out = context.open_clips(state.dataset, "validation", teacher.spec)
    imagined: list[dict[str, dict[str, ImaginedEpisodes]]] = []
    for model in (teacher, student):
        imagined.append(
            {
                task: imagine_held_out(
                    model,
                    held_out,
                    task,
                    max_episodes=config.max_episodes,
                    batch_size=config.batch_size,
                    seed=context.seed,
                    reporter=context.reporter,
                    folder=context.setup.checkpoint_root,
                )
                for task in teacher.spec.task_ids
            }
        )
    compared = compare_students(*imagined)
    loss = find_loss(compared, config.max_auc_loss, config.max_psnr_loss_db)
    loss = context.setup.data_parallel.all_gather(loss)[0]  # all ranks must decide alike, whatever their rounding
    if loss is None:
        verdict = describe_accepted(compared.overall)
    else:
        allowed = {"auc": config.max_auc_loss, "psnr_db": config.max_psnr_loss_db}[loss.figure]
        verdict = describe_refused(compared, loss, allowed)
    context.reporter.log(f"student of {config.num_sampler_steps} steps: {verdict}")
    state = replace(state, world_model_steps=state.world_model_steps + config.num_steps)
    state = state.record(**make_student_record(compared, loss is None, config.num_sampler_steps))
    if loss is None:
        path = name_checkpoint(state.iteration, "world_model_student", state.num_fits)
        context.models.save_world_model(student, path)
        state = replace(state, world_model=path)
    context.setup.drop_checkpoint(NAME)
    return state
