"""Experiment 014: does PPO of stable-baselines3 learn in a fitted world model, and does what it learns hold outside?

    python experiments/014_ppo/run.py train RUN OUT [--seed N] [--frames N]    # RUN: of the toy, one task and camera
    python experiments/014_ppo/run.py report OUT ...                           # result.json, success.png

``train`` lets PPO, from random weights, act in ``gymnasium.make_vec("worldloop/WorldModel-v0", checkpoint=RUN)``, with
its sparse reward. Before, in between and after, its most likely actions are tried in the world model, from its starts,
and in the simulator of the run, from the first of its evaluation states. One thread.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))  # the adapter, which is an outsider's

from sb3_adapter import WorldModelVecEnv  # noqa: E402
from stable_baselines3 import PPO  # noqa: E402
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor  # noqa: E402

from worldloop.core.statistics import Rate  # noqa: E402
from worldloop.envs.make import make_vector_env  # noqa: E402
from worldloop.envs.spaces import Obs, flatten_observation  # noqa: E402
from worldloop.factory.build import build_simulator  # noqa: E402
from worldloop.play.make import find_simulator  # noqa: E402
from worldloop.storage.run_directory import RunDirectory  # noqa: E402

NUM_ENVS, NUM_STEPS = 64, 32
NUM_IMAGINED, NUM_SIMULATED = 256, 100  # episodes by which a policy is judged
PARTS = 6  # of the training, after each of which the policy is judged
SETTINGS: dict[str, Any] = {"batch_size": 256, "learning_rate": 1e-3, "n_epochs": 6, "gamma": 0.95, "ent_coef": 0.003}


class Features(BaseFeaturesExtractor):
    """The frame through two convolutions, since stable-baselines3's own wants 36 pixels, beside proprio."""

    def __init__(self, observation_space: Any) -> None:
        super().__init__(observation_space, 64 + observation_space["proprio"].shape[0])
        size = observation_space["image"].shape[1]  # stable-baselines3 has put channels first
        self.image = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(),
            nn.Linear(16 * (size // 4) ** 2, 64), nn.ReLU(),
        )  # fmt: skip

    def forward(self, observations: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([self.image(observations["image"]), observations["proprio"]], 1)


def act(model: PPO, obs: Obs) -> np.ndarray:
    """The most likely actions f32 [B, s, A]."""
    actions, _ = model.predict(obs, deterministic=True)  # type: ignore[arg-type]
    return np.asarray(actions, dtype=np.float32)


def try_in_world_model(model: PPO, run: Path) -> np.ndarray:
    """Success of the first episode of each row, bool [NUM_IMAGINED]."""
    env = make_vector_env(run, NUM_IMAGINED, autoreset_mode="Disabled", device="cpu")
    observation, _ = env.reset(seed=1)
    ended = success = np.zeros(NUM_IMAGINED, dtype=bool)
    while not ended.all():
        observation, _, terminated, truncated, _ = env.step(act(model, observation))
        success, ended = success | (terminated & ~ended), ended | terminated | truncated
        if ended.any() and not ended.all():  # the environment wants ended rows reset; they are looked at no more
            env.reset(options={"reset_mask": ended})
    env.close()
    return success


def try_in_simulator(model: PPO, run: Path) -> np.ndarray:
    """Success from the first evaluation states, bool [NUM_SIMULATED]."""
    config = find_simulator(run)
    assert config is not None
    simulator = build_simulator(config)
    states = RunDirectory(run).read_initial_states("evaluation", simulator.spec.task_ids[0])
    assert states is not None
    success: list[bool] = []
    for first in range(0, NUM_SIMULATED, simulator.num_envs):
        block = states.select(range(first, min(first + simulator.num_envs, NUM_SIMULATED)))
        observation, ended = simulator.reset(block), torch.zeros(len(block), dtype=torch.bool)
        solved = torch.zeros(len(block), dtype=torch.bool)
        while not ended.all():
            actions = act(model, flatten_observation(observation, simulator.spec))
            step = simulator.step_chunk(torch.from_numpy(actions))
            solved |= step.success.any(1)
            observation, ended = step.observation, step.terminated | step.truncated
        success += solved.tolist()
    simulator.close()
    return np.array(success)


def train(run: Path, out: Path, seed: int, num_frames: int) -> None:
    torch.set_num_threads(1)
    env = WorldModelVecEnv(make_vector_env(run, NUM_ENVS, autoreset_mode="SameStep", device="cpu"))
    env.seed(seed)
    features = {"features_extractor_class": Features}
    model = PPO("MultiInputPolicy", env, n_steps=NUM_STEPS, seed=seed, device="cpu", policy_kwargs=features, **SETTINGS)
    judged, began = [], time.perf_counter()
    for part in range(PARTS + 1):
        if part:
            model.learn(num_frames // PARTS, reset_num_timesteps=False)
        entry = {
            "frames": model.num_timesteps,
            "imagined": Rate.of(try_in_world_model(model, run)).to_dict(),
            "simulated": Rate.of(try_in_simulator(model, run)).to_dict(),
        }
        print(entry, flush=True)
        judged.append(entry)
    alignment = RunDirectory(run).read_results()["iterations"][1]["reward_alignment"]["on_policy"]
    result = {
        "schema_version": 1,
        "seed": seed,
        "settings": {**SETTINGS, "num_envs": NUM_ENVS, "num_steps": NUM_STEPS},
        "world_model": {key: alignment[key] for key in ("auc", "balanced_accuracy", "n")},
        "seconds": round(time.perf_counter() - began, 1),
        "judged": judged,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n")


def report(outs: list[Path]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    results = [json.loads((out / "result.json").read_text()) for out in outs]
    figure, axes = plt.subplots(figsize=(5, 3), layout="tight")
    for result in results:
        for name, colour in (("imagined", "#c05a2e"), ("simulated", "#2563a8")):
            points = [(entry["frames"] / 1000, entry[name]["rate"]) for entry in result["judged"]]
            axes.plot(*zip(*points, strict=True), color=colour, label=name if result is results[0] else None)
    axes.set(xlabel="frames of the world model, thousands", ylabel="success", ylim=(0, 1))
    axes.legend(frameon=False)
    figure.savefig(HERE / "success.png", dpi=120)
    (HERE / "result.json").write_text(json.dumps({"schema_version": 1, "runs": results}, indent=1) + "\n")
    for result in results:
        print(result["seed"], result["judged"][0], result["judged"][-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("train")
    command.add_argument("run", type=Path)
    command.add_argument("out", type=Path)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--frames", type=int, default=150_000)
    commands.add_parser("report").add_argument("outs", type=Path, nargs="+")
    given = parser.parse_args()
    if given.command == "train":
        train(given.run, given.out, given.seed, given.frames)
    else:
        report(given.outs)


if __name__ == "__main__":
    main()
