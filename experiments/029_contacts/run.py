"""Experiment 029: does a world model that has seen more contacts let a policy gain?

    python experiments/029_contacts/run.py measure TASK [key=value ...] [--seeds 0 1 2] [--arms plain noisy]
    python experiments/029_contacts/run.py report [key=value ...]      # result.json, contacts.png

A loop up to its first world model, then one uninterrupted run of GRPO in that model, from the clone.

- `before`: as `plain`, with the code of commit b0993b7, which predicted objects from all of proprio; only reported
- `plain`: the world model learns from what the loop has collected
- `noisy`: and from 500 noisy replays of the policy's training episodes

TASK: push, pull, pick. What was measured is not measured again.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from uninterrupted import run_arms  # noqa: E402

ARMS: dict[str, list[str]] = {"plain": [], "noisy": ["collect_episodes.num_noisy_replays=500"]}

if __name__ == "__main__":
    run_arms(str(__doc__), ARMS, HERE, earlier=["before"])
