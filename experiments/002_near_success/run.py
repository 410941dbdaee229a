"""Experiment 002: does the reward head agree with the simulator, and what are near-successes worth to it?

    python experiments/002_near_success/run.py runs/001_closed_loop/loop-seed0 runs/001_closed_loop/loop-seed1 ...

For each finished run of experiment 001, episodes on states that no stage of it used, scripted and by the clone, are
recorded in the simulator and imagined open loop from their first frame to their end. Three world models are judged:
iteration 1's as fitted in the run (`with`), the same fit with the same seed and steps but without one clip of a
near-success episode (`without`), and the run's last one (`last`). Each is calibrated as the loop does it, on the run's
validation episodes. The runs themselves are not changed; interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldloop.config.loading import load_config
from worldloop.config.schema import LoopConfig
from worldloop.core.errors import WorldloopError
from worldloop.core.statistics import auc, balanced_accuracy, estimate
from worldloop.evaluation.alignment import align_episodes
from worldloop.evaluation.calibration import apply_calibration, calibrate
from worldloop.evaluation.fidelity import measure_fidelity
from worldloop.reporting.check import describe_alignment
from worldloop.reporting.progress import TerminalDisplay
from worldloop.runtime.inline import InlineRuntime
from worldloop.sans.shard import shard_ref
from worldloop.stages import collect_episodes, seed_dataset
from worldloop.stages.context import StageContext
from worldloop.storage.run_directory import RunDirectory
from worldloop.storage.run_state import LoopState

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from common import fork_run, imagine_all, locate_run, open_context, run_stage  # noqa: E402

SOURCES = ("scripted", "on_policy")
FIRST_STATE = 1000  # of the validation list: far beyond those that promotion looks at
MODELS: dict[str, list[str]] = {"with": [], "last": [], "without": ["clips.near_success=false"]}


def judge_run(run: Path, copy: RunDirectory, config: LoopConfig, count: int) -> dict[str, Any]:
    """Everything for one ``run``, of which ``copy`` may be written to."""
    state = RunDirectory(run).read_state()
    runtime = InlineRuntime(config.resources.num_simulators, config.resources.max_retries, TerminalDisplay())
    try:
        record_held_out(open_context(config, copy.path, "record", runtime), state, count)
    finally:
        runtime.close()
    scores: dict[str, Any] = {}
    for model, overrides in MODELS.items():
        context = open_context(load_config(copy.path / "config.yaml", overrides), copy.path, model)
        version = state.dataset if model == "last" else "v001"
        path = str(run / (state.world_model if model == "last" else "checkpoints/iteration_001/world_model"))
        if model == "without":
            path = run_stage("fit_world_model", LoopState(iteration=1, dataset=version), context).world_model
        world_model = context.models.load_world_model(path).to(context.device).for_imagination()
        calibration = calibrate(imagine_all(world_model, version, context))
        scores[model] = {"calibration": vars(calibration).copy(), "held_out": {}}
        for name, result in imagine_all(world_model, "held_out", context).items():
            alignment = align_episodes(result, apply_calibration(result, calibration, cross_fit=False))
            context.reporter.log(f"{model}, {name}: {describe_alignment(alignment)}")
            psnr_db = measure_fidelity(result.branches).psnr_db.mean
            assert psnr_db is not None
            probability = calibration.probability(torch.from_numpy(result.logit))
            scores[model]["held_out"][name] = {
                "alignment": alignment.to_dict(),
                "psnr_db": psnr_db.value,
                "probability": [round(p, 5) for p in probability.tolist()],
                "outcome": list(result.outcomes),
            }
    return scores


def record_held_out(context: StageContext, state: LoopState, count: int) -> None:
    """Version ``held_out``: ``count`` scripted episodes in the proportions of the config, and ``count`` of the clone.

    Each has a state of its own.
    """
    store, simulation = context.store, context.simulation
    if "held_out" in store.list_versions():
        return
    directory = store.shard_path("held-out")
    if directory.exists():
        shard = shard_ref(directory)
    else:
        collecting = context.config_of(collect_episodes.Config)
        states = simulation.initial_states("validation", 2 * count, FIRST_STATE)
        seeded = context.config_of(seed_dataset.Config).episodes
        variants = [name for name, number in seeded.items() for _ in range(number)]
        order = np.random.default_rng(0).permutation(len(variants))
        scripted = simulation.run(
            states.select(range(count)),
            block_size=collecting.block_size,
            purpose="held_out/scripted",
            iteration=0,
            variants=tuple(variants[i] for i in np.resize(order, count)),
        )
        own = simulation.run(
            states.select(range(count, 2 * count)),
            block_size=collecting.block_size,
            purpose="held_out/policy",
            iteration=0,
            policy=state.clone,
            temperature=collecting.temperature,
        )
        shard = store.append([*scripted, *own], "held-out", context.spec)
    store.snapshot("held_out", [shard], normalisation=store.version("v000").normalisation)


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures over the episodes of all runs together; `with` against `without` is paired by episode."""
    summary: dict[str, Any] = {}
    for name in SOURCES:
        outcome = np.concatenate([np.array(r["models"]["with"]["held_out"][name]["outcome"]) for r in runs])
        success = outcome == "success"
        score, right, predicted = {}, {}, {}
        for model in MODELS:
            parts = [r["models"][model] for r in runs]
            score[model] = np.concatenate([np.array(p["held_out"][name]["probability"]) for p in parts])
            threshold = np.concatenate(
                [np.full(len(p["held_out"][name]["outcome"]), p["calibration"]["threshold"]) for p in parts]
            )
            predicted[model] = score[model] >= threshold
            right[model] = predicted[model] == success
        entry: dict[str, Any] = {"n": len(outcome), **{o: int((outcome == o).sum()) for o in np.unique(outcome)}}
        for model in MODELS:
            entry[model] = {
                "auc": interval(auc, score[model], success),
                "balanced_accuracy": interval(balanced_accuracy, predicted[model], success),
                "accuracy_by_outcome": {
                    str(o): round(float(right[model][outcome == o].mean()), 4) for o in np.unique(outcome)
                },
            }
        entry["with_minus_without"] = {
            "auc": interval(lambda a, b, s: auc(a, s) - auc(b, s), score["with"], score["without"], success),
            "balanced_accuracy": interval(
                lambda a, b, s: balanced_accuracy(a, s) - balanced_accuracy(b, s),
                predicted["with"],
                predicted["without"],
                success,
            ),
        }
        summary[name] = entry
    return summary


def interval(statistic: Callable[..., float], *arrays: np.ndarray) -> dict[str, float | None]:
    return estimate(statistic, *arrays).to_dict()


def plot(summary: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(8, 3.6), sharey=True)
    for axes, metric in zip(panels, ("auc", "balanced_accuracy"), strict=True):
        for number, model in enumerate(MODELS):
            values = [summary[name][model][metric] for name in SOURCES]
            centre = [v["value"] for v in values]
            error = [[v["value"] - v["low"] for v in values], [v["high"] - v["value"] for v in values]]
            x = np.arange(len(SOURCES)) + 0.2 * (number - 1)
            axes.errorbar(x, centre, yerr=error, fmt="o", capsize=3, label=model)
        axes.set(title=metric.replace("_", " "), ylim=(0.5, 1))
        axes.set_xticks(range(len(SOURCES)), [f"{n}\n(n = {summary[n]['n']})" for n in SOURCES])
    panels[0].legend(title="near-successes")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def run_one(run: Path, count: int) -> dict[str, Any]:
    """The cached figures of one run, or new ones."""
    if RunDirectory(run).read_state().next_stage:
        raise WorldloopError(f"{run} is not finished: run experiment 001 first")
    root = run.parent.with_name("002_near_success")
    config = load_config(run / "config.yaml", ["runtime=inline", f"run_root={root}", f"run_name={run.name}"])
    copy = locate_run(config)
    cached = copy.path / "scores.json"
    if not cached.exists():
        fork_run(RunDirectory(run), config)
        cached.write_text(json.dumps(judge_run(run, copy, config, count)))
    return {"run": run.name, "seed": config.seed, "models": json.loads(cached.read_text())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="finished run directories of experiment 001")
    parser.add_argument("--episodes", type=int, default=400, help="held-out episodes per run and source")
    options = parser.parse_args()
    runs = [run_one(run.absolute(), options.episodes) for run in options.runs]
    summary = summarise(runs)
    for run in runs:
        for values in run["models"].values():
            for held_out in values["held_out"].values():
                del held_out["probability"], held_out["outcome"]
    result = {"schema_version": 1, "episodes_per_run_and_source": options.episodes, "summary": summary, "runs": runs}
    (HERE / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(summary, HERE / "alignment.png")
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
