"""What does Ray cost against running inline? One table, one JSON file.

    python benchmarks/ray_overhead.py [--rounds 1] [--loops debug pushcube_cpu] [--out benchmarks/ray_overhead.json]

- loops: the same loop inline and on a local Ray in turn, each in a process of its own, from the command to its end; the
  ratio within a round, and what of the time no stage took: imports, starting Ray and its actors, ending them.
  ``pushcube_cpu`` is iteration 0 of `make loop` (scripted episodes, clone, evaluation, collection), where simulators
  have most to do.
- stages: how long a stage that does nothing takes, the first that an actor or a group of workers gets, and later ones.
"""

from __future__ import annotations

import argparse
import json
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
LOOPS = {"debug": ["resources.num_simulators=2"], "pushcube_cpu": ["num_iterations=0"]}
NUM_STAGES = 5


def run_loop(name: str, runtime: str, folder: Path) -> dict[str, float]:
    """Seconds of one loop, and those of them that no stage took."""
    run_root = folder / runtime
    shutil.rmtree(run_root, ignore_errors=True)
    config = str(ROOT / f"configs/{name}.yaml")
    command = [sys.executable, "-m", "worldloop", "run", config, *LOOPS[name], f"runtime={runtime}"]
    began = time.perf_counter()
    subprocess.run([*command, f"run_root={run_root}"], check=True, capture_output=True)
    seconds = time.perf_counter() - began
    timings = json.loads((run_root / name / "timings.json").read_text())["stages"]
    return {"seconds": seconds, "outside_stages": seconds - sum(t["seconds"] for t in timings)}


def do_nothing(executor: Any, display: Any) -> int:
    return 0


def time_stages(num_workers: int) -> dict[str, float]:
    """Seconds until a runtime is there, its first stage is done, and each of some later ones (median)."""
    from worldloop.runtime.progress import SilentDisplay
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
        for _ in range(1 + NUM_STAGES):
            began = time.perf_counter()
            runtime.run_stage(do_nothing, trains=True)
            marks.append(time.perf_counter() - began)
    finally:
        runtime.close()
    return {"ray_starts": marks[0], "first_stage": marks[1], "later_stage": float(np.median(marks[2:]))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--loops", nargs="*", choices=LOOPS, default=list(LOOPS))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/ray_overhead.json")
    options = parser.parse_args()
    result: dict[str, Any] = {"schema_version": 1, "processor": platform.processor() or platform.machine()}
    result |= {"rounds": options.rounds, "stages": {}, "loops": {}}
    for num_workers in (1, 2):
        result["stages"][num_workers] = timed = {k: round(v, 2) for k, v in time_stages(num_workers).items()}
        print(
            f"{num_workers} training worker(s): Ray is there after {timed['ray_starts']:.1f} s, the first stage takes"
        )
        print(f"  {timed['first_stage']:.1f} s, a later one {timed['later_stage']:.2f} s", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="wl-overhead-"))
    try:
        for name in options.loops:
            rounds = [{r: run_loop(name, r, folder) for r in ("inline", "ray")} for _ in range(options.rounds)]
            ratios = sorted(r["ray"]["seconds"] / r["inline"]["seconds"] for r in rounds)
            entry: dict[str, Any] = {"overrides": LOOPS[name], "ratio": round(float(np.median(ratios)), 3)}
            entry |= {"ratio_low": round(ratios[0], 3), "ratio_high": round(ratios[-1], 3)}
            for runtime in ("inline", "ray"):
                for key in ("seconds", "outside_stages"):
                    entry[f"{runtime}_{key}"] = round(float(np.median([r[runtime][key] for r in rounds])), 1)
            result["loops"][name] = entry
            print(
                f"{name}: Ray {entry['ray_seconds']:.1f} s, inline {entry['inline_seconds']:.1f} s, ratio "
                f"{entry['ratio']:.2f} ({entry['ratio_low']:.2f} to {entry['ratio_high']:.2f}); outside stages "
                f"{entry['ray_outside_stages']:.1f} and {entry['inline_outside_stages']:.1f} s",
                flush=True,
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
