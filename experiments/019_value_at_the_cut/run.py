"""Experiment 019: what should an imagined rollout be worth that is cut off before its end?

    python experiments/019_value_at_the_cut/run.py measure TASK [key=value ...] [--seeds 0 1 2] [--arms mixed ...]
    python experiments/019_value_at_the_cut/run.py report [key=value ...]      # result.json, value_at_the_cut.png

``measure`` needs loops of experiment 016 under the same run_root, at least up to their first improve_policy. Per seed
it imitates all successes of dataset v001, and sets the threshold of success by a check in the closed loop. From there
every arm goes on for 28 updates, in the same world model. Its policy, unseen by any gate, acts greedily on the
evaluation states. Every arm may imagine the same number of frames per update (groups x chunks = 240, eight rollouts a
group).

- `mixed`: six chunks, a quarter of the groups from the middle of real episodes: the default of today. What has not
  succeeded when it is cut off counts by the success head alone, and groups without a declared success are dropped
- `mixed_shuffled`: the same, with the returns permuted over all rows: nothing can be learned from the reward
- `mixed_all`: as `mixed`, with groups that declare no success; `mixed_KIND`: and critics of that kind value the last
  state
- `mixed_shaped`: as `mixed`, and ViVa's value shapes the reward of every chunk (`improve_policy.shapes_by_value`)
- `branches_all`: as `mixed_all`, but four chunks, and all groups from the middle of real episodes of the policy;
  `branches_KIND`: and critics of that kind value the last state
- `shuffled_KIND`: as `branches_KIND`, with the returns permuted over all rows: nothing can be learned from the reward

So what critics are worth is `mixed_KIND` minus `mixed_all`, and `branches_KIND` minus `branches_all`.
What shaping is worth is `mixed_shaped` minus `mixed`.

KIND: categorical, success, viva. TASK: push, pull, pick. What was measured is not measured again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from common import run_stage  # noqa: E402
from trust_loops import (  # noqa: E402
    begin_arm,
    compare_arms,
    configure,
    evaluate_arm,
    keep,
    measure_or_report,
    open_beside,
    plot_success,
    print_arms,
    read_measured,
)

from worldloop.core.files import to_json, write_file  # noqa: E402
from worldloop.stages.context import StageContext  # noqa: E402
from worldloop.storage.run_state import LoopState  # noqa: E402

MIXED = ["groups_per_update=40", "imagination_horizon=6", "mid_episode_share=0.25"]
BRANCHES = ["groups_per_update=60", "imagination_horizon=4", "mid_episode_share=1.0"]
ALL = "require_success=false"  # a group without a success still has values to compare
KINDS = {
    "categorical": ["value.kind=categorical"],
    "success": ["value.kind=success", "value.target=outcome"],
    "viva": ["value.kind=viva", "fit_value.num_steps=400"],
}
ARMS: dict[str, tuple[str, list[str]]] = {
    "mixed": ("", MIXED),
    "mixed_shuffled": ("", [*MIXED, "shuffle_rewards=true"]),
    "mixed_all": ("", [*MIXED, ALL]),
    "mixed_shaped": ("viva", [*MIXED, "shapes_by_value=true"]),
    "branches_all": ("", [*BRANCHES, ALL]),
} | {
    f"{name}_{kind}": (kind, [*settings, ALL, "bootstraps=true"])
    for kind in KINDS
    for name, settings in (("mixed", MIXED), ("branches", BRANCHES), ("shuffled", [*BRANCHES, "shuffle_rewards=true"]))
}
COMMON = ["improve_policy.num_candidates=1", "check_closed_loop.num_states=16"]


def open_arm(
    task: str, seed: int, overrides: list[str], kind: str, improvement: Sequence[str]
) -> tuple[StageContext, LoopState]:
    """What stages work with for the critics ``kind`` and the settings ``improvement``, and the loop's state."""
    changes = [*COMMON, *KINDS.get(kind, []), *(f"improve_policy.{change}" for change in improvement), *overrides]
    return open_beside(configure(task, seed, changes), "cut", f"{task} {seed}")


def begin(task: str, seed: int, overrides: list[str]) -> LoopState:
    """The state from which every arm goes on: its start is the imitation of all successes."""
    context, state = open_arm(task, seed, overrides, "", MIXED)
    stored = context.models.run_dir / "begun.json"
    if stored.exists():
        return LoopState.from_dict(json.loads(stored.read_text()))
    state = run_stage("improve_policy", state, context)
    state = run_stage("check_closed_loop", state, context)
    state = replace(state, dataset="v001", trust={})  # the arms learn from the same episodes, and none is held back
    write_file(stored, to_json(state.to_dict()), stored.name)
    return state


def measure(task: str, seed: int, overrides: list[str], arms: Sequence[str]) -> None:
    """Write measured.json into TASK-seedN-cut beside the loop."""
    state = begin(task, seed, overrides)
    out = open_arm(task, seed, overrides, "", MIXED)[0].models.run_dir / "measured.json"
    measured: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"success": {}, "imagined": {}}
    for name in ("clone", "start", *arms):
        if name in measured["success"]:
            continue
        kind, improvement = ARMS.get(name, ("", MIXED))
        context, _ = open_arm(task, seed, overrides, kind, improvement)
        begin_arm(out.parent, name)
        path = {"clone": state.clone, "start": state.start}.get(name, "")
        if not path:
            ended = fit_critics(kind, state, context, measured) if kind else state
            write_file(out, to_json(measured), out.name)
            ended = run_stage("improve_policy", ended, context)
            measured["imagined"][name] = ended.records[1]["imagined_success_in_training"]
            path = keep(out.parent, ended.newest, f"{ended.newest}-{name}")
        evaluate_arm(name, path, context, measured, out)


def fit_critics(kind: str, state: LoopState, context: StageContext, measured: dict[str, Any]) -> LoopState:
    """``state`` with critics of ``kind``, which the arms of that kind share."""
    run_dir = context.models.run_dir
    paths = tuple(f"checkpoints/iteration_001/critic_{kind}_{fold}" for fold in range(2))
    if not all(context.models.has(path) for path in paths):
        fitted = run_stage("check_value", run_stage("fit_value", state, context), context)
        measured.setdefault("critics", {})[kind] = fitted.records[1]["value_check"]
        for made, path in zip(fitted.critics, paths, strict=True):
            keep(run_dir, made, path)
    return replace(state, critics=paths)


def report(overrides: list[str]) -> None:
    """Write result.json and value_at_the_cut.png from the loops that have been measured."""
    tasks = {task: summarise(seeds) for task, seeds in read_measured(overrides, "cut").items()}
    write_file(HERE / "result.json", to_json({"arms": ARMS, "common": COMMON, "tasks": tasks}), "result.json")
    for task, figures in tasks.items():
        print_arms(task, figures["arms"], "start")
    plot_success(tasks, HERE / "value_at_the_cut.png")


def summarise(seeds: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Of each arm the success, alone and minus that of the start; imagined success in training; and the critics."""
    return {
        "arms": compare_arms(seeds, ("clone", "start", *ARMS), "start"),
        "imagined": {seed: measured["imagined"] for seed, measured in seeds.items()},
        "critics": {seed: measured.get("critics", {}) for seed, measured in seeds.items()},
    }


if __name__ == "__main__":
    measure_or_report(str(__doc__), measure, report, arms=list(ARMS))
