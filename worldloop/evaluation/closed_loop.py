"""Closed-loop alignment: does imagined success agree with what the same actions do in the simulator?

The policy acts on imagined frames, several times from each start. The simulator then replays the actions of every
rollout from the same state. The open-loop check (`evaluation.open_loop`) imagines recorded actions instead. Those were
chosen on true frames, so they carry the outcome with them, and its AUC says little about imagined rollouts.

Three success rates belong together:

- ``own``: the policy itself in the simulator
- ``replay``: its imagined actions in the simulator; own minus replay is what imagined *pictures* cost the policy
- ``declared``: what the imagination says; declared against replay is what the *reward* gets wrong

`evaluation.replayed_rollouts` imagines and replays.

The *swap test* takes own minus replay apart: the policy acts in the simulator, but sees one part imagined, a camera or
proprio (`rollout.swap`). What it loses of ``own``, this part costs.

GRPO compares rollouts from one start, so ``within_group_auc`` is all that it sees. The floor of ``auc`` is
``start_only_auc``: the AUC of the success rate of the *other* replays from the same start. It shows what one knows from
the start alone. The floor of ``within_group_auc`` is .5.

Shapes: n rollouts (N starts x G members), C chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from worldloop.core.statistics import (
    Estimate,
    auc,
    average_estimates,
    balanced_accuracy,
    estimate,
    estimate_by_label,
    estimate_within_group_auc,
    expected_calibration_error,
    mean,
)
from worldloop.core.success import Trust
from worldloop.evaluation.replayed_rollouts import ReplayedRollouts

MIN_THRESHOLD, MAX_THRESHOLD = 0.2, 0.99  # probabilities; bounds, because few replays may give any threshold


@dataclass(frozen=True)
class ClosedLoop:
    """The figures of ``n`` imagined rollouts from ``num_starts`` starts; intervals resample starts.

    - ``own``, ``replay``, ``declared``: success rates, see the module; ``own`` has one episode per start
    - ``own_minus_replay``, ``imagined_minus_simulated`` (declared minus own): means over starts
    - ``swapped_minus_own``: part -> what the policy loses if it sees this part imagined, see the module
    - ``auc``, ``within_group_auc``, ``start_only_auc``: of the score, see the module
    - ``true_negative_rate``: the share of failing replays without a declared success; ``balanced_accuracy`` and
      ``expected_calibration_error`` are of the declaration and of the score
    - ``by_chunks``: (within_group_auc, auc) within 1, 2, ... chunks

    A figure is ``None`` if its replays all ended alike.
    """

    n: int
    num_starts: int
    own: Estimate
    replay: Estimate
    declared: Estimate
    own_minus_replay: Estimate
    imagined_minus_simulated: Estimate
    auc: Estimate | None
    within_group_auc: Estimate | None
    start_only_auc: Estimate | None
    true_negative_rate: Estimate | None
    balanced_accuracy: Estimate | None
    expected_calibration_error: Estimate | None
    by_chunks: tuple[tuple[Estimate | None, Estimate | None], ...]
    swapped_minus_own: dict[str, Estimate] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The entry ``closed_loop`` in results.json; figures that cannot be had have a reason beside them."""
        figures: dict[str, Any] = {"n": self.n, "num_starts": self.num_starts}
        for name in _NAMES:
            value: Estimate | None = getattr(self, name)
            figures[name] = value and value.to_dict()
            if value is None:
                figures[f"{name}_reason"] = _REASONS.get(name, "the replays all ended alike")
        if self.swapped_minus_own:
            figures["swapped_minus_own"] = {part: loss.to_dict() for part, loss in self.swapped_minus_own.items()}
        figures["by_chunks"] = [
            {"chunks": chunks, "within_group_auc": within and within.to_dict(), "auc": pooled and pooled.to_dict()}
            for chunks, (within, pooled) in enumerate(self.by_chunks, start=1)
        ]
        return figures


_NAMES = (
    "own",
    "replay",
    "declared",
    "own_minus_replay",
    "imagined_minus_simulated",
    "auc",
    "within_group_auc",
    "start_only_auc",
    "true_negative_rate",
    "balanced_accuracy",
    "expected_calibration_error",
)
_REASONS = {
    "within_group_auc": "the replays from each start all ended alike",
    "true_negative_rate": "no replay failed",
    "start_only_auc": "one replay per start, or the replays all ended alike",
}


def judge_closed_loop(rollouts: ReplayedRollouts, threshold: float) -> ClosedLoop:
    """The figures of the rollouts of one task, at least one of them; a score >= ``threshold`` declares a success."""
    start, truth, score = rollouts.start, rollouts.replayed[:, -1], rollouts.score[:, -1]
    said, own = score >= threshold, rollouts.own[start]

    def average(values: np.ndarray) -> Estimate:
        return estimate(mean, values.astype(float), clusters=start)

    def compare(statistic: Any, values: np.ndarray) -> Estimate | None:
        return estimate_by_label(statistic, values, truth, clusters=start)

    has_groups = len(truth) > len(rollouts.own)
    return ClosedLoop(
        n=len(truth),
        num_starts=len(rollouts.own),
        own=average(own),
        replay=average(truth),
        declared=average(said),
        own_minus_replay=average(own.astype(float) - truth),
        imagined_minus_simulated=average(said.astype(float) - own),
        auc=compare(auc, score),
        within_group_auc=estimate_within_group_auc(score, truth, start),
        start_only_auc=compare(auc, rate_other_members(truth, start)) if has_groups else None,
        true_negative_rate=None if truth.all() else _rate_true_negatives(said, truth, start),
        balanced_accuracy=compare(balanced_accuracy, said),
        expected_calibration_error=compare(expected_calibration_error, score),
        by_chunks=tuple(
            (
                estimate_within_group_auc(rollouts.score[:, c], rollouts.replayed[:, c], start),
                estimate_by_label(auc, rollouts.score[:, c], rollouts.replayed[:, c], clusters=start),
            )
            for c in range(rollouts.score.shape[1])
        ),
        swapped_minus_own={
            part: estimate(mean, success.astype(float) - rollouts.own) for part, success in rollouts.swapped.items()
        },
    )


def judge_closed_loop_trust(judged: ClosedLoop, required_auc: float) -> Trust:
    """Trust the model if its AUC within groups is at least ``required_auc``; 0 trusts every model.

    Without two rollouts from one start that ended differently there is nothing to judge by, and it is not trusted.
    """
    if required_auc == 0:
        return Trust(True)
    reached = judged.within_group_auc
    if reached is None:
        return Trust(False, f"in the closed loop {_REASONS['within_group_auc']} ({judged.replay.value:.2f} successes)")
    if reached.value >= required_auc:
        return Trust(True)
    return Trust(
        False,
        f"closed-loop AUC within groups {reached.value:.3f} is below check_closed_loop.required_auc {required_auc}",
    )


def choose_threshold(score: np.ndarray, success: np.ndarray, max_false_positive_rate: float = 1.0) -> float:
    """The threshold, in `MIN_THRESHOLD`..`MAX_THRESHOLD`, that declares as many successes as there are.

    ``score`` f [n], ``success`` bool [n]. It is higher if more than ``max_false_positive_rate`` of the failures would
    pass it.

    Example: of the scores .1, .3, .6 and .9 two are successes, so the threshold is just above .3. If the failures are
    .1 and .6 and none may pass, it is just above .6.
    """
    threshold = _just_above(score, len(score) - int(success.sum()))
    failures = score[~success]
    if len(failures):
        num_refused = len(failures) - int(max_false_positive_rate * len(failures))
        threshold = max(threshold, _just_above(failures, num_refused))
    return float(np.clip(threshold, MIN_THRESHOLD, MAX_THRESHOLD))


def _just_above(score: np.ndarray, num_below: int) -> float:
    """The lowest number above the ``num_below`` lowest scores."""
    return 0.0 if num_below == 0 else float(np.nextafter(np.sort(score)[num_below - 1], 1))


def rate_other_members(success: np.ndarray, group: np.ndarray) -> np.ndarray:
    """f [n]: for each row the success rate of the other rows of its group, the overall rate if there are none."""
    total, size = (np.bincount(group, weights)[group] for weights in (success.astype(float), None))
    return np.where(size > 1, (total - success) / np.maximum(size - 1, 1), success.mean())


def _rate_true_negatives(declared: np.ndarray, replayed: np.ndarray, start: np.ndarray) -> Estimate:
    failed = ~replayed
    return estimate(mean, (~declared[failed]).astype(float), clusters=start[failed])


def average_closed_loops(judged: Sequence[ClosedLoop]) -> ClosedLoop:
    """Means over tasks, each with the same weight; a task without a figure is left out of it."""
    if len(judged) == 1:
        return judged[0]

    def average(name: str) -> Any:
        return average_estimates([getattr(one, name) for one in judged])

    return ClosedLoop(
        n=sum(one.n for one in judged),
        num_starts=sum(one.num_starts for one in judged),
        **{name: average(name) for name in _NAMES},
        by_chunks=tuple(
            (average_estimates([w for w, _ in column]), average_estimates([p for _, p in column]))
            for column in zip(*(one.by_chunks for one in judged), strict=True)
        ),
        swapped_minus_own={
            part: loss
            for part in judged[0].swapped_minus_own
            if (loss := average_estimates([one.swapped_minus_own[part] for one in judged])) is not None
        },
    )
