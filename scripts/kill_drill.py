"""Kill the driver, the stage's actor or a simulator of a loop under Ray at random moments, and see what it ends in.

    python scripts/kill_drill.py [--loop toy|maniskill] [--workers 1] [--kills 20] [--seed 0] [--out FILE]

Each kill is a SIGKILL to one process, a moment after a stage has begun: every stage of the loop in turn, and the
process and the moment are drawn by the seed. A driver that is killed, or that gave up, is started again by the same
command; what dies below it the loop has to replace by itself. A loop that ended is begun anew until all kills are done;
each has to end in the same ``results.json``, byte for byte, as one without Ray that nothing happened to. With several
training workers, one of them is what dies in place of the stage's actor.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 300.0
COMMON = ["num_iterations=1", "resources.num_simulators=2", "resources.checkpoint_every_s=2", "resources.max_retries=5"]
SEED_EPISODES = {"expert": 6, "stops_short": 8, "lateral_offset": 8, "grazing": 4, "too_high": 4}
LOOPS: dict[str, tuple[str, float, list[str]]] = {  # config, longest wait within a stage in seconds, overrides
    "toy": ("debug", 3.0, [*COMMON, "fit_world_model.num_steps=200", "improve_policy.num_updates=12"]),
    "maniskill": (
        "pushcube_cpu",
        8.0,
        [
            *COMMON,
            "resources.num_threads=1",
            *(f"seed_dataset.episodes.{name}={count}" for name, count in SEED_EPISODES.items()),
            *(f"seed_dataset.episodes.{name}=4" for name in ("late", "noisy", "far")),
            "seed_dataset.validation_share=0.3",
            "seed_dataset.block_size=4",
            "clone_policy.num_steps=60",
            "fit_world_model.num_steps=60",
            "fit_world_model.num_proprio_steps=60",
            "check_world_model.probe_steps=20",
            "check_world_model.required_auc=0",
            "improve_policy.num_updates=6",
            "improve_policy.groups_per_update=6",
            "improve_policy.group_size=4",
            "improve_policy.num_imitation_steps=60",
            "evaluate_policy.num_states=12",
            "check_closed_loop.num_states=4",
            "check_closed_loop.num_training_states=2",
            "check_closed_loop.group_size=2",
            "check_closed_loop.required_auc=0",
            "promote_policy.num_states=8",
            "promote_policy.max_states=16",
            "promote_policy.states_per_look=8",
            "collect_episodes.num_episodes=16",
        ],
    ),
}
VICTIMS = ("driver", "stage", "simulator")
ACTORS = {"stage": ("ray::_StageActor", "ray::RayTrainWorker"), "simulator": ("ray::_SimulatorActor",)}


class Loop:
    """``worldloop run`` in a process of its own, with a Ray of its own."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.log = log
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        with log.open("a") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "worldloop", "run", *command], env=environment, stdout=file, stderr=file
            )

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def can_be_killed(self) -> bool:
        """Or has ended: its actors are there."""
        return self.has_ended() or bool(self.find("simulator"))

    def below(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def find(self, victim: str) -> list[psutil.Process]:
        """The processes that ``victim`` names, in the order in which they were started."""
        if victim == "driver":
            return [psutil.Process(self.process.pid)]
        found = [process for process in self.below() if title(process).startswith(ACTORS[victim])]
        return sorted(found, key=lambda process: (process.create_time(), process.pid))

    def kill_driver(self) -> list[str]:
        """Kill it; returns those of the processes below it that did not go by themselves within ten seconds."""
        below = self.below()
        names = {process: title(process) for process in below}
        self.process.kill()
        self.process.wait()
        _, alive = psutil.wait_procs(below, timeout=10)
        for process in alive:
            process.kill()
        psutil.wait_procs(alive, timeout=10)
        return [names[process] for process in alive]


def title(process: psutil.Process) -> str:
    try:
        name = " ".join(process.cmdline()).split()[0]
        return Path(name).name if name.startswith("/") else name
    except (psutil.Error, IndexError):
        return ""


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def read_stage(run: Path) -> str:
    try:
        status = json.loads((run / "status.json").read_text())
        return f"{status['iteration']} {status['stage']}"
    except (OSError, ValueError, KeyError):
        return "start"


class Drill:
    """All kills of one seed, over as many loops as they take."""

    def __init__(self, loop_name: str, num_workers: int, num_kills: int, seed: int, folder: Path) -> None:
        self.config, self.longest_s, self.overrides = LOOPS[loop_name]
        self.on_ray: list[str] = []
        if num_workers > 1:
            self.overrides = [*self.overrides, f"num_microbatches={num_workers}"]
            self.on_ray = [f"resources.num_workers={num_workers}", f"resources.trainer_cpus={1 / num_workers**2}"]
        self.base = [str(ROOT / f"configs/{self.config}.yaml"), *self.overrides]
        self.folder, self.num_kills, self.rng = folder, num_kills, random.Random(seed)
        self.kills: list[dict[str, Any]] = []
        self.same: list[bool] = []
        self.num_given_up = 0
        self.left_behind: list[str] = []

    def run(self) -> None:
        alone = self.folder / "alone.log"
        if Loop([*self.base, "runtime=inline", f"run_root={self.folder / 'alone'}"], alone).process.wait():
            raise SystemExit("the loop without Ray failed:\n" + alone.read_text()[-2000:])
        expected = (self.folder / f"alone/{self.config}/results.json").read_bytes()
        while len(self.kills) < self.num_kills:
            number = len(self.same)
            self.run_loop(number)
            run = self.folder / f"run_{number}/{self.config}"
            self.same.append((run / "results.json").read_bytes() == expected)
            print(f"loop {number} ended, results.json {'the same' if self.same[-1] else 'DIFFERS'}", flush=True)

    def run_loop(self, number: int) -> None:
        """One loop to its end, and kills on the way while there are any left."""
        command = [*self.base, *self.on_ray, "runtime=ray", f"run_root={self.folder / f'run_{number}'}"]
        run, killed_in = self.folder / f"run_{number}/{self.config}", {"start"}
        log = self.folder / f"run_{number}.log"
        loop = Loop(command, log)
        try:
            while loop.process.poll() != 0:
                if loop.has_ended():
                    self.num_given_up += 1
                    if self.num_given_up > self.num_kills:
                        raise SystemExit(f"the loop gives up again and again:\n{log.read_text()[-2000:]}")
                    loop = Loop(command, log)
                if len(self.kills) >= self.num_kills:
                    if not wait_for(loop.has_ended, PATIENCE_S):
                        raise SystemExit(f"the loop hangs:\n{log.read_text()[-2000:]}")
                    continue
                wait_for(lambda loop=loop: loop.has_ended() or read_stage(run) not in killed_in, PATIENCE_S)  # type: ignore[misc]
                killed_in.add(read_stage(run))
                delay = self.rng.uniform(0, self.longest_s)
                wait_for(loop.can_be_killed, PATIENCE_S)
                if not wait_for(loop.has_ended, delay):
                    loop = self.kill(loop, command, number, delay)
        finally:  # also where the drill is interrupted
            if not loop.has_ended():
                loop.kill_driver()

    def kill(self, loop: Loop, command: list[str], number: int, delay: float) -> Loop:
        """Kill one process of ``loop``; returns the loop that goes on."""
        victim = self.rng.choice(VICTIMS)
        if not (found := loop.find(victim)):
            return loop
        where = read_stage(self.folder / f"run_{number}/{self.config}")
        self.kills.append({"loop": number, "victim": victim, "in": where, "after_s": round(delay, 1)})
        print(f"{len(self.kills):4}  {victim:<10} {where}", flush=True)
        if victim == "driver":
            self.left_behind += loop.kill_driver()
            return Loop(command, loop.log)
        self.rng.choice(found).send_signal(signal.SIGKILL)
        return loop

    def count(self, key: str) -> dict[str, int]:
        return count([kill[key] for kill in self.kills])


def count(values: list[str]) -> dict[str, int]:
    return {value: values.count(value) for value in sorted(set(values))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loop", choices=LOOPS, default="toy")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="wl-kill-"))
    began = time.monotonic()
    try:
        drill = Drill(options.loop, options.workers, options.kills, options.seed, folder)
        drill.run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    result = {
        "schema_version": 1,
        "loop": options.loop,
        "num_workers": options.workers,
        "seed": options.seed,
        "num_kills": len(drill.kills),
        "by_victim": drill.count("victim"),
        "by_stage": drill.count("in"),
        "loops": len(drill.same),
        "same_results": drill.same,
        "drivers_that_gave_up": drill.num_given_up,
        "left_behind_by_a_killed_driver": count(drill.left_behind),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "overrides": drill.overrides,
        "kills": drill.kills,
    }
    print(json.dumps({k: v for k, v in result.items() if k not in ("kills", "overrides")}, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    raise SystemExit(0 if all(drill.same) else 1)


if __name__ == "__main__":
    main()
