"""What does Ray cost against running inline? One table, one JSON file.

    python benchmarks/ray_overhead.py [--rounds 1] [--loops debug pushcube_cpu] [--out benchmarks/ray_overhead.json]

- loops: the same loop inline and on a local Ray in turn, each in a process of its own, from the command to its end; the
  ratio within a round, whether both end in the same results.json, and what of the time no stage took: imports, starting
  Ray and its actors, ending them. ``pushcube_cpu`` is `make loop`, whole: a round of it takes over half an hour.
  Figures are medians over rounds, with the lowest and highest.
- stages: how long stages that do nothing take: a run's first, one that trains right after it (several workers have been
  starting since the run began), and later ones.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
LOOPS = {"debug": ["resources.num_simulators=2"], "pushcube_cpu": []}
NUM_STAGES = 5
STAGE_KEYS = ("ray_starts", "first_stage", "first_training_stage", "later_stage")


def run_loop(name: str, runtime: str, folder: Path) -> dict[str, Any]:
    """Seconds of one loop, those of them that no stage took, those of each kind of stage, and the loop's results."""
    run_root = folder / runtime
    shutil.rmtree(run_root, ignore_errors=True)
    config = str(ROOT / f"configs/{name}.yaml")
    command = [sys.executable, "-m", "worldloop", "run", config, *LOOPS[name], f"runtime={runtime}"]
    began = time.perf_counter()
    subprocess.run([*command, f"run_root={run_root}"], check=True, capture_output=True)
    seconds = time.perf_counter() - began
    timings = json.loads((run_root / name / "timings.json").read_text())["stages"]
    stages: dict[str, float] = {}
    for timing in timings:
        stages[timing["stage"]] = stages.get(timing["stage"], 0.0) + timing["seconds"]
    results = (run_root / name / "results.json").read_text()
    return {"seconds": seconds, "outside_stages": seconds - sum(stages.values()), "stages": stages, "results": results}


def do_nothing(executor: Any, display: Any) -> int:
    return 0


def time_stages(num_workers: int) -> dict[str, float]:
    """Seconds until a runtime is there, its first stage is done, one that trains, and each of some later (median)."""
    from worldloop.reporting.progress import SilentDisplay
    from worldloop.runtime.ray import RayRuntime

    began = time.perf_counter()
    runtime = RayRuntime(
        address="",
        num_simulators=2,
        cpus_per_simulator=0.0,
        num_workers=num_workers,
        trainer_cpus=1.0,
        trainer_gpus=0.0,
        max_retries=0,
        display=SilentDisplay(),
    )
    marks = [time.perf_counter() - began]
    try:
        for trains in (False, True, *[True] * NUM_STAGES):
            began = time.perf_counter()
            runtime.run_stage(do_nothing, trains=trains)
            marks.append(time.perf_counter() - began)
    finally:
        runtime.close()
    return dict(zip(STAGE_KEYS, [*marks[:3], float(np.median(marks[3:]))], strict=True))


def summarise(values: list[float], digits: int) -> dict[str, float]:
    figures = {"median": float(np.median(values)), "low": min(values), "high": max(values)}
    return {name: round(value, digits) for name, value in figures.items()} | {"n": len(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--loops", nargs="*", choices=LOOPS, default=list(LOOPS))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/ray_overhead.json")
    options = parser.parse_args()
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    result: dict[str, Any] = {"schema_version": 2, "machine": machine, "stages": {}, "loops": {}}
    for num_workers in (1, 2):
        result["stages"][num_workers] = timed = {k: round(v, 2) for k, v in time_stages(num_workers).items()}
        print(
            f"{num_workers} training worker(s): Ray is there after {timed['ray_starts']:.1f} s, the first stage takes "
            f"{timed['first_stage']:.1f} s,\n  one that trains right after it {timed['first_training_stage']:.1f} s, "
            f"later ones {timed['later_stage']:.2f} s",
            flush=True,
        )
    folder = Path(tempfile.mkdtemp(prefix="wl-overhead-"))
    try:
        for name in options.loops:
            rounds = [{r: run_loop(name, r, folder) for r in ("inline", "ray")} for _ in range(options.rounds)]
            ratio = summarise([r["ray"]["seconds"] / r["inline"]["seconds"] for r in rounds], 3)
            entry: dict[str, Any] = {"overrides": LOOPS[name], "ratio": ratio}
            entry["same_results"] = all(r["ray"]["results"] == r["inline"]["results"] for r in rounds)
            for runtime in ("inline", "ray"):
                for key in ("seconds", "outside_stages"):
                    entry[f"{runtime}_{key}"] = summarise([r[runtime][key] for r in rounds], 1)
                entry[f"{runtime}_stages"] = {
                    stage: summarise([r[runtime]["stages"][stage] for r in rounds], 1)
                    for stage in rounds[0][runtime]["stages"]
                }
            result["loops"][name] = entry
            ray_s, inline_s, ray_outside_s, inline_outside_s = (
                entry[f"{runtime}_{key}"]["median"]
                for key in ("seconds", "outside_stages")
                for runtime in ("ray", "inline")
            )
            print(
                f"{name}: Ray {ray_s:.1f} s, inline {inline_s:.1f} s, ratio {ratio['median']:.2f} "
                f"({ratio['low']:.2f} to {ratio['high']:.2f}); outside stages {ray_outside_s:.1f} and "
                f"{inline_outside_s:.1f} s",
                flush=True,
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
