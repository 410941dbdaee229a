"""Compare a distilled student with its teacher: both imagine the same held-out episodes; differences are paired."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldloop.core.statistics import Estimate, auc, average_estimates, estimate
from worldloop.evaluation.by_task import ByTask, measure_by_task
from worldloop.evaluation.calibration import choose_sources
from worldloop.evaluation.fidelity import compute_mean_psnr
from worldloop.evaluation.open_loop import ImaginedEpisodes


@dataclass(frozen=True)
class StudentComparison:
    """The student's figures minus the teacher's over ``n`` episodes; intervals resample episodes.

    - ``auc``: of the success head; ``None`` if all episodes have one outcome
    - ``psnr_db``: of valid frames, by episode; ``None`` without episodes
    """

    n: int
    auc: Estimate | None
    psnr_db: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "auc": self.auc and self.auc.to_dict(),
            "psnr_db": self.psnr_db and self.psnr_db.to_dict(),
        }


@dataclass(frozen=True)
class Loss:
    """The ``figure``, "auc" or "psnr_db", on which a student fails, and the ``task``; "" is over all tasks."""

    figure: str
    task: str = ""


def find_loss(compared: ByTask[StudentComparison], max_auc_loss: float, max_psnr_loss_db: float) -> Loss | None:
    """The first figure on which the student loses too much, or ``None``.

    Over all tasks the student fails if the lower bound of the difference is below the allowed loss, or if the figure is
    missing: too few episodes are no proof. With several tasks it also fails if the whole interval of one task is below
    the allowed loss.
    """
    for name, allowed in (("auc", max_auc_loss), ("psnr_db", max_psnr_loss_db)):
        difference: Estimate | None = getattr(compared.overall, name)
        if difference is None or not difference.low >= -allowed:
            return Loss(name)
        for task, comparison in compared.tasks.items():
            own: Estimate | None = getattr(comparison, name)
            if len(compared.tasks) > 1 and own is not None and own.high < -allowed:
                return Loss(name, task)
    return None


def compare_students(
    teacher: Mapping[str, Mapping[str, ImaginedEpisodes]], student: Mapping[str, Mapping[str, ImaginedEpisodes]]
) -> ByTask[StudentComparison]:
    """Compare by task and over all tasks; differences are averaged over tasks.

    Both arguments are task -> source -> imagined episodes, with the same episodes in the same order.
    """
    alone = {task: compare_student(teacher[task], student[task]) for task in teacher}

    def average(tasks: Collection[str]) -> StudentComparison:
        return StudentComparison(
            n=sum(alone[task].n for task in tasks),
            auc=average_estimates([alone[task].auc for task in tasks]),
            psnr_db=average_estimates([alone[task].psnr_db for task in tasks]),
        )

    return measure_by_task(average, teacher)


def compare_student(
    teacher: Mapping[str, ImaginedEpisodes], student: Mapping[str, ImaginedEpisodes]
) -> StudentComparison:
    """Compare in one task, on the sources of `choose_sources`; both have the same episodes in the same order."""
    names = choose_sources(teacher)
    if not names:
        return StudentComparison(0, None, None)
    is_success = np.concatenate([teacher[name].is_success for name in names])
    logits = [np.concatenate([episodes[name].logit for name in names]) for episodes in (student, teacher)]
    psnr_db = [np.concatenate([_average_psnr(episodes[name]) for name in names]) for episodes in (student, teacher)]
    has_both = is_success.any() and not is_success.all()
    return StudentComparison(
        n=len(is_success),
        auc=estimate(_subtract_auc, *logits, is_success) if has_both else None,
        psnr_db=estimate(_subtract_means, *psnr_db),
    )


def _subtract_auc(a: np.ndarray, b: np.ndarray, labels: np.ndarray) -> float:
    return auc(a, labels) - auc(b, labels)


def _subtract_means(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean(a) - np.mean(b))


def _average_psnr(episodes: ImaginedEpisodes) -> np.ndarray:
    """f [n], dB: the mean over each episode's valid frames."""
    valid = episodes.branches.truth.valid.float()
    psnr_db = compute_mean_psnr(episodes.branches)
    return ((psnr_db * valid).sum(1) / valid.sum(1).clamp_min(1)).numpy()
