"""Experiment 025: is a gate between a predictive and a reactive expert better than either, and where?

    python experiments/025_harmowam/run.py measure TASK [key=value ...] [--seeds 0 1 2] [--arms gate ...]
    python experiments/025_harmowam/run.py report [key=value ...]     # result.json, harmowam.png

``measure`` runs iteration 0 of configs/stackcube_harmowam.yaml with 100 demonstrations on the right of the table and
perturbed episodes everywhere: world model, planner, and HarmoWAM from the demonstrations. Each arm is the same two
experts with another gate, but `token_vla`, which clones the same demonstrations. All act greedily from the same
evaluation states in each condition, as in `worldloop benchmark-ood`: success, transit, and interaction.

- `predictive`, `reactive`, `average`: one expert alone, or the mean of their actions
- `gate`, `inverted`: the learned gate, and its opposite
- `oracle`: by the true distances; `clock`: by the frame's number; `random`: as often as the learned gate

TASK: stack. What was measured is not measured again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE))
from common import CONFIGS, locate_run, open_context, run_until  # noqa: E402
from controls import ControlConfig  # noqa: E402

from worldloop.config.loading import load_config  # noqa: E402
from worldloop.config.schema import LoopConfig  # noqa: E402
from worldloop.core.files import to_json, write_file  # noqa: E402
from worldloop.core.statistics import estimate, estimate_over_seeds  # noqa: E402
from worldloop.evaluation.gate import choose_held_out, judge_gate, run_gate  # noqa: E402
from worldloop.evaluation.generalisation import score_condition  # noqa: E402
from worldloop.factory.build import vary_simulator  # noqa: E402
from worldloop.factory.checkpoints import load_policy, save_policy  # noqa: E402
from worldloop.factory.config import PolicyConfig  # noqa: E402
from worldloop.loop.benchmark import choose_states  # noqa: E402
from worldloop.policies.harmowam.policy import HarmoWAM  # noqa: E402
from worldloop.sans.imitation import EXPERT_DEMONSTRATIONS  # noqa: E402
from worldloop.sans.interaction import find_interaction  # noqa: E402
from worldloop.stages import clone_policy  # noqa: E402
from worldloop.stages.context import StageContext  # noqa: E402

TASKS = {"stack": "stackcube_harmowam"}
SEEDS = (0, 1, 2)
COMMON = [
    "num_iterations=0",
    "seed_dataset.held_out_side=left",
    "runtime=inline",
    "resources.num_threads=1",
    "resources.num_simulators=1",
    "evaluate_policy.num_states=1",  # the conditions below measure more
    "run_root=runs/025_harmowam",
]
ALONE = ("predictive", "reactive", "average")
GATES = ("inverted", "oracle", "clock", "random")
ARMS = ("predictive", "reactive", "gate", "average", "oracle", "inverted", "clock", "random", "token_vla")
CONDITIONS = {"in distribution": ("right", ""), "position": ("left", ""), "background": ("right", "background")}
CONDITIONS |= {"size": ("right", "size")}
PARTS = ("success", "transit", "interaction", "expert")
NUM_STATES = 100
DRAWN = 3  # states drawn for each one on a side


def configure(task: str, seed: int, overrides: list[str]) -> LoopConfig:
    changes = [*COMMON, *overrides, f"seed={seed}", f"run_name={task}-seed{seed}"]
    return load_config(CONFIGS / f"{TASKS[task]}.yaml", changes)


def measure(
    task: str, seed: int, overrides: list[str], arms: Sequence[str], conditions: Sequence[str], asks_expert: bool
) -> None:
    """Write harmowam.json into the run of iteration 0; without ``asks_expert`` no interaction is measured."""
    config = configure(task, seed, overrides)
    directory = run_until(config, "evaluate_policy")
    context = open_context(config, directory.path, f"{task} {seed}")
    out = directory.path / "harmowam.json"
    measured: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"conditions": {}}
    state = directory.read_state()
    if "gate" not in measured:
        measured["gate"] = check_gate(state.clone, context)
        write_file(out, to_json(measured), out.name)
    for arm in arms:
        make_arm(arm, state.clone, measured["gate"], context)
    for condition in conditions:
        side, variation = CONDITIONS[condition]
        scores = measured["conditions"].setdefault(condition, {})
        varied = replace(config, simulator=vary_simulator(config.simulator, variation))
        there = open_context(varied, directory.path, f"{task} {seed} {condition}")
        states = choose_states(context, NUM_STATES, side)
        for arm in arms:
            if arm in scores:
                continue
            path = f"arms/{arm}"
            score = score_condition(
                there.simulation,
                states,
                path,
                context.spec,
                block_size=10,
                name=condition,
                asks_expert=asks_expert,
            )
            scores[arm] = score.to_dict()
            write_file(out, to_json(measured), out.name)
            told = {name: scores[arm][name] and scores[arm][name]["rate"] for name in PARTS}
            print(task, seed, condition, arm, json.dumps(told), flush=True)


def check_gate(path: str, context: StageContext) -> dict[str, Any]:
    """How the gate agrees with its labels, and what the controls need of the demonstrations."""
    policy = context.models.load_policy(path)
    assert isinstance(policy, HarmoWAM)
    cache = context.open_cache("v000")
    gated = {name: run_gate(policy, cache, context.spec, own) for name, own in choose_held_out(cache, 100).items()}
    experts = cache.select(source="expert", split="train").tolist()
    labels = find_interaction(cache, context.spec, policy.interaction)
    assert labels is not None
    by_frame = []
    for frame in range(int(max(cache.num_steps[e] for e in experts))):
        own = [bool(labels[cache.first_step[e] + frame]) for e in experts if cache.num_steps[e] > frame]
        by_frame.append(bool(np.mean(own) >= 0.5))
    learned = run_gate(policy, cache, context.spec, experts)  # there is no held-out demonstration
    named = gated | {"demonstrations, learned from": learned}
    return {
        "judged": {name: judge_gate(own, 1).to_dict() for name, own in named.items()},
        "interaction_by_frame": by_frame,
        "duty": float(np.mean(np.concatenate(learned.probability) >= 0.5)),
    }


def make_arm(arm: str, clone: str, gate: dict[str, Any], context: StageContext) -> None:
    """Write the policy of ``arm`` into the folder ``arms`` of the run."""
    out = context.models.run_dir / "arms" / arm
    if (out / "checkpoint.json").exists():
        return
    if arm == "token_vla":
        own = context.models.policy_config
        context.models.policy_config = replace(own, kind="token_vla")
        try:
            cloning = context.config_of(clone_policy.Config)
            clone_policy.imitate(locate_state(context), cloning, context, EXPERT_DEMONSTRATIONS, f"arms/{arm}")
        finally:
            context.models.policy_config = own
        return
    policy = load_policy(context.models.run_dir / clone)
    assert isinstance(policy, HarmoWAM)
    changes = {"acts_by": arm} if arm in ALONE else {"gate": arm} if arm in GATES else {}
    extra = {"duty": gate["duty"], "interaction_by_frame": tuple(gate["interaction_by_frame"])}
    settings = ControlConfig(**(asdict(policy.config) | changes | extra))
    save_policy(policy, out, PolicyConfig("controls:ControlledHarmoWAM", options=asdict(settings)), version=arm)


def locate_state(context: StageContext) -> Any:
    from worldloop.storage.run_directory import RunDirectory

    return replace(RunDirectory(context.models.run_dir).read_state(), dataset="v000", iteration=0)


def report(overrides: list[str]) -> None:
    """Write result.json and harmowam.png from the runs that have been measured."""
    tasks: dict[str, Any] = {}
    for task in TASKS:
        runs = {seed: locate_run(configure(task, seed, overrides)).path / "harmowam.json" for seed in SEEDS}
        seeds = {seed: json.loads(path.read_text()) for seed, path in runs.items() if path.exists()}
        if seeds:
            tasks[task] = {
                "conditions": {c: summarise(seeds, c) for c in CONDITIONS},
                "gate_minus": {c: compare_with_gate(seeds, c) for c in CONDITIONS},
                "seeds": seeds,
            }
    write_file(HERE / "result.json", to_json({"num_states": NUM_STATES, "tasks": tasks}), "result.json")
    for task, figures in tasks.items():
        for condition, arms in figures["conditions"].items():
            for arm, parts in arms.items():
                shown = {part: [round(v, 3) for v in entry["by_seed"]] for part, entry in parts.items()}
                print(f"{task} {condition:<16} {arm:<12} {shown}")
        for condition, arms in figures["gate_minus"].items():
            print(task, condition, "gate minus", arms)
    plot(tasks, HERE / "harmowam.png")


def summarise(seeds: dict[int, Any], condition: str) -> dict[str, Any]:
    """Arm -> part -> mean over seeds with a t-interval."""
    arms: dict[str, Any] = {}
    for arm in ARMS:
        found = [m["conditions"].get(condition, {}).get(arm) for m in seeds.values()]
        for part in PARTS:
            rates = [score[part]["rate"] for score in found if score and score[part]]
            if rates:
                entry = estimate_over_seeds(rates).to_dict() | {"by_seed": rates}
                arms.setdefault(arm, {})[part] = entry
    return arms


def compare_with_gate(seeds: dict[int, Any], condition: str) -> dict[str, Any]:
    """Arm -> success of the gate minus that of the arm on the same states; by seed, a bootstrap over states."""
    compared: dict[str, Any] = {}
    for seed, measured in seeds.items():
        scores = measured["conditions"].get(condition, {})
        for arm in (a for a in ARMS if a in scores and "gate" in scores and a != "gate"):
            gate, other = scores["gate"]["succeeded"], scores[arm]["succeeded"]
            difference = np.array([float(gate[state]) - float(other[state]) for state in gate])
            compared.setdefault(arm, {})[str(seed)] = estimate(lambda v: float(v.mean()), difference).to_dict()
    return compared


def plot(tasks: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    scores = [score for figures in tasks.values() for arms in figures["conditions"].values() for score in arms.values()]
    parts = [part for part in PARTS[:3] if any(part in score for score in scores)]  # that were measured
    figure, axes = plt.subplots(len(tasks), len(parts), figsize=(9, 3.4 * len(tasks)), squeeze=False, sharey=True)
    for row, (task, figures) in zip(axes, tasks.items(), strict=True):
        names = [arm for arm in ARMS if any(arm in arms for arms in figures["conditions"].values())]
        for axis, part in zip(row, parts, strict=True):
            conditions = {name: arms for name, arms in figures["conditions"].items() if arms}
            for number, (name, arms) in enumerate(conditions.items()):
                places = [x + 0.8 * (number / len(conditions) - 0.5) for x, arm in enumerate(names) if arm in arms]
                values = [arms[arm][part]["value"] if part in arms[arm] else 0 for arm in names if arm in arms]
                axis.bar(places, values, 0.8 / len(conditions), align="edge", label=name)
            axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
            axis.set(title=f"{task}: {part}", ylim=(0, 1))
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["measure", "report"])
    parser.add_argument("arguments", nargs="*", metavar="TASK, key=value")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--conditions", nargs="+", choices=list(CONDITIONS), default=list(CONDITIONS))
    parser.add_argument("--no-interaction", action="store_true", help="success and transit alone, in half the time")
    options = parser.parse_intermixed_args()
    overrides = [a for a in options.arguments if "=" in a]
    if options.command == "report":
        report(overrides)
        return
    for task in (a for a in options.arguments if "=" not in a):
        for seed in options.seeds:
            measure(task, seed, overrides, options.arms, options.conditions, not options.no_interaction)


if __name__ == "__main__":
    main()
