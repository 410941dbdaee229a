"""Experiment 030: what a world model gains that sees each contact from both sides, and reads its start better.

    python experiments/030_half_turns/run.py measure TASK [key=value ...] [--seeds 0 1 2]
    python experiments/030_half_turns/run.py report [key=value ...]      # result.json, contacts.png

A loop up to its first world model, then one uninterrupted run of GRPO in that model, from the clone.

- `now`: this code
- `fitted`: the code of commit 81952aa, where the threshold of success was fitted to recorded episodes. It is only
  reported: run that commit's arm `now`, and rename the folder to `fitted`

The arm `plain` of experiment 029 is the same loop with the code before half turns. TASK: push, pull, pick. What was
measured is not measured again.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from uninterrupted import run_arms  # noqa: E402

ARMS: dict[str, list[str]] = {"now": []}

if __name__ == "__main__":
    run_arms(str(__doc__), ARMS, HERE, earlier=["fitted"])
