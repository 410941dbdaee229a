"""Experiment 017: why a world model, when the simulator is there? Success against real environment steps.

    python experiments/017_real_steps/run.py measure TASK [key=value ...] [--seeds 0 1 2] [--arms clone_100 ...]
    python experiments/017_real_steps/run.py report [key=value ...]     # result.json, real_steps.png

``measure`` needs loops of experiment 016 under the same run_root, at least up to their first improve_policy. Every arm
ends in a policy that acts greedily on the same evaluation states. No gate chooses among them.

- `clone_N`: an imitation of N expert demonstrations, of one list
- `simulated`: GRPO from the loop's clone, in the simulator. A round is 8 training states with 8 rollouts each, two
  epochs over them, else the settings of the loop. `simulated_12` is after twelve rounds; `simulated_24` after twelve
  more from its averaged weights, with a fresh optimizer
- `simulated_slowly_12`, `simulated_slowly_24`: the same at a third of the learning rate
- `simulated_from_successes_12`: twelve rounds, at a third of the learning rate, from the imitation of all successes

``report`` sets beside them what experiment 019 has measured in the same loops: the clone, the imitation of all
successes of v001, and GRPO from there in the world model, with true rewards (`mixed`) and shuffled ones.

TASK: push, pull, pick. What was measured is not measured again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from trust_loops import (  # noqa: E402
    configure,
    evaluate_arm,
    measure_or_report,
    open_beside,
    read_measured,
)

from worldloop.core.files import to_json, write_file  # noqa: E402
from worldloop.core.interfaces import LikelihoodPolicy, TaskSimulator  # noqa: E402
from worldloop.core.randomness import make_row_keys  # noqa: E402
from worldloop.core.statistics import estimate_over_seeds  # noqa: E402
from worldloop.core.success import Calibrations  # noqa: E402
from worldloop.core.types import ActionChunk, ChunkStep, InitialStates, Observation, Rollout  # noqa: E402
from worldloop.factory.build import build_simulator  # noqa: E402
from worldloop.rl.grpo import GrpoObjective  # noqa: E402
from worldloop.rollout.rollout import run_rollout  # noqa: E402
from worldloop.sans.imitation import EpisodeSelection  # noqa: E402
from worldloop.sans.store import SansStore  # noqa: E402
from worldloop.stages import clone_policy, improve_policy  # noqa: E402
from worldloop.stages.context import StageContext  # noqa: E402
from worldloop.stages.improvement.grpo import load_likelihood_policy  # noqa: E402
from worldloop.storage.run_state import LoopState  # noqa: E402
from worldloop.training.optimizer import Optimizer  # noqa: E402
from worldloop.training.trainer import Trainer  # noqa: E402

CLONES = {f"clone_{number}": number for number in (100, 300)}
NUM_STEPS = 900  # of imitation, as many as the loop's imitation of successes takes
ROUNDS = {"simulated": (12, 24), "simulated_slowly": (12, 24), "simulated_from_successes": (12,)}
SLOW_RATE = 2e-4
SIMULATED = ["groups_per_update=8", "group_size=8", "num_epochs=2", "ema_decay=0.9"]


def measure(task: str, seed: int, overrides: list[str], arms: Sequence[str]) -> None:
    """Write measured.json into TASK-seedN-real beside the loop."""
    changes = [*overrides, *(f"improve_policy.{change}" for change in SIMULATED)]
    config = configure(task, seed, changes)
    context, state = open_beside(config, "real", f"{task} {seed}")
    out = context.models.run_dir / "measured.json"
    measured: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"success": {}, "steps": {}}
    for name in arms:
        if name in CLONES and name not in measured["success"]:
            measured["steps"][name] = clone(CLONES[name], context, name)
            evaluate_arm(name, name, context, measured, out)
        elif name in ROUNDS:
            learn_in_simulator(name, state, context, measured, out)


def clone(number: int, context: StageContext, path: str) -> int:
    """Imitate ``number`` expert demonstrations into ``path``; returns their environment steps."""
    if "experts" not in context.store.list_versions():
        states = context.simulation.initial_states("train", max(CLONES.values()))
        episodes = context.simulation.run(
            states, block_size=10, purpose="demonstrations", iteration=0, variants=("expert",) * len(states)
        )
        context.store.snapshot("experts", [context.store.append(episodes, "experts", context.spec)])
    cloning = replace(context.config_of(clone_policy.Config), num_steps=NUM_STEPS)
    state = LoopState(dataset="experts")
    clone_policy.imitate(state, cloning, context, EpisodeSelection(max_episodes=number), path)
    cache = context.open_cache("experts")
    return sum(cache.episode(e).num_env_steps for e in range(number))


def learn_in_simulator(name: str, state: LoopState, context: StageContext, measured: dict[str, Any], out: Path) -> None:
    """GRPO whose rollouts are real, in as many parts as ``ROUNDS[name]`` has; evaluates the policy after each."""
    config = context.config_of(improve_policy.Config)
    if name != "simulated":
        config = replace(config, learning_rate=SLOW_RATE)
    origin = state.clone
    if name == "simulated_from_successes":
        origin = "checkpoints/iteration_001/policy_of_successes"
        (context.models.run_dir / origin).parent.mkdir(parents=True, exist_ok=True)
        source = context.models.run_dir.with_name(context.models.run_dir.name.replace("-real", "-cut")) / origin
        if not (context.models.run_dir / origin).exists():
            (context.models.run_dir / origin).symlink_to(source)
    start, begun, num_steps = origin, 0, 0
    for end in ROUNDS[name]:
        arm = f"{name}_{end:02d}"
        if arm not in measured["success"]:
            policy, reference = (load_likelihood_policy(path, config, context) for path in (start, origin))
            simulated = SimulatedGroups(policy, context, config.groups_per_update, config.group_size, begun)
            generators = context.setup.make_generators(context.seed, name, begun)
            objective = GrpoObjective(
                policy,
                reference.eval(),
                config,
                simulated.roll_out,
                generators,
                calibrations=Calibrations(),
                num_microbatches=context.setup.num_microbatches,
                data_parallel=context.setup.data_parallel,
                device=context.device,
            )
            optimizer = partial(
                Optimizer, learning_rate=config.learning_rate, num_steps=None, weight_decay=0.0, warmup_steps=4
            )
            trainer = Trainer(
                policy,
                optimizer,
                replace(context.setup, checkpoint_every_s=0.0),
                context.reporter,
                name=name,
                unit="round",
                first_step=begun,
                ema_decay=config.ema_decay,
            )
            context.models.save_policy(trainer.fit(objective, end - begun), arm)
            measured["steps"][arm] = num_steps + simulated.num_env_steps
            measured.setdefault("training", {})[arm] = objective.history.success
            evaluate_arm(arm, arm, context, measured, out)
        start, begun, num_steps = arm, end, measured["steps"][arm]


@dataclass
class SimulatedGroups:
    """`roll_out`: grouped rollouts of ``policy`` in the simulator, from ``num_groups`` training states each round."""

    policy: LikelihoodPolicy
    context: StageContext
    num_groups: int
    group_size: int
    first_round: int
    num_env_steps: int = 0

    @cached_property
    def simulator(self) -> TaskSimulator:
        return build_simulator(self.context.simulation.config)

    def roll_out(self, update: int, number: int) -> Rollout:
        """The rollouts of round ``update``; ``number``, that of the microbatch, is always 0."""
        first = (self.first_round + update) * self.num_groups
        states = self.context.simulation.initial_states("train", self.num_groups, first)
        keys = make_row_keys(self.num_groups * self.group_size, self.context.seed, "simulated", first)
        rollouts = []
        for row, key in enumerate(keys):
            start: InitialStates = states.select([row // self.group_size])
            rollouts.append(run_rollout(self.policy, self.simulator, start, key[None], initial_state_id=start.ids))
            self.num_env_steps += int(rollouts[-1].valid.sum())
        return join_rollouts(rollouts, torch.arange(len(keys)) // self.group_size)


def join_rollouts(rollouts: Sequence[Rollout], group_id: torch.Tensor) -> Rollout:
    """Rollouts of one row each as one; those that end before others get invalid steps."""
    num_chunks = max(len(rollout.steps) for rollout in rollouts)
    observations, chunks, steps = [], [], []
    for c in range(num_chunks):
        at = [min(c, len(rollout.steps) - 1) for rollout in rollouts]
        observations.append(Observation.cat([r.observations[i] for r, i in zip(rollouts, at, strict=True)]))
        chunks.append(ActionChunk.cat([r.chunks[i] for r, i in zip(rollouts, at, strict=True)]))
        step = ChunkStep.cat([r.steps[i] for r, i in zip(rollouts, at, strict=True)])
        runs = torch.tensor([c < len(rollout.steps) for rollout in rollouts])
        steps.append(replace(step, valid=step.valid & runs[:, None]))
    return replace(
        rollouts[0],
        group_id=group_id,
        initial_state_id=tuple(rollout.initial_state_id[0] for rollout in rollouts),
        observations=tuple(observations),
        chunks=tuple(chunks),
        steps=tuple(steps),
    )


def count_steps(task: str, seed: int, overrides: list[str]) -> dict[str, int]:
    """Environment steps behind the loop's clone and behind v001, from which its first world model learned."""
    context, _ = open_beside(configure(task, seed, overrides), "real", f"{task} {seed}")
    store = SansStore(context.models.run_dir / "sans")
    cache = store.open_cache(store.version("v001"))
    everything = [cache.episode(e).num_env_steps for e in range(len(cache))]
    experts = cache.select(source="expert").tolist()
    return {"clone": sum(everything[e] for e in experts), "v001": sum(everything)}


def report(overrides: list[str]) -> None:
    """Write result.json and real_steps.png from the loops that have been measured."""
    loops = read_measured(overrides, "cut")
    tasks = {
        task: summarise(task, seeds, loops[task], overrides) for task, seeds in read_measured(overrides, "real").items()
    }
    settings = {"rounds": ROUNDS, "simulated": SIMULATED}
    write_file(HERE / "result.json", to_json({"settings": settings, "tasks": tasks}), "result.json")
    for task, figures in tasks.items():
        for name, arm in figures["arms"].items():
            success = arm["success"]
            bounds = "" if success["low"] is None else f" ({success['low']:.3f} to {success['high']:.3f})"
            print(f"{task:<6}{name:<30}{arm['steps']:>9,} steps  {success['value']:.3f}{bounds} {arm['by_seed']}")
    plot(tasks, HERE / "real_steps.png")


def summarise(task: str, seeds: dict[int, Any], loops: dict[int, Any], overrides: list[str]) -> dict[str, Any]:
    """Of each arm the mean success over seeds, with a t-interval, and the mean number of real steps behind it."""
    entries: dict[str, dict[int, tuple[float, float]]] = {}
    for seed, measured in seeds.items():
        counted = count_steps(task, seed, overrides)
        steps = {
            "clone": counted["clone"],
            "successes": counted["v001"],
            "world_model": counted["v001"],
            "world_model_shuffled": counted["v001"],
        }
        success = {name: loops[seed]["success"].get(arm) for name, arm in LOOP_ARMS.items()}
        success |= measured["success"]
        for arm, number in measured["steps"].items():
            begun = {"clone": 0, "simulated_from": counted["v001"]}.get("_".join(arm.split("_")[:2]), counted["clone"])
            steps[arm] = number + (0 if arm in CLONES else begun)
        for arm, outcomes in success.items():
            if outcomes is not None:
                entries.setdefault(arm, {})[seed] = (steps[arm], float(np.mean(outcomes)))
    return {
        "arms": {
            arm: {
                "seeds": list(by_seed),
                "steps": round(float(np.mean([steps for steps, _ in by_seed.values()]))),
                "success": estimate_over_seeds([rate for _, rate in by_seed.values()]).to_dict(),
                "by_seed": [rate for _, rate in by_seed.values()],
            }
            for arm, by_seed in entries.items()
        },
        "training": {seed: measured.get("training", {}) for seed, measured in seeds.items()},
    }


LOOP_ARMS = {
    "clone": "clone",
    "successes": "start",
    "world_model": "mixed",
    "world_model_shuffled": "mixed_shuffled",
}
LINES = {
    "demonstrations": ("clone", "clone_100", "clone_300"),
    "GRPO in the simulator": ("clone", "simulated_12", "simulated_24"),
    "GRPO in the simulator, slowly": ("clone", "simulated_slowly_12", "simulated_slowly_24"),
    "imitation of successes, then GRPO in the simulator": ("successes", "simulated_from_successes_12"),
    "imitation of successes, then GRPO in the world model": ("successes", "world_model"),
    "the same, rewards shuffled": ("successes", "world_model_shuffled"),
}


def plot(tasks: dict[str, Any], path: Path) -> None:
    """Success against real environment steps, a line for each way to get there and a dot for each seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(tasks), figsize=(8 * len(tasks), 4.5), squeeze=False)
    for axis, (task, figures) in zip(axes[0], tasks.items(), strict=True):
        for (label, names), marker in zip(LINES.items(), "sopdv^", strict=True):
            arms = [figures["arms"][name] for name in names if name in figures["arms"]]
            if len(arms) < 2:
                continue  # not measured
            (line,) = axis.plot(
                [a["steps"] for a in arms], [a["success"]["value"] for a in arms], marker=marker, label=label
            )
            for arm in arms[1:]:
                axis.plot([arm["steps"]] * len(arm["by_seed"]), arm["by_seed"], ".", color=line.get_color(), ms=4)
        axis.set(title=task, xscale="log", xlabel="real environment steps", ylim=(0, 1.02))
        axis.legend(loc="lower right", fontsize=8)
    axes[0][0].set_ylabel("success, 200 evaluation states")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    measure_or_report(str(__doc__), measure, report, arms=[*CLONES, *ROUNDS])
