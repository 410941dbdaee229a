"""Experiment 023: is a world model better once it is aligned with its actions?

    python experiments/023_alignment/follow.py measure TASK [key=value ...] [--seeds 0 1 2]
    python experiments/023_alignment/follow.py report [key=value ...]      # follow.json

``measure`` needs loops of experiment 016 under the same run_root, up to their first improve_policy or further. It
checks the loop's first world model, aligns it in mode follow by the loop's own stage (pathwise: the sampler has one
step), keeps the result whatever the stage decides, and checks it again. The checks imagine recorded actions.

TASK: push, pull, pick. What was measured is not measured again.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from common import run_stage  # noqa: E402
from trust_loops import begin_arm, configure, measure_or_report, open_beside, read_measured  # noqa: E402

from worldloop.core.files import to_json, write_file  # noqa: E402
from worldloop.core.statistics import estimate_over_seeds  # noqa: E402
from worldloop.storage.run_state import LoopState  # noqa: E402

SETTINGS = ["enabled=true", "mode=follow", "algorithm=pathwise", "group_size=1", "starts_per_update=32", "gate=false"]
NAME = "follow.json"


def measure(task: str, seed: int, overrides: list[str]) -> None:
    """Write follow.json into TASK-seedN-idm, the folder of experiment 021."""
    changes = [*(f"align_world_model.{setting}" for setting in SETTINGS), *overrides]
    context, state = open_beside(configure(task, seed, changes), "idm", f"{task} {seed} follow")
    out = context.models.run_dir / NAME
    if out.exists():
        return
    begin_arm(context.models.run_dir, "follow")
    state = run_stage("fit_inverse_dynamics", state, context)
    copy = "checkpoints/iteration_001/world_model_to_follow"  # since a check writes a card beside the weights
    if not context.models.has(copy):
        shutil.copytree((context.models.run_dir / state.world_model).resolve(), context.models.run_dir / copy)
    state = replace(state, world_model=copy, teacher=copy)
    before = run_stage("check_world_model", state, context)
    aligned = run_stage("align_world_model", state, context)
    after = run_stage("check_world_model", aligned, context)
    measured = {
        "alignment": aligned.records[1]["alignment"],
        "before": summarise_check(before),
        "after": summarise_check(after),
    }
    write_file(out, to_json(measured), out.name)
    print(task, seed, json.dumps(measured), flush=True)


def summarise_check(state: LoopState) -> dict[str, Any]:
    """Of the policy's held-out episodes: the AUC of the success head, and the PSNR."""
    record = state.records[1]
    alignment, check = record["reward_alignment"]["on_policy"], record["world_model_check"]["on_policy"]
    return {"auc": alignment["auc"], "psnr_db": check["psnr_db"]["mean"], "n": alignment["n"]}


def report(overrides: list[str]) -> None:
    """Write follow.json from the loops that have been measured."""
    tasks: dict[str, Any] = {}
    for task, seeds in read_measured(overrides, "idm", NAME).items():
        changes: dict[str, Any] = {}
        for name, read in READERS.items():
            by_seed = [(read(m, "before"), read(m, "after")) for m in seeds.values()]
            changes[name] = {
                "by_seed": by_seed,
                "change": estimate_over_seeds([after - before for before, after in by_seed]).to_dict(),
            }
            print(task, name, by_seed, changes[name]["change"])
        accepted = [m["alignment"]["accepted"] for m in seeds.values()]
        tasks[task] = {"seeds": list(seeds), "accepted": accepted, "figures": changes, "measured": seeds}
    if not tasks:
        raise SystemExit("nothing has been measured yet")
    write_file(HERE / "follow.json", to_json({"settings": SETTINGS, "tasks": tasks}), "follow.json")


READERS = {
    "following": lambda m, when: m["alignment"][when]["following"]["value"],
    "psnr_db of six frames": lambda m, when: m["alignment"][when]["psnr_db"]["value"],
    "on-policy auc": lambda m, when: m[when]["auc"]["value"],
    "on-policy psnr_db": lambda m, when: m[when]["psnr_db"]["value"],
}


if __name__ == "__main__":
    measure_or_report(str(__doc__), measure, report)
