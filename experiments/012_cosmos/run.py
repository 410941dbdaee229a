"""Experiment 012: is a `cosmos` world model as good as the `hybrid` one, and a few-step student as good as its teacher?

    python experiments/012_cosmos/run.py fit ARM RUN OUT [key=value ...] [--seed N]   # RUN: with SANS version v001
    python experiments/012_cosmos/run.py report OUT ... [--former OUT ...]            # result.json, by_frame.png

``fit`` trains one world model from nothing on a run's scripted episodes and those of its clone, with the settings of
``configs/pushcube_cpu.yaml`` but for the arm's, checks it, and imagines the held-out episodes; where the arm asks for a
student, `distil_world_model` makes one of it, which is checked and imagines them as well. One thread. RUN is that of
experiment 006 on PushCube. ``--former``: fits of the code before commit be7b4db, whose `cosmos` had neither pose maps
nor a choice per pixel.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from worldloop.config.loading import load_config
from worldloop.core.statistics import auc, bootstrap_interval
from worldloop.evaluation.fidelity import compute_mean_psnr
from worldloop.stages import distil_world_model
from worldloop.stages.context import StageContext
from worldloop.storage.run_state import LoopState

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from common import CONFIGS, imagine_all, link_dataset, open_context, run_stage  # noqa: E402

VERSION, SOURCE = "v001", "on_policy"
COMMON = [
    "runtime=inline",
    "resources.num_threads=1",
    "check_world_model.probe_steps=300",
    "check_world_model.num_videos=0",
]
COSMOS = [
    "world_model.denoiser=cosmos",
    "world_model.cosmos.patch=8",
    "world_model.cosmos.num_layers=4",
    "world_model.cosmos.num_heads=4",
]
FOUR_STEPS = ["world_model.num_sampler_steps=4", "world_model.zero_time_share=0.5"]
STUDENT = [
    "distil_world_model.num_steps=450",
    "distil_world_model.num_sampler_steps=1",
    "distil_world_model.learning_rate=6e-4",
]
ARMS: dict[str, list[str]] = {
    "hybrid": [],
    "cosmos": COSMOS,
    "cosmos_four_steps": [*COSMOS, *FOUR_STEPS, *STUDENT],
}


def fit(arm: str, run: Path, out: Path, seed: int, overrides: list[str]) -> None:
    """Fit and check one world model, and its student where the arm has one; leave ``result.json`` in ``out``."""
    link_dataset(run, out)
    changes = [*COMMON, *ARMS[arm], *overrides]
    config = load_config(CONFIGS / "pushcube_cpu.yaml", [*changes, f"seed={seed}"])
    context = open_context(config, out, f"{arm}, seed {seed}")
    begin = time.process_time()
    state = run_stage("fit_world_model", LoopState(iteration=1, dataset=VERSION), context)
    models = {arm: judge(state, context, time.process_time() - begin)}
    if config.section(distil_world_model.Config).num_steps:
        begin = time.process_time()
        state = run_stage("distil_world_model", state, context)
        distillation = state.records[1]["distillation"]
        if distillation["accepted"]:
            judged = judge(state, context, time.process_time() - begin)
            models[f"{arm}_student"] = judged | {"distillation": distillation}
        else:
            models[arm]["distillation"] = distillation
    for judged in models.values():
        judged |= {"seed": seed, "overrides": changes}
    (out / "result.json").write_text(json.dumps(models) + "\n")


def judge(state: LoopState, context: StageContext, fit_cpu_s: float) -> dict[str, Any]:
    """The check's figures of ``state.world_model``, and what each held-out episode got from it."""
    state = run_stage("check_world_model", state, context)
    world_model = context.models.load_world_model(state.world_model)
    begin = time.process_time()
    imagined = imagine_all(world_model, VERSION, context)
    seconds = time.process_time() - begin
    episodes: dict[str, Any] = {}
    frames = 0
    for source, result in imagined.items():
        valid = result.branches.truth.valid
        frames += valid.numel()
        psnr_db = compute_mean_psnr(result.branches)
        episodes[source] = {
            "logit": [round(x, 3) for x in result.logit.tolist()],
            "is_success": [int(x) for x in result.is_success],
            "psnr_db": [round(float(p[v].mean()), 3) for p, v in zip(psnr_db, valid, strict=True)],
        }
    return {
        "parameters": sum(p.numel() for p in world_model.denoiser.parameters()),
        "fit_cpu_s": round(fit_cpu_s),
        "imagined_frames_per_cpu_s": round(frames / seconds, 1),
        "world_model_check": state.records[1]["world_model_check"],
        "episodes": episodes,
    }


def compare(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """AUC and PSNR of ``a`` minus ``b`` on the policy's held-out episodes, intervals paired by episode."""
    one, other = (r["episodes"][SOURCE] for r in (a, b))
    label = np.array(one["is_success"], dtype=bool)

    def gain(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> float:
        return auc(x, z) - auc(y, z)

    def mean_gain(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.mean(x) - np.mean(y))

    given: dict[str, tuple[Any, list[np.ndarray]]] = {
        "auc": (gain, [np.array(one["logit"]), np.array(other["logit"]), label]),
        "psnr_db": (mean_gain, [np.array(one["psnr_db"]), np.array(other["psnr_db"])]),
    }
    figures: dict[str, Any] = {"n": len(label)}
    for name, (statistic, arrays) in given.items():
        low, high = bootstrap_interval(statistic, *arrays)
        figures[name] = {"value": round(statistic(*arrays), 4), "low": round(low, 4), "high": round(high, 4)}
    return figures


def summarise(judged: dict[str, Any]) -> dict[str, Any]:
    """What is kept of one model."""
    check = judged["world_model_check"][SOURCE]
    own = judged["episodes"][SOURCE]
    scripted = judged["episodes"]["scripted"]
    low, high = bootstrap_interval(auc, np.array(own["logit"]), np.array(own["is_success"], dtype=bool))
    kept = {name: value for name, value in judged.items() if name not in ("world_model_check", "episodes")}
    return kept | {
        "auc": {
            "value": round(auc(np.array(own["logit"]), np.array(own["is_success"], dtype=bool)), 4),
            "low": round(low, 4),
            "high": round(high, 4),
            "n": len(own["logit"]),
        },
        "auc_scripted": round(auc(np.array(scripted["logit"]), np.array(scripted["is_success"], dtype=bool)), 4),
        "n_scripted": len(scripted["logit"]),
        "psnr_db": check["psnr_db"]["mean"],
        "psnr_db_by_frame": [entry["value"] for entry in check["psnr_db"]["by_frame"]],
        "object_error_cm_end": check["object_error_cm"]["end"],
        "effector_error_cm_end": check["effector_error_cm"]["end"],
        "auc_of_outcome_classifier": check["visual_alignment"]["imagined"]["auc"],
    }


def report(outs: list[Path], former: list[Path]) -> None:
    """``result.json`` of all OUTs, every model beside the `hybrid` of its seed."""
    judged: dict[tuple[str, int], dict[str, Any]] = {}
    for given, suffix in ((outs, ""), (former, "_former")):
        for out in given:
            for name, result in json.loads((out / "result.json").read_text()).items():
                judged[name + suffix, result["seed"]] = result
    names = [f"{arm}{suffix}" for arm in ARMS for suffix in ("", "_student", "_former", "_student_former")]
    models = []
    for name, seed in sorted(judged, key=lambda key: (names.index(key[0]), key[1])):
        entry: dict[str, Any] = {"model": name, **summarise(judged[name, seed])}
        if name != "hybrid" and ("hybrid", seed) in judged:
            entry["minus_hybrid"] = compare(judged[name, seed], judged["hybrid", seed])
        models.append(entry)
        print(f"{name:28s} seed {seed}", entry["auc"], entry["psnr_db"], entry.get("minus_hybrid"))
    (HERE / "result.json").write_text(json.dumps({"schema_version": 1, "models": models}, indent=1) + "\n")
    plot(models)


def plot(models: list[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    names = list(dict.fromkeys(m["model"] for m in models))
    for name in names:
        curves = [m["psnr_db_by_frame"] for m in models if m["model"] == name]
        length = min(map(len, curves))
        mean = np.mean([curve[:length] for curve in curves], axis=0)
        axes.plot(range(1, length + 1), mean, marker=".", label=f"{name.replace('_', ' ')} (n {len(curves)})")
    axes.set_xlabel("frames imagined open loop")
    axes.set_ylabel("PSNR, dB, policy's held-out episodes")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(HERE / "by_frame.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("fit")
    command.add_argument("arm", choices=ARMS)
    command.add_argument("run", type=Path)
    command.add_argument("out", type=Path)
    command.add_argument("overrides", nargs="*", metavar="key=value")
    command.add_argument("--seed", type=int, default=0)
    command = commands.add_parser("report")
    command.add_argument("outs", type=Path, nargs="+")
    command.add_argument("--former", type=Path, nargs="*", default=[])
    given = parser.parse_args()
    if given.command == "fit":
        fit(given.arm, given.run, given.out, given.seed, given.overrides)
    else:
        report(given.outs, given.former)


if __name__ == "__main__":
    main()
