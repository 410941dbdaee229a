"""Compare candidates with the policy on the same validation states."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldloop.core.statistics import PairedGain, Rate, paired_gain
from worldloop.evaluation.by_task import ByTask, Outcomes, measure_by_task, pool_outcomes


@dataclass(frozen=True)
class CandidateFigures:
    """``gain``: of the best candidate over the policy; ``current``: the policy's success; ``success``: by candidate."""

    gain: PairedGain
    current: Rate
    success: dict[str, Rate]

    def to_dict(self) -> dict[str, Any]:
        return {
            "promotion_gain": self.gain.to_dict(),
            "validation_success": {candidate: rate.to_dict() for candidate, rate in self.success.items()},
        }


@dataclass(frozen=True)
class Verdict:
    """Whether the ``best`` candidate replaces the policy.

    ``lost_tasks``: with several tasks, those at which it is significantly worse; any such task prevents the promotion.
    """

    best: str
    is_promoted: bool
    lost_tasks: tuple[str, ...]
    figures: ByTask[CandidateFigures]

    def to_record(self) -> dict[str, Any]:
        """Plain values for results.json; ``promotion_reason`` names the lost tasks, if any."""
        record = {"promoted": self.is_promoted, **self.figures.to_record()}
        if self.lost_tasks:
            record["promotion_reason"] = f"worse at {', '.join(self.lost_tasks)}"
        return record


def judge_candidates(current: Outcomes, candidates: Mapping[str, Outcomes], min_gain: float) -> Verdict:
    """Choose the candidate (name -> outcomes) with most successes and compare it with the policy (``current``).

    Of equal candidates the first is chosen. It is promoted if its paired gain over all tasks is at least ``min_gain``
    and, with several tasks, no task's 95 % interval of the gain is wholly below 0.
    """
    best = max(candidates, key=lambda candidate: int(pool_outcomes(candidates[candidate], current).sum()))

    def measure(tasks: Collection[str]) -> CandidateFigures:
        before = pool_outcomes(current, tasks)
        after: dict[str, np.ndarray] = {name: pool_outcomes(outcomes, tasks) for name, outcomes in candidates.items()}
        rates = {name: Rate.of(outcomes) for name, outcomes in after.items()}
        return CandidateFigures(paired_gain(before, after[best]), Rate.of(before), rates)

    figures = measure_by_task(measure, current)
    lost = tuple(task for task, alone in figures.tasks.items() if alone.gain.high < 0) if len(current) > 1 else ()
    return Verdict(best, figures.overall.gain.gain >= min_gain and not lost, lost, figures)
