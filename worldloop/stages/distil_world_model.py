"""A student that samples in fewer steps than the fitted world model, and is used only where it is as good.

It starts from the teacher's weights and learns to reach in one of its steps where the teacher gets with several, see
`VideoWorldModel.lead`; its heads go on learning from real frames and outcomes. Then both imagine the held-out episodes.
The student is taken if it is not inferior: the 95 % intervals, paired by episode, of the AUC of its success head and of
its PSNR, minus the teacher's, stay above what the config allows to be lost. Later fits go on from the teacher.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from worldloop.core.errors import require_positive
from worldloop.core.statistics import auc, bootstrap_interval
from worldloop.evaluation.calibration import is_calibrated_on
from worldloop.evaluation.fidelity import compute_psnr
from worldloop.evaluation.held_out import SOURCES, OpenLoop, imagine_episodes
from worldloop.stages import fit_world_model
from worldloop.stages.context import Schedule, StageContext
from worldloop.storage.run_state import LoopState
from worldloop.world_model.training import TeacherTarget

NAME = "distil_world_model"


@dataclass(frozen=True)
class Config:
    TRAINS: ClassVar[bool] = True

    num_steps: int = 0  # optimizer steps per fit; 0: no student
    num_sampler_steps: int = 1  # of the student; divides world_model.num_sampler_steps
    learning_rate: float = 2e-4  # peak, AdamW
    max_auc_loss: float = 0.02  # of the success head on held-out episodes, that the student may lose
    max_psnr_loss_db: float = 0.5  # of imagined frames of held-out episodes, that the student may lose
    batch_size: int = 64  # held-out episodes imagined at once
    max_episodes: int = 400  # held-out episodes per source, at most (the latest)

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
    """Train a student of ``state.teacher``; ``state.world_model`` is the student if it is as good, else the teacher."""
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
    held_out = context.open_clips(state.dataset, "validation")
    judged: list[dict[str, OpenLoop]] = [{}, {}]
    for name, sources in SOURCES.items():
        episodes = held_out.episode_index(source=sources)[-config.max_episodes :]
        for results, model in zip(judged, (teacher, student), strict=True):
            if len(episodes):
                results[name] = imagine_episodes(model, held_out, episodes, config.batch_size, context)
    figures = compare(*judged)
    lost = context.setup.data_parallel.all_gather(find_loss(figures, config))[0]  # rounding must not part the workers
    figures |= {"accepted": not lost, "num_sampler_steps": config.num_sampler_steps}
    context.reporter.log(
        f"student of {config.num_sampler_steps} steps: " + (f"refused, {lost}" if lost else describe(figures))
    )
    state = replace(state, world_model_steps=state.world_model_steps + config.num_steps).record(distillation=figures)
    if lost:
        context.setup.drop_checkpoint(NAME)
        return state
    path = fit_world_model.name_checkpoint(state.iteration, "world_model_student", state.num_fits)
    context.models.save_world_model(student, path)
    context.setup.drop_checkpoint(NAME)
    return replace(state, world_model=path)


def compare(teacher: dict[str, OpenLoop], student: dict[str, OpenLoop]) -> dict[str, Any]:
    """The student's AUC and mean PSNR in dB minus the teacher's, each ``{value, low, high}``, and ``n`` episodes.

    On the episodes that calibration looks at; ``None`` where there is none, or for the AUC a single outcome.
    """
    names = [name for name in teacher if is_calibrated_on(teacher[name], teacher)]
    if not names:
        return {"n": 0, "auc": None, "psnr_db": None}
    success = np.concatenate([teacher[name].is_success for name in names])
    logits = [np.concatenate([results[name].logit for name in names]) for results in (student, teacher)]
    psnr = [np.concatenate([_psnr_db(results[name]) for name in names]) for results in (student, teacher)]

    def auc_gain(a: NDArray[Any], b: NDArray[Any], label: NDArray[Any]) -> float:
        return auc(a, label) - auc(b, label)

    def psnr_gain(a: NDArray[Any], b: NDArray[Any]) -> float:
        return float(np.mean(a) - np.mean(b))

    both = success.any() and not success.all()
    return {
        "n": len(success),
        "auc": _with_interval(auc_gain, *logits, success) if both else None,
        "psnr_db": _with_interval(psnr_gain, *psnr),
    }


def _with_interval(statistic: Any, *arrays: NDArray[Any]) -> dict[str, float]:
    low, high = bootstrap_interval(statistic, *arrays)
    return {"value": round(statistic(*arrays), 4), "low": round(low, 4), "high": round(high, 4)}


def _psnr_db(result: OpenLoop) -> NDArray[Any]:
    """f [n]: the mean over each episode's valid frames."""
    valid = result.branches.truth.valid.float()
    psnr_db = compute_psnr(result.branches.frames, result.branches.truth.frames)
    return ((psnr_db * valid).sum(1) / valid.sum(1).clamp_min(1)).numpy()


def find_loss(figures: dict[str, Any], config: Config) -> str:
    """What the student may have lost more of than is allowed; "" where it is as good as its teacher."""
    for name, allowed in (("auc", config.max_auc_loss), ("psnr_db", config.max_psnr_loss_db)):
        gain = figures[name]
        if gain is None:
            return f"no held-out episodes to compare its {name} on"
        if not gain["low"] >= -allowed:
            return f"{name} {_show(gain)} against the teacher's, n {figures['n']}, allowed: down to {-allowed}"
    return ""


def describe(figures: dict[str, Any]) -> str:
    return f"accepted, AUC {_show(figures['auc'])}, PSNR {_show(figures['psnr_db'])} dB, n {figures['n']}"


def _show(gain: dict[str, float]) -> str:
    return f"{gain['value']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})"
