"""Experiment 023: does EVA's alignment make plans that a robot executes better?

    python experiments/023_alignment/run.py measure TASK [key=value ...] [--seeds 0 1 2] [--arms flow_grpo ...]
    python experiments/023_alignment/run.py report [key=value ...]      # result.json, alignment.png, plans.png

``measure`` needs the arm `planner` of experiment 022 under the same run_root. Every arm aligns that planner, by the
loop's own stage, and keeps the result whatever the stage decides. Then its policy acts on the evaluation states.

- `none`: the planner before alignment
- `flow_grpo`, `nft`, `pathwise`: the algorithms, by the reward of the first inverse dynamics model
- `flow_grpo_10`: a third of the updates
- `shuffled`: flow_grpo with the rewards permuted over all videos; `no_guard`: pathwise without the guard against
  standing still; `no_jerk`: flow_grpo without the term of jerk
- `smoothed`: the planner before alignment, but every executed action is the mean of the latest five

Figures, by the inverse dynamics model that only judges: violations, the terms of the penalty for limits that are
broken; the penalty of plans over that of real video; the length of their path. And PSNR, success, and the tracking
error: the distance in the simulator between the tool in the plan and the tool after its execution. The judge reads the
former from the plan's frame; what it misreads counts as well.

TASK: push, pull, pick. What was measured is not measured again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from trust_loops import (  # noqa: E402
    begin_arm,
    compare_arms,
    configure,
    keep,
    measure_or_report,
    open_beside,
    plot_success,
    print_arms,
    read_measured,
)

from worldloop.core.files import to_json, write_file  # noqa: E402
from worldloop.core.statistics import estimate_over_seeds  # noqa: E402
from worldloop.core.types import ActionChunk, Episode, Observation  # noqa: E402
from worldloop.evaluation.plans import find_successes, plan_successes  # noqa: E402
from worldloop.executability.inverse_dynamics import InverseDynamics  # noqa: E402
from worldloop.factory.build import build_simulator  # noqa: E402
from worldloop.policies.planner.policy import PlannerPolicy  # noqa: E402
from worldloop.rollout.rollout import rollout_to_episodes, run_rollout  # noqa: E402
from worldloop.stages import align_world_model, evaluate_policy, fit_inverse_dynamics  # noqa: E402
from worldloop.stages.context import StageContext  # noqa: E402
from worldloop.storage.run_state import LoopState  # noqa: E402
from worldloop.world_model.planner import VideoPlanner  # noqa: E402

ARMS: dict[str, list[str]] = {
    "none": [],
    "flow_grpo": [],
    "flow_grpo_10": ["num_updates=10"],
    "nft": ["algorithm=nft"],
    "pathwise": ["algorithm=pathwise"],
    "shuffled": ["shuffle_rewards=true"],
    "no_guard": ["algorithm=pathwise", "guard=false"],
    "no_jerk": ["reward.jerk=0"],
    "smoothed": [],
}
WINDOW = 5  # actions that are averaged in `smoothed`
NUM_FRAMES, NUM_DRAWN = 6, 3  # of each video in plans.png, and videos
COMMON = [
    "fit_inverse_dynamics.enabled=true",
    "fit_planner.enabled=true",
    "align_world_model.enabled=true",
    "align_world_model.gate=false",
]
NAME = "alignment_eva.json"
PLANNER = "checkpoints/iteration_001/planner-planner"


def measure(task: str, seed: int, overrides: list[str], arms: Sequence[str]) -> None:
    """Write alignment_eva.json into TASK-seedN-idm, the folder of experiments 021 and 022."""
    for name in arms:
        changes = [*COMMON, *(f"align_world_model.{change}" for change in ARMS[name]), *overrides]
        context, state = open_beside(configure(task, seed, changes), "idm", f"{task} {seed} {name}")
        out = context.models.run_dir / NAME
        measured: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"success": {}, "arms": {}}
        if name in measured["success"]:
            continue
        if not context.models.has(PLANNER):
            raise SystemExit(f"{context.models.run_dir} has no planner: run experiment 022 first")
        begin_arm(context.models.run_dir, name)
        config = context.config_of(fit_inverse_dynamics.Config)
        state = replace(fit_inverse_dynamics.run(state, config, context), planner=PLANNER)
        path = PLANNER if name in ("none", "smoothed") else align(name, state, context, measured)
        judge = context.models.load_inverse_dynamics(state.inverse_dynamics_judge)
        policy = context.models.load_policy(path)
        assert isinstance(policy, PlannerPolicy)
        assert isinstance(policy.planner, VideoPlanner)
        settings = context.config_of(align_world_model.Config)
        judged = align_world_model.judge_planner(policy.planner, judge, state, settings, context)
        assert judged is not None
        num_states = context.config_of(evaluate_policy.Config).num_states
        if name == "smoothed":
            episodes = act_in_simulator(Smoothed(policy), num_states, context)
        else:
            episodes = context.simulation.run(
                context.simulation.initial_states("evaluation", num_states),
                block_size=10,
                purpose="evaluate/evaluation",
                iteration=1,
                policy=path,
            )
        measured["success"][name] = [episode.is_success for episode in episodes]
        tracking = measure_tracking(policy, judge, episodes)
        figures = {"plans": judged.to_dict()} | {f"{kind}_mm": value for kind, value in tracking.items()}
        measured["arms"].setdefault(name, {}).update(figures)
        write_file(out, to_json(measured), out.name)
        print(task, seed, name, np.mean(measured["success"][name]), judged, tracking, flush=True)


def align(name: str, state: LoopState, context: StageContext, measured: dict[str, Any]) -> str:
    """Run the stage; returns the path of the aligned planner's policy, whether the gate would keep it or not."""
    path = f"checkpoints/iteration_001/planner-{name}"
    if context.models.has(path):
        return path
    ended = align_world_model.run(state, context.config_of(align_world_model.Config), context)
    record = ended.records[1]["alignment"]
    measured["arms"].setdefault(name, {})["stage"] = {key: record[key] for key in ("accepted", "reason")}
    return keep(context.models.run_dir, ended.planner, path)


class Smoothed:
    """Acts as ``policy`` does, with each action the mean of the latest `WINDOW` ones."""

    def __init__(self, policy: PlannerPolicy) -> None:
        self.policy, self.version = policy, f"{policy.version}/smoothed"
        self.before: Tensor | None = None

    def act(self, observation: Observation, noise_key: Tensor | None) -> ActionChunk:
        chunk = self.policy.act(observation, noise_key)
        is_first = self.before is None or int(observation.env_step[0]) == 0
        before = chunk.actions[:, :1].expand(-1, WINDOW - 1, -1) if is_first else self.before
        assert before is not None
        actions = torch.cat([before, chunk.actions], dim=1)
        self.before = actions[:, 1 - WINDOW :]
        return replace(chunk, actions=actions.unfold(1, WINDOW, 1).mean(-1))


def act_in_simulator(actor: Smoothed, num_states: int, context: StageContext) -> list[Episode]:
    """Greedy episodes of ``actor`` on the evaluation states, in this process."""
    simulator = build_simulator(context.simulation.config)
    states = context.simulation.initial_states("evaluation", num_states)
    episodes: list[Episode] = []
    for row in range(num_states):
        start = states.select([row])
        rollout = run_rollout(actor, simulator, start, None, initial_state_id=start.ids)
        episodes += rollout_to_episodes(
            rollout,
            simulator.spec,
            sources=("policy",),
            variants=("policy",),
            splits=(start.split,),
            iteration=1,
        )
    return episodes


@torch.no_grad()
def measure_tracking(policy: PlannerPolicy, judge: InverseDynamics, episodes: Sequence[Episode]) -> dict[str, float]:
    """Mean distances in mm, over all frame steps of ``episodes``.

    - ``tracking``: between the tool in the planned frame and the tool after its execution
    - ``reading``: between the tool in the frame after the execution and the tool then, what the judge misreads; the
      least that ``tracking`` can be expected to be
    - ``moved``: between the tool before and after the execution, what a plan that stands still would have
    """
    names = judge.spec.robot.proprio_names
    columns = [names.index(name) for name in ("tcp_x", "tcp_y", "tcp_z")]
    distances: dict[str, list[Tensor]] = {"tracking": [], "reading": [], "moved": []}
    for episode in episodes:
        seen = observe_all(episode)
        plan = policy.planner.plan(seen, None, 1)
        after = {camera: torch.from_numpy(episode.frames[camera][1:, None]) for camera in plan}
        planned, read = (
            judge.infer_frames(
                {camera: torch.cat([seen.frames[camera][:, -2:], frames[camera]], dim=1) for camera in frames}
            ).proprio[:, -1, columns]
            for frames in (plan, after)
        )
        before, real = (torch.from_numpy(episode.proprio[rows][:, columns]) for rows in (slice(0, -1), slice(1, None)))
        distances["tracking"].append((planned - real).norm(dim=1))
        distances["reading"].append((read - real).norm(dim=1))
        distances["moved"].append((before - real).norm(dim=1))
    return {name: 1000 * float(torch.cat(values).mean()) for name, values in distances.items()}


def observe_all(episode: Episode) -> Observation:
    """What the policy saw before each frame step of ``episode``."""
    F = episode.num_frame_steps
    now = np.arange(F)
    rows = np.stack([np.zeros_like(now), np.maximum(now - 1, 0), now], axis=1)
    return Observation(
        frames={camera: torch.from_numpy(frames[rows]) for camera, frames in episode.frames.items()},
        proprio=torch.from_numpy(episode.proprio[:-1]),
        task=(episode.meta.task,) * F,
        instruction=(episode.meta.instruction,) * F,
        env_step=torch.from_numpy(now * episode.meta.actions_per_frame),
    )


def report(overrides: list[str]) -> None:
    """Write result.json, alignment.png and plans.png from the loops that have been measured."""
    tasks: dict[str, Any] = {}
    for task, seeds in read_measured(overrides, "idm", NAME).items():
        arms = compare_arms(seeds, list(ARMS), "none")
        for name, arm in arms.items():
            arm |= summarise(name, seeds) | {"violations_over_none": compare_violations(name, seeds)}
        tasks[task] = {"arms": arms, "seeds": {seed: measured["arms"] for seed, measured in seeds.items()}}
        print_arms(task, arms, "none")
        for name, arm in arms.items():
            print(f"{task} {name:<12}", {figure: arm[figure]["by_seed"] for figure in FIGURES})
    if not tasks:
        raise SystemExit("nothing has been measured yet")
    write_file(HERE / "result.json", to_json({"arms": ARMS, "tasks": tasks}), "result.json")
    plot_success(tasks, HERE / "alignment.png")
    task, figures = next(iter(tasks.items()))
    draw_plans(task, next(seed for seed, arms in figures["seeds"].items() if "flow_grpo" in arms), overrides)


def draw_plans(task: str, seed: int, overrides: list[str]) -> None:
    """Draw the last held-out successes: the real video, the plan from its start, and the plan after `flow_grpo`."""
    context, state = open_beside(configure(task, seed, overrides), "idm", f"{task} {seed}")
    episodes = find_successes(context.open_cache(state.dataset), NUM_FRAMES, NUM_DRAWN)
    rows = []
    for path in (PLANNER, "checkpoints/iteration_001/planner-flow_grpo"):
        policy = context.models.load_policy(path)
        assert isinstance(policy, PlannerPolicy)
        videos = plan_successes(policy.planner, episodes, NUM_FRAMES, torch.arange(len(episodes)))
        rows.append(next(iter(videos.planned.values())))
    rows.insert(0, next(iter(videos.real.values())))
    strips = [torch.cat(list(video[episode]), dim=1) for episode in range(len(episodes)) for video in rows]
    Image.fromarray(torch.cat(strips).numpy()).save(HERE / "plans.png")


FIGURES = ("penalty_ratio", "path_ratio", "psnr_db", "tracking_mm", "reading_mm", "moved_mm")


def summarise(name: str, seeds: Mapping[int, Any]) -> dict[str, Any]:
    """Of one arm each of `FIGURES` over seeds."""
    entries = [measured["arms"][name] for measured in seeds.values() if name in measured["success"]]
    values = {
        figure: [e["plans"][figure]["value"] if figure in e["plans"] else e[figure] for e in entries]
        for figure in FIGURES
    }
    values["violations"] = [sum_violations(entry, "planned") for entry in entries]
    values["violations_of_real_video"] = [sum_violations(entry, "real") for entry in entries]
    return {figure: estimate_over_seeds(own).to_dict() | {"by_seed": own} for figure, own in values.items()}


def sum_violations(entry: dict[str, Any], kind: str) -> float:
    """The penalty's terms of velocity and acceleration beyond their limits, by the judge."""
    terms = entry["plans"]["terms"]
    return float(sum(terms[name][kind] for name in ("velocity_limit", "acceleration_limit")))


def compare_violations(name: str, seeds: Mapping[int, Any]) -> dict[str, Any]:
    """Violations of ``name`` over those of `none`: geometric mean over seeds, with a t-interval of its logarithm."""
    pairs = [m["arms"] for m in seeds.values() if {name, "none"} <= set(m["success"])]
    ratios = [sum_violations(arms[name], "planned") / sum_violations(arms["none"], "planned") for arms in pairs]
    logarithm = estimate_over_seeds(np.log(ratios).tolist()).to_dict()
    bounds = {key: None if value is None else float(np.exp(value)) for key, value in logarithm.items()}
    return bounds | {"by_seed": ratios}


if __name__ == "__main__":
    measure_or_report(str(__doc__), measure, report, arms=list(ARMS))
