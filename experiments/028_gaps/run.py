"""Experiment 028: does a reward that reads where things are stay right, where one that reads pictures does not?

    python experiments/028_gaps/run.py measure TASK [key=value ...] [--seeds 0 1 2] [--arms rounds ...]
    python experiments/028_gaps/run.py report [key=value ...]      # result.json, gaps.png

The loops and the judgement of experiment 026, with a success head that reads the gaps between landmarks. On the same
rollouts, imagined once more, its readers of pictures are judged as well.

- `rounds`: as in experiment 026
- `slow`: the same, and GRPO learns at a quarter of the rate
- `from_clone`: as `slow`, from the clone instead of an imitation of all successes

TASK: push, pull, pick.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from judged_loops import ROUNDS, run_arms  # noqa: E402

SLOW = "improve_policy.learning_rate=1.5e-4"
ARMS = {
    "rounds": ROUNDS,
    "slow": [*ROUNDS, SLOW],
    "from_clone": [*ROUNDS, SLOW, "improve_policy.restart_from=clone"],
}


if __name__ == "__main__":
    run_arms(str(__doc__), ARMS, HERE, "gaps.png")
