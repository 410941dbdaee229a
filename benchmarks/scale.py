"""How long does a large dataset take to open, and how much memory do the stages need that read its frames?

    python benchmarks/scale.py make FOLDER --episodes 20000 --size 32
    python benchmarks/scale.py measure FOLDER [--out figures.json]

``make`` writes FOLDER/run with the writers of the loop: scripted episodes of the toy simulator, a quarter held out. A
few hundred are simulated; the rest are those again, each as an episode of its own. ``measure`` runs each stage in a
process of its own:

- ``open``: the dataset's cache is opened, twice: after the files' hashes were forgotten, and again
- ``clone``: `clone_policy` with two optimizer steps on all successes of experts
- ``check``: `check_world_model` of a world model that only repeats its first frame, up to the calibration: whole
  episodes, horizons, and the PSNR of all frames. SSIM and the probe would follow; they hold one block of frames.

Memory is the peak of what the process allocated (RssAnon, asked for every 20 ms), with libraries. Pages of mapped
files do not count: the system takes them back when it needs them. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from worldloop.config.loading import load_config
from worldloop.core.context_frames import NUM_CONTEXT_FRAMES
from worldloop.core.interfaces import ImaginedChunk
from worldloop.core.specs import SimulatorSpec
from worldloop.core.types import Episode, Observation, Split
from worldloop.evaluation.calibration import calibrate
from worldloop.loop.run import make_context
from worldloop.reporting.progress import SilentDisplay
from worldloop.runtime.inline import InlineRuntime
from worldloop.stages import check_world_model, clone_policy
from worldloop.stages.context import StageContext
from worldloop.storage.run_state import LoopState

CONFIG = Path(__file__).resolve().parents[1] / "configs/debug.yaml"
NUM_SIMULATED, EPISODES_PER_SHARD = 256, 1000
VARIANTS = ("expert", "stops_short", "lateral_offset", "expert")
SETTINGS = [
    "runtime=inline",
    "resources.num_simulators=0",
    "clone_policy.num_steps=2",
    "clone_policy.batch_size=16",
    "clone_policy.precision=fp32",
    "policy.token_vla.stem_channels=[16, 16, 16]",
    "check_world_model.probe_steps=0",
]
STAGES = ("imports", "open", "open again", "clone", "check")


class EndOfCheckError(Exception):
    """Ends the check."""


def calibrate_alone(imagined: Any, *others: Any, **settings: Any) -> None:
    calibrate(imagined)
    raise EndOfCheckError


class Still:
    """A world model in which nothing moves."""

    landmarks = None

    def __init__(self, spec: SimulatorSpec) -> None:
        self.spec, self.num_context_frames = spec, NUM_CONTEXT_FRAMES

    def to(self, device: torch.device) -> Still:
        return self

    def for_imagination(self) -> Still:
        return self

    def start(self, observation: Observation, noise_key: Tensor) -> Observation:
        return observation

    def imagine(self, state: Observation, actions: Tensor) -> tuple[Observation, ImaginedChunk]:
        num_frames = actions.shape[1] // self.spec.actions_per_frame
        frames = {c: seen[:, -1:].repeat(1, num_frames, 1, 1, 1) for c, seen in state.frames.items()}
        assert state.proprio is not None
        proprio = state.proprio[:, None].repeat(1, num_frames, 1)
        return state, ImaginedChunk(
            frames, proprio, actions.mean((1, 2))[:, None].repeat(1, num_frames), torch.full(proprio.shape[:2], 20.0)
        )


def open_context(folder: Path, size: int, stage: str) -> StageContext:
    overrides = [*SETTINGS, f"simulator.toy.image_size={size}", f"run_root={folder}", "run_name=run"]
    config, display = load_config(CONFIG, overrides), SilentDisplay()
    return make_context(stage, config, folder / "run", InlineRuntime(0, 0, display), display)


def make(folder: Path, num_episodes: int, size: int) -> None:
    context = open_context(folder, size, "seed_dataset")
    states = context.simulation.initial_states("train", NUM_SIMULATED)
    splits: tuple[Split, ...] = ("train", "train", "train", "validation") * (NUM_SIMULATED // 4)
    variants = VARIANTS * (NUM_SIMULATED // 4)
    simulated = context.simulation.run(
        states, block_size=64, purpose="seed", iteration=0, variants=variants, splits=splits
    )

    def repeat() -> Iterator[Episode]:
        for number in range(num_episodes):
            episode = simulated[number % NUM_SIMULATED]
            name = f"{episode.meta.initial_state_id}-{number // NUM_SIMULATED}"
            yield replace(episode, meta=replace(episode.meta, initial_state_id=name))

    began = time.perf_counter()
    shards = context.store.append_in_blocks(repeat(), "000-scripted", EPISODES_PER_SHARD, context.spec)
    version = context.store.snapshot("v000", shards)
    seconds = time.perf_counter() - began
    about = {"episodes": num_episodes, "frames": version.num_frames, "size": size, "write_s": round(seconds, 1)}
    (folder / "about.json").write_text(json.dumps(about))


def run_stage(folder: Path, size: int, stage: str) -> None:
    """What a process of `measure` does: prints its own seconds, without imports."""
    began = time.perf_counter()
    context = open_context(folder, size, "clone_policy")
    state = LoopState(iteration=1, dataset="v000", world_model="still")
    if stage.startswith("open"):
        context.open_cache("v000")
    elif stage == "clone":
        config = context.config_of(clone_policy.Config)
        clone_policy.imitate(state, config, context, clone_policy.EXPERT_DEMONSTRATIONS, f"clone-{os.getpid()}")
    elif stage == "check":
        models: Any = SimpleNamespace(load_world_model=lambda path: Still(context.spec))
        with suppress(EndOfCheckError), patch.object(check_world_model, "judge_world_model", calibrate_alone):
            check_world_model.run(state, context.config_of(check_world_model.Config), replace(context, models=models))
    print(time.perf_counter() - began)


def measure_stage(folder: Path, size: int, stage: str) -> dict[str, float]:
    """Seconds, and MiB that the process allocated at most."""
    command = [sys.executable, __file__, "stage", str(folder), "--size", str(size), "--stage", stage]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak_kib = 0
    while process.poll() is None:
        peak_kib = max(peak_kib, read_allocated_kib(process.pid))
        time.sleep(0.02)
    assert process.stdout is not None
    lines = process.stdout.read().split()
    if process.returncode:
        raise SystemExit(f"{stage} failed with exit code {process.returncode}")
    return {"seconds": round(float(lines[-1]), 1), "peak_mib": round(peak_kib / 1024)}


def read_allocated_kib(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:"))


def measure(folder: Path, stages: list[str]) -> dict[str, Any]:
    about = json.loads((folder / "about.json").read_text())
    for path in (folder / "run/sans/cache").glob("*.hashes.json"):
        path.unlink()
    figures = {}
    for stage in stages:
        figures[stage] = measure_stage(folder, about["size"], stage)
        print(f"{stage:<11} {figures[stage]['seconds']:8.1f} s {figures[stage]['peak_mib']:7.0f} MiB", flush=True)
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "torch": torch.__version__}
    return {"dataset": about, "stages": figures, "machine": machine}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("make", "measure", "stage"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--episodes", type=int, default=20000)
    parser.add_argument("--size", type=int, default=32, help="pixels, height and width; a multiple of 8")
    parser.add_argument("--stage", default="", help=argparse.SUPPRESS)
    parser.add_argument("--stages", nargs="*", default=list(STAGES), help="to measure, in this order")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    folder = options.folder.resolve()
    if options.action == "make":
        make(folder, options.episodes, options.size)
    elif options.action == "stage":
        run_stage(folder, options.size, options.stage)
    else:
        figures = measure(folder, options.stages)
        if options.out:
            options.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
