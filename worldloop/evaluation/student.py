"""Is a distilled student as good as its teacher? Both imagine the same held-out episodes; differences are paired."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldloop.core.statistics import Estimate, auc, estimate
from worldloop.evaluation.calibration import choose_sources
from worldloop.evaluation.fidelity import compute_mean_psnr
from worldloop.evaluation.open_loop import ImaginedEpisodes


@dataclass(frozen=True)
class StudentComparison:
    """The student's figures minus the teacher's over ``n`` episodes, with intervals that resample episodes.

    ``auc``: of the success head, ``None`` where all episodes have one outcome; ``psnr_db``: mean over an episode's
    valid frames, ``None`` without episodes.
    """

    n: int
    auc: Estimate | None
    psnr_db: Estimate | None

    def find_loss(self, max_auc_loss: float, max_psnr_loss_db: float) -> str | None:
        """The first of "auc" and "psnr_db" that the student may have lost more of than is allowed, or ``None``.

        Too few episodes to tell are no proof: the lower bound decides, and a figure that is missing is a loss.
        """
        for name, difference, allowed in (
            ("auc", self.auc, max_auc_loss),
            ("psnr_db", self.psnr_db, max_psnr_loss_db),
        ):
            if difference is None or not difference.low >= -allowed:
                return name
        return None

    def to_dict(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "auc": self.auc and self.auc.to_dict(),
            "psnr_db": self.psnr_db and self.psnr_db.to_dict(),
        }


def compare_student(
    teacher: Mapping[str, ImaginedEpisodes], student: Mapping[str, ImaginedEpisodes]
) -> StudentComparison:
    """On the sources that calibration looks at; both hold the same episodes in the same order."""
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
