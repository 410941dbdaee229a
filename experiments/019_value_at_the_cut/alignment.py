"""Experiment 019, second part: does the value of an imagined end know which of two branches really goes better?

    python experiments/019_value_at_the_cut/alignment.py measure TASK [key=value ...] [--seeds 0 1 2] [--arms start ...]
                                                                 [--chunks 4 2 1]
    python experiments/019_value_at_the_cut/alignment.py report [key=value ...]      # result_alignment.json

``measure`` needs what `run.py measure` left. From states in the middle of held-out episodes each policy takes four
sampled branches of so many chunks in the world model. The simulator repeats each branch from the same state, and the
policy goes on greedily to the end of the episode: that is the truth. Compared are pairs of branches from one state:

- `no value`: the return without critics, so what the success head says by itself
- `categorical`, `viva`: the return with these critics, `1 + value` of the last imagined state of a branch that is cut
- `categorical, true end` and so on: the same critics on the simulator's own last state: the ceiling of pictures
- `true success`: whether the simulator's branch has succeeded when it is cut

ARMS: `start`, or the arms of run.py. What was measured is not measured again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent))
from run import ARMS, BRANCHES, begin, fit_critics, open_arm  # noqa: E402
from trust_loops import measure_or_report, read_measured  # noqa: E402

from worldloop.core.files import to_json, write_file  # noqa: E402
from worldloop.core.interfaces import Actor, Simulator  # noqa: E402
from worldloop.core.statistics import estimate_over_seeds, estimate_within_group_auc  # noqa: E402
from worldloop.core.success import Calibrations  # noqa: E402
from worldloop.core.types import ActionChunk, Observation, Rollout  # noqa: E402
from worldloop.factory.build import build_simulator  # noqa: E402
from worldloop.rl.reward_context import RewardContext  # noqa: E402
from worldloop.rl.rewards import score_rollout  # noqa: E402
from worldloop.rollout.groups import GroupedImagination, GroupSettings  # noqa: E402
from worldloop.rollout.rollout import count_chunks, run_rollout  # noqa: E402
from worldloop.training.resume import TrainingSetup  # noqa: E402
from worldloop.value.critic import value_as_return  # noqa: E402

NUM_STATES, GROUP_SIZE = 60, 4
CHUNKS = ("4", "2", "1")
KINDS = ("categorical", "viva")


class BranchThenPolicy:
    """An `Actor` that repeats ``actions`` [c, H, A], one chunk after the other, and then does as ``policy`` does."""

    def __init__(self, actions: Tensor, policy: Actor) -> None:
        self.version, self.policy, self.num_done, self.actions = policy.version, policy, 0, actions

    def act(self, observation: Observation, noise_key: Tensor | None) -> ActionChunk:
        self.num_done += 1
        if self.num_done <= len(self.actions):
            return ActionChunk(self.actions[self.num_done - 1][None], policy_version=self.version)
        return self.policy.act(observation, None)


def measure(task: str, seed: int, overrides: list[str], arms: Sequence[str], chunks: Sequence[str]) -> None:
    """Write alignment.json into TASK-seedN-cut beside the loop."""
    state = begin(task, seed, overrides)
    for name, num_chunks in product(arms, chunks):
        label = f"{name}, {num_chunks} chunks"
        context, _ = open_arm(task, seed, overrides, "", BRANCHES)
        out = context.models.run_dir / "alignment.json"
        measured: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
        path = state.start if name == "start" else f"checkpoints/iteration_001/policy_after_028-{name}"
        if label in measured or not context.models.has(path):
            continue
        policy = context.models.load_policy(path).eval()
        world_model = context.models.load_world_model(state.world_model).for_imagination()
        calibrations, key = state.calibrations or Calibrations(), (seed, "alignment")
        settings = GroupSettings(
            num_groups=NUM_STATES,
            tasks=context.spec.task_ids,
            group_size=GROUP_SIZE,
            mid_episode_share=1.0,
            imagination_horizon=int(num_chunks),
            truncates_uncertain=False,
            max_imagination_batch=0,
            key=key,
        )
        setup = TrainingSetup()
        dataset = context.open_clips("v001", "validation")
        imagine = GroupedImagination(
            policy, world_model, calibrations, dataset, settings, setup, setup.make_generators(*key)
        )
        rollout = imagine.imagine(0, 0)
        simulator = build_simulator(context.simulation.config)
        places = torch.tensor([[int(part) for part in name.split("/")] for name in rollout.initial_state_id])
        cut, truth, ended = repeat(rollout, dataset.observation(places), policy, simulator)
        judging = RewardContext(context.spec, calibrations)
        scores = {"no value": score_rollout(rollout, {"success": 1.0}, judging)[0], "true success": cut.float()}
        for kind in KINDS:
            critics_context, _ = open_arm(task, seed, overrides, kind, BRANCHES)
            critics = [context.models.load_critic(p) for p in fit_critics(kind, state, critics_context, {}).critics]
            expected = value_as_return(critics, rollout.steps[-1].observation)
            scores[kind] = score_rollout(rollout, {"success": 1.0}, replace(judging, last_value=expected))[0]
            seen = value_as_return(critics, Observation.cat(ended))
            scores[f"{kind}, true end"] = torch.where(cut, 1.0, seen)
        measured[label] = {"success": float(truth.float().mean())}
        for score_name, score in scores.items():
            within = estimate_within_group_auc(score.double().numpy(), truth.numpy(), rollout.group_id.numpy())
            measured[label][score_name] = within and within.to_dict(with_n=True)
        write_file(out, to_json(measured), out.name)
        print(task, seed, label, json.dumps(measured[label]), flush=True)


def repeat(
    rollout: Rollout, start: Observation, policy: Actor, simulator: Simulator
) -> tuple[Tensor, Tensor, list[Observation]]:
    """Each imagined row in the simulator, from ``start`` of B rows, which has the simulator's state.

    Returns success when it is cut, bool [B], success at the end, bool [B], and the B true observations at the cut.
    """
    actions = torch.stack([chunk.actions for chunk in rollout.chunks], dim=1)
    num_chunks = count_chunks(rollout)  # after an imagined success the policy goes on from what is true
    cut, truth, ended = [], [], []
    for row in range(len(start)):
        real = run_rollout(
            BranchThenPolicy(actions[row, : num_chunks[row]], policy),
            simulator,
            start.rows([row]),
            None,
            initial_state_id=(rollout.initial_state_id[row],),
        )
        solved = [bool((step.success & step.valid).any()) for step in real.steps]
        last = min(int(num_chunks[row]), len(real.steps)) - 1
        cut.append(any(solved[: last + 1]))
        truth.append(any(solved))
        ended.append(replace(real.steps[last].observation, sim_state=None))
    return torch.tensor(cut), torch.tensor(truth), ended


def report(overrides: list[str]) -> None:
    """Write result_alignment.json from the loops that have been measured."""
    measured = read_measured(overrides, "cut", "alignment.json")
    tasks: dict[str, Any] = {task: {"seeds": seeds, "arms": summarise(seeds)} for task, seeds in measured.items()}
    write_file(HERE / "result_alignment.json", to_json({"tasks": tasks}), "result_alignment.json")
    for task, figures in tasks.items():
        for name, arm in figures["arms"].items():
            for score, figure in arm.items():
                bounds = "" if figure["low"] is None else f" ({figure['low']:.2f} to {figure['high']:.2f})"
                print(f"{task} {name:<26} {score:<22} {figure['value']:.3f}{bounds} {figure['by_seed']}")


def summarise(seeds: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Of each policy and score the AUC within groups, with a t-interval over seeds."""
    arms: dict[str, Any] = {}
    for label in (f"{name}, {num_chunks} chunks" for name, num_chunks in product(("start", *ARMS), CHUNKS)):
        done = [m[label] for m in seeds.values() if label in m]
        for score in done[0] if done else ():
            values = [m[score]["value"] for m in done if isinstance(m[score], dict)]
            if values:
                arms.setdefault(label, {})[score] = estimate_over_seeds(values).to_dict() | {"by_seed": values}
    return arms


if __name__ == "__main__":
    measure_or_report(str(__doc__), measure, report, arms=("start", *ARMS), chunks=CHUNKS)
