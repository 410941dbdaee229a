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
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from worldloop.loop.session import Executor, Session
from worldloop.stages.data import open_clips
from worldloop.stages.simulate import make_jobs, restrict, run_jobs

from worldloop.config.loading import load_config
from worldloop.config.schema import LoopConfig
from worldloop.core.errors import WorldloopError
from worldloop.core.statistics import auc, balanced_accuracy, bootstrap_interval
from worldloop.evaluation.alignment import align_episodes
from worldloop.evaluation.calibration import apply_calibration, calibrate
from worldloop.evaluation.fidelity import measure_fidelity
from worldloop.evaluation.open_loop import ImaginedEpisodes, imagine_episodes
from worldloop.loop.run import make_runtime
from worldloop.reporting.check import describe_alignment
from worldloop.reporting.progress import Display, TerminalDisplay
from worldloop.sans.clips import ClipDataset
from worldloop.sans.shard import shard_ref
from worldloop.stages import fit_world_model
from worldloop.storage.run_directory import RunDirectory
from worldloop.storage.run_state import LoopState

HERE = Path(__file__).resolve().parent
SOURCES = {"scripted": ("expert", "perturbed"), "on_policy": ("policy",)}
FIRST_STATE = 1000  # of the validation list: far beyond those that promotion looks at
MODELS = ("with", "last", "without")


def judge_run(
    _: LoopState, config: LoopConfig, run_dir: str, source: str, count: int, executor: Executor, display: Display
) -> dict[str, Any]:
    """Everything for one run, inside the runtime; ``run_dir`` is a copy of ``source`` that may be written to."""
    state = RunDirectory(Path(source)).read_state()
    first = replace(state, iteration=1, dataset="v001", world_model="", calibration=None)
    scores: dict[str, Any] = {}
    held_out = record_held_out(Session(config, Path(run_dir), "record", executor, display), state, count)
    for model in MODELS:
        context: Any = Session(config, Path(run_dir), model, executor, display)
        if model == "without":
            clips = replace(config.clips, near_success=False)
            path = fit_world_model.run(first, config.fit_world_model, clips, context).world_model
        else:
            iteration = 1 if model == "with" else state.iteration
            path = f"{source}/checkpoints/iteration_{iteration:03d}/world_model"
        world_model = context.load_world_model(path).eval()
        version = state.dataset if model == "last" else "v001"
        known = imagine(world_model, open_clips(context, version, "validation"), context, config)
        calibration = calibrate(known)
        results = imagine(world_model, held_out, context, config)
        scores[model] = {"calibration": vars(calibration).copy(), "held_out": {}}
        for name, result in results.items():
            alignment = align_episodes(result, apply_calibration(result, calibration, cross_fit=False))
            context.log(f"{model}, {name}: {describe_alignment(alignment)}")
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


def imagine(world_model: Any, dataset: ClipDataset, context: Any, config: LoopConfig) -> dict[str, ImaginedEpisodes]:
    index = {name: dataset.episode_index(source=sources) for name, sources in SOURCES.items()}
    size = config.check_world_model.batch_size
    return {
        name: imagine_episodes(world_model, dataset, episodes, batch_size=size, seed=context.seed)
        for name, episodes in index.items()
        if len(episodes)
    }


def record_held_out(context: Any, state: LoopState, count: int) -> ClipDataset:
    """``count`` scripted episodes in the proportions of the config and ``count`` of the clone, one state each."""
    store = context.store
    if "held_out" not in store.list_versions():
        states = restrict(context.initial_states("validation", FIRST_STATE + 2 * count), FIRST_STATE)
        variants = [n for n, c in context.config.seed_dataset.episodes.items() for _ in range(c)]
        order = np.random.default_rng(0).permutation(len(variants))
        chosen = tuple(variants[i] for i in np.resize(order, count))
        size = context.config.collect_episodes.block_size
        temperature = context.config.collect_episodes.temperature
        scripted = make_jobs(
            context, states.select(range(count)), size, purpose="held_out/scripted", iteration=0, variants=chosen
        )
        own = make_jobs(
            context,
            states.select(range(count, 2 * count)),
            size,
            purpose="held_out/policy",
            iteration=0,
            policy=state.clone,
            temperature=temperature,
        )
        directory = store.shard_path("held-out")
        if directory.exists():
            shard = shard_ref(directory)
        else:
            shard = store.append(run_jobs(context, [*scripted, *own]), "held-out", context.spec)
        store.snapshot("held_out", [shard], normalisation=store.version("v000").normalisation)
    return open_clips(context, "held_out", "validation")


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


def interval(statistic: Any, *arrays: np.ndarray) -> dict[str, float]:
    low, high = bootstrap_interval(statistic, *arrays)
    return {"value": round(float(statistic(*arrays)), 4), "low": round(low, 4), "high": round(high, 4)}


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
    config = load_config(run / "config.yaml", ["runtime=inline"])
    copy = run.parent.with_name("002_near_success") / run.name
    cached = copy / "scores.json"
    if not cached.exists():
        if not copy.exists():
            partial = copy.with_name(f".{copy.name}.tmp")
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(run, partial, ignore=shutil.ignore_patterns(".lock"))
            partial.rename(copy)
        runtime = make_runtime(config, TerminalDisplay())
        try:
            scores = runtime.run_stage(judge_run, LoopState(), config, str(copy), str(run), count)
        finally:
            runtime.close()
        cached.write_text(json.dumps(scores))
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
