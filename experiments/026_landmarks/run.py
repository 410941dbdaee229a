"""Experiment 026: does a world model that carries on where the cube is stay right as the policy learns in it?

    python experiments/026_landmarks/run.py measure TASK [key=value ...] [--seeds 0 1 2] [--arms landmarks ...]
    python experiments/026_landmarks/run.py report [key=value ...]      # result.json, landmarks.png

``measure`` is one iteration of the loops of experiment 016 for each arm. All arms of a seed share iteration 0, under
run_root, and are forked to run_root/ARM. What was begun goes on. After it has ended, its last candidate and the policy
with which the improvement began act in the loop's last world model, from 60 fresh validation states, eight times each,
and the simulator replays their actions.

- `pictures`: the world model of experiment 016
- `landmarks`: it carries on where the cube is (`world_model.landmarks`)
- `rounds`: with four proprio heads (`world_model.num_members`); after every seven updates 120 rollouts from training
  states are replayed and the world model is fitted further to them, three times

TASK: push, pull, pick.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from judged_loops import ROUNDS, run_arms  # noqa: E402

ARMS = {
    "pictures": ["world_model.landmarks=false", "world_model.num_members=1"],
    "landmarks": ["world_model.landmarks=true", "world_model.num_members=1"],
    "rounds": ROUNDS,
}


if __name__ == "__main__":
    run_arms(str(__doc__), ARMS, HERE, "landmarks.png")
