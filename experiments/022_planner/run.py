"""Experiment 022: can a planner's video be executed, and what limits it?

    python experiments/022_planner/run.py measure TASK [key=value ...] [--seeds 0 1 2] [--arms planner ...]
    python experiments/022_planner/run.py report [key=value ...]      # result.json, planner.png

``measure`` needs loops of experiment 016 under the same run_root, up to their first improve_policy or further. Per seed
it fits both inverse dynamics models on dataset v001, then a planner for every arm, by the loop's own stages, and checks
it. Then its policy acts on the evaluation states: it plans anew before every chunk, and executes that chunk.

- `planner`: the default, four sampler steps
- `one_step`: one sampler step, the mean of all ways to go on; .9 of the training samples start from pure noise, not .5
- `longer`: three times as many optimizer steps
- `judge`: the plans of `planner`, executed by the model that judges, which follows real video better

``report`` sets beside them the loop's clone and its imitation of all successes, on the same evaluation states, from
experiment 019. TASK: push, pull, pick. What was measured is not measured again.
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
from worldloop.policies.planner.policy import PlannerPolicy  # noqa: E402
from worldloop.stages.context import StageContext  # noqa: E402
from worldloop.storage.run_state import LoopState  # noqa: E402
from worldloop.world_model.planner import VideoPlanner  # noqa: E402

ARMS = {
    "planner": [],
    "one_step": ["fit_planner.num_sampler_steps=1", "fit_planner.zero_time_share=0.9"],
    "longer": ["fit_planner.num_steps=1800"],
    "judge": [],
}
COMMON = ["fit_inverse_dynamics.enabled=true", "fit_planner.enabled=true", "check_planner.num_states=0"]
NAME = "planner.json"


def measure(task: str, seed: int, overrides: list[str], arms: Sequence[str]) -> None:
    """Write planner.json into TASK-seedN-idm, the folder of experiment 021."""
    for name in arms:
        context, state = open_beside(
            configure(task, seed, [*COMMON, *ARMS[name], *overrides]), "idm", f"{task} {seed} {name}"
        )
        out = context.models.run_dir / NAME
        measured: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"success": {}, "plans": {}}
        if name in measured["success"]:
            continue
        begin_arm(context.models.run_dir, name)
        state = run_stage("fit_inverse_dynamics", state, context)
        path = f"checkpoints/iteration_001/planner-{name}"
        if name == "judge":
            execute_by_judge(path, state, context)
        elif not context.models.has(path):
            keep(context.models.run_dir, run_stage("fit_planner", state, context).planner, path)
        checked = run_stage("check_planner", replace(state, planner=path), context)
        measured["plans"][name] = checked.records[1]["planner_check"]["plans"]
        evaluate_arm(name, path, context, measured, out)


def execute_by_judge(path: str, state: LoopState, context: StageContext) -> None:
    """Save the policy of the arm `planner`, with the inverse dynamics model that judges, at ``path``."""
    policy = context.models.load_policy("checkpoints/iteration_001/planner-planner")
    assert isinstance(policy, PlannerPolicy)
    assert isinstance(policy.planner, VideoPlanner)
    judge = context.models.load_inverse_dynamics(state.inverse_dynamics_judge)
    context.models.save_planner_policy(policy.planner, judge, path)


def report(overrides: list[str]) -> None:
    """Write result.json and planner.png from the loops that have been measured."""
    loops = read_measured(overrides, "cut")
    tasks: dict[str, Any] = {}
    for task, seeds in read_measured(overrides, "idm", NAME).items():
        for seed, measured in seeds.items():
            own = loops.get(task, {}).get(seed, {"success": {}})["success"]
            measured["success"] |= {name: own[name] for name in ("clone", "start") if name in own}
        arms = compare_arms(seeds, ("clone", "start", *ARMS), "clone")
        tasks[task] = {"arms": arms, "plans": {seed: measured["plans"] for seed, measured in seeds.items()}}
        print_arms(task, arms, "clone")
    if not tasks:
        raise SystemExit("nothing has been measured yet")
    write_file(HERE / "result.json", to_json({"arms": ARMS, "tasks": tasks}), "result.json")
    plot_success(tasks, HERE / "planner.png")


if __name__ == "__main__":
    measure_or_report(str(__doc__), measure, report, arms=list(ARMS))
