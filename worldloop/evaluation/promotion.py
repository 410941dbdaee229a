"""Choose the best candidate on some states, then test it against the policy on others.

On the states that chose it, the best of several candidates looks better than it is. So the test has states of its own.
It is Wald's sequential probability ratio test (1945, Annals of Mathematical Statistics 16, 117-186) of the sign test:
only states count where one of the two policies succeeds and the other fails. It compares two hypotheses: the candidate
wins 60 % of these states, or 40 %. Each won state multiplies the odds of the first by 1.5, each lost one divides them.
So the test ends when the candidate leads, or trails, by ``net_wins`` states. If it wins only 40 %, it is promoted with
probability 1 / (1 + 1.5^net_wins) at most: 3.8 % for a lead of 8. A candidate that is five points worse wins 40 % if a
quarter of the states change.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from worldloop.core.statistics import PairedGain, Rate, paired_gain
from worldloop.evaluation.by_task import ByTask, Outcomes, measure_by_task, pool_outcomes

Decision = Literal["promoted", "refused", "undecided"]


@dataclass(frozen=True)
class Duel:
    """A candidate against the policy on ``n`` states: ``won`` and ``lost`` by the candidate, the rest are equal.

    ``gain`` is its success minus the policy's, ``current`` the policy's success.
    """

    gain: PairedGain
    current: Rate
    won: int
    lost: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "promotion_gain": self.gain.to_dict(),
            "promotion_test": {"n": self.current.n, "won": self.won, "lost": self.lost},
        }


@dataclass(frozen=True)
class Verdict:
    """The decision about ``candidate``.

    ``lost_tasks``: with several tasks, those at which it is significantly worse; any such task refuses it.
    """

    candidate: str
    decision: Decision
    lost_tasks: tuple[str, ...]
    duels: ByTask[Duel]

    @property
    def is_promoted(self) -> bool:
        return self.decision == "promoted"

    def to_record(self) -> dict[str, Any]:
        """Plain values for results.json; ``promotion_reason`` says why the candidate was not promoted."""
        record = {"promoted": self.is_promoted, "tested_candidate": self.candidate, **self.duels.to_record()}
        if self.lost_tasks:
            record["promotion_reason"] = f"worse at {', '.join(self.lost_tasks)}"
        elif not self.is_promoted:
            record["promotion_reason"] = self.decision
        return record


def rank_candidates(candidates: Mapping[str, Outcomes]) -> list[str]:
    """Candidates (name -> outcomes on the same states), most successes first; equals stay in order of training."""
    return sorted(candidates, key=lambda name: -int(pool_outcomes(candidates[name], candidates[name]).sum()))


def judge_candidate(candidate: str, current: Outcomes, outcomes: Outcomes, net_wins: int) -> Verdict:
    """Compare the ``candidate``'s ``outcomes`` with those of the policy (``current``) on the same states so far.

    It is promoted if it leads by ``net_wins`` states over all tasks, and refused if it trails by as many. With several
    tasks it is also refused if the 95 % interval of the gain is wholly below 0 in one task.
    """

    def measure(tasks: Collection[str]) -> Duel:
        before, after = (pool_outcomes(each, tasks) for each in (current, outcomes))
        return Duel(
            paired_gain(before, after), Rate.of(before), int((after & ~before).sum()), int((before & ~after).sum())
        )

    duels = measure_by_task(measure, current)
    lost = tuple(task for task, alone in duels.tasks.items() if alone.gain.high < 0) if len(current) > 1 else ()
    lead = duels.overall.won - duels.overall.lost
    return Verdict(candidate, decide(lead, net_wins, bool(lost)), lost, duels)


def decide(lead: int, net_wins: int, is_worse_at_a_task: bool = False) -> Decision:
    """What the test says of a candidate that has won ``lead`` states more than it has lost."""
    if lead >= net_wins:
        return "refused" if is_worse_at_a_task else "promoted"
    return "refused" if lead <= -net_wins else "undecided"


def rate_candidates(candidates: Mapping[str, Outcomes]) -> dict[str, dict[str, float]]:
    """Candidate -> its success over all tasks, as plain values."""
    return {name: Rate.of(np.asarray(pool_outcomes(own, own))).to_dict() for name, own in candidates.items()}
