"""Experiment 028: does a reward that reads where things are stay right, where one that reads pictures does not?

    python experiments/028_gaps/run.py measure TASK [key=value ...] [--seeds 0 1 2] [--arms rounds ...]
    python experiments/028_gaps/run.py report [key=value ...]      # result.json, gaps.png

The loops and the judgement of experiment 026, with a success head that reads the gaps between landmarks. On the same
rollouts, imagined once more, its readers of pictures are judged as well.

- `rounds`: as in experiment 026
- `slow`: the same, and GRPO learns at a quarter of the rate
- `from_clone`: as `slow`, from the clone instead of an imitation of all successes
- `one_round`: no replays between the rounds of GRPO, and no refits

TASK: push, pull, pick.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from judged_loops import ROUNDS, measure_arms, report_arms  # noqa: E402
from trust_loops import measure_or_report  # noqa: E402

SLOW = "improve_policy.learning_rate=1.5e-4"
ARMS = {
    "rounds": ROUNDS,
    "slow": [*ROUNDS, SLOW],
    "from_clone": [*ROUNDS, SLOW, "improve_policy.restart_from=clone"],
    "one_round": [*ROUNDS, "refit_world_model.num_steps=0", "check_closed_loop.num_training_states=0"],
}


def measure(task: str, seed: int, overrides: list[str], arms: Sequence[str]) -> None:
    measure_arms(task, seed, overrides, {arm: ARMS[arm] for arm in arms})


def report(overrides: list[str]) -> None:
    report_arms(overrides, ARMS, HERE, "gaps.png")


if __name__ == "__main__":
    measure_or_report(str(__doc__), measure, report, arms=list(ARMS))
