"""Kill a loop at every durable write it makes, one after the other, and see whether it ends as if nothing had happened.

    python scripts/fault_drill.py [--iterations 1] [--out fault_drill.json]

The debug loop (toy simulator, no Ray) runs in a child process that kills itself with SIGKILL just before, and in the
next life just after, each rename that makes a file or folder final: every place where a stage, a shard, a checkpoint,
what a training stage has done so far or the run's own state becomes durable. Each time the same command goes on. At
the end ``results.json`` has to be that of an uninterrupted run byte for byte, every shard has to match its hash, and
nothing half-written may lie about.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    "resources.checkpoint_every_s=1e-9",  # what a training stage has done is written down after every step
    "clone_policy.num_steps=3",
    "fit_world_model.num_proprio_steps=2",
    "fit_world_model.num_steps=3",
    "fit_world_model.num_refit_steps=3",
    "improve_policy.num_imitation_steps=2",
    "improve_policy.num_updates=2",
    "improve_policy.num_candidates=2",
)
LIVE = {"status.json"}  # only for watching: a run goes on without it


def live(run_root: str, iterations: int, died_at: list[tuple[str, ...]] | None, report: Any) -> None:
    """Run the loop until the first rename that is not in ``died_at``, and die there; ``None``: live to the end."""
    import worldloop.reporting.status as status
    from worldloop.config.loading import load_config
    from worldloop.loop.run import run_loop

    rename = Path.rename
    where = [""]
    begin = status.StatusDisplay.begin

    def remember_stage(self: Any, iteration: int, of: int, stage: str, *rest: Any) -> None:
        where[0] = f"{iteration} {stage}"
        begin(self, iteration, of, stage, *rest)

    def deadly_rename(self: Path, target: Any) -> Path:
        name = os.path.relpath(target, run_root)
        if Path(name).name in LIVE or ".old-" in name:
            return rename(self, target)
        for moment in ("before", "after"):
            if moment == "after":
                result = rename(self, target)
            point = (where[0], name, moment)
            if died_at is not None and point not in died_at:
                report.send(point)
                os.kill(os.getpid(), signal.SIGKILL)
        return result

    status.StatusDisplay.begin = remember_stage  # type: ignore[assignment]
    Path.rename = deadly_rename  # type: ignore[assignment]
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    run_loop(load_config(ROOT / "configs/debug.yaml", [f"run_root={run_root}", f"num_iterations={iterations}", *SMALL]))


def run_child(run_root: Path, iterations: int, died_at: list[tuple[str, ...]] | None) -> tuple[int | None, Any]:
    """The exit code of one life, and where it ended if it was killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["worldloop.loop.run", "worldloop.config.loading"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=live, args=(str(run_root), iterations, died_at, theirs))
    process.start()
    theirs.close()
    process.join(300)
    try:
        point = ours.recv() if ours.poll() else None
    except EOFError:
        point = None
    return process.exitcode, point


def find_leftovers(run: Path) -> list[str]:
    return sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.name.startswith((".partial-", ".old-", ".tmp")))


def drill(iterations: int, folder: Path) -> dict[str, Any]:
    from worldloop.sans.store import SansStore

    code, _ = run_child(folder / "whole", iterations, None)
    assert code == 0, f"the uninterrupted loop ended with {code}"
    deaths: list[tuple[str, ...]] = []
    began = time.monotonic()
    while True:
        code, point = run_child(folder / "killed", iterations, deaths)
        if code == 0:
            break
        if code != -signal.SIGKILL or point is None:
            raise SystemExit(f"after {len(deaths)} deaths, the last at {deaths[-1:]}, a life ended with {code}")
        deaths.append(tuple(point))
        print(f"{len(deaths):4}  {point[0]:<22} {point[2]:<6} {point[1]}", flush=True)
    whole, killed = folder / "whole/debug", folder / "killed/debug"
    store = SansStore(killed / "sans")
    for name in store.list_versions():
        store.verify(store.version(name))
    by_stage: dict[str, int] = {}
    for where, _, _ in deaths:
        by_stage[where] = by_stage.get(where, 0) + 1
    return {
        "schema_version": 1,
        "iterations": iterations,
        "deaths": len(deaths),
        "deaths_by_stage": by_stage,
        "same_results": (whole / "results.json").read_bytes() == (killed / "results.json").read_bytes(),
        "same_versions": SansStore(whole / "sans").list_versions() == store.list_versions(),
        "leftovers": find_leftovers(killed),
        "minutes": round((time.monotonic() - began) / 60, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = Path(tempfile.mkdtemp(prefix="wl-drill-"))
    try:
        result = drill(options.iterations, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    if not (result["same_results"] and result["same_versions"] and not result["leftovers"]):
        raise SystemExit("the loop did not end as if nothing had happened")


if __name__ == "__main__":
    main()
