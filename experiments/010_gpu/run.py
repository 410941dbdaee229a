"""Experiment 010: how far can a larger world model be trusted after ten minutes on one GPU?

    python experiments/010_gpu/run.py pack RUN PACK               # here: a run's dataset as one file of some 30 MB
    python experiments/010_gpu/run.py fit PACK OUT MINUTES [key=value ...]   # there: OUT/result.json
    python experiments/010_gpu/run.py report OUT/result.json       # result.json here

RUN is that of experiment 006 on PushCube-v1; ``fit`` takes ``configs/pushcube_gpu.yaml``'s world model, measures how
long a step takes, and fits for as many steps as fill MINUTES. It needs no ray, mani_skill or lerobot.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from worldloop.config.loading import load_config
from worldloop.core.interfaces import WorldModel
from worldloop.sans.cache import CachePart, open_part
from worldloop.sans.store import SansStore, ShardRef
from worldloop.stages import fit_world_model
from worldloop.stages.context import StageContext
from worldloop.storage.run_state import LoopState

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from common import CONFIGS, open_context, run_stage  # noqa: E402

VERSION = "v001"
OVERRIDES = ["runtime=inline", "check_world_model.reset_every=[1,2,4]", "check_world_model.required_auc=0"]
TRIAL_STEPS = (10, 60)  # of the fits that are timed
BATCHES = (1, 64, 1024)  # rows imagined at once
BARS = {"on_policy_auc": 0.97, "on_policy_psnr_db": 28.0}  # what issue 3 of the project asks for


def pack(run: Path, path: Path) -> None:
    """The decoded cache of the version and its description; shards, from which it was made, stay behind."""
    partial = path.with_name(path.name + ".part")
    with tarfile.open(partial, "w:xz", preset=6) as tar:
        tar.add(run / "sans/versions", "sans/versions")
        tar.add(run / "sans/cache", "sans/cache")
    partial.rename(path)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


class CacheStore(SansStore):
    """A dataset of which only the decoded cache is there, without the shards to compare it with."""

    def open_shard(self, ref: ShardRef) -> CachePart:
        part = open_part(self.cache_root, ref, self._hashes(ref))
        if part is None:
            raise SystemExit(f"the cache of {ref.name} is missing or damaged: unpack it again")
        return part


def open_pack(directory: Path, overrides: list[str]) -> StageContext:
    config = load_config(CONFIGS / "pushcube_gpu.yaml", [*OVERRIDES, *overrides])
    return replace(open_context(config, directory, "gpu"), store=CacheStore(directory / "sans"))


def time_step(context: StageContext) -> float:
    """Seconds per step of fitting with self-rollout, from two fits of different length that are thrown away."""

    def seconds(num_steps: int) -> float:
        settings = context.config_of(fit_world_model.Config)
        config = replace(settings, num_steps=num_steps, num_proprio_steps=0, self_rollout_start=0)
        begin = time.perf_counter()
        fit_world_model.run(LoopState(iteration=1, dataset=VERSION), config, context)
        return time.perf_counter() - begin

    few, many = TRIAL_STEPS
    seconds(few)  # warms up
    return max(seconds(many) - seconds(few), 1e-6) / (many - few)


def fit(path: Path, out: Path, minutes: float, overrides: list[str]) -> None:
    if (out / "result.json").exists():
        raise SystemExit(f"{out} has a result already")
    shutil.rmtree(out / "run", ignore_errors=True)
    directory = out / "run"
    directory.mkdir(parents=True)
    with tarfile.open(path) as tar:
        tar.extractall(directory, filter="data")
    step_s = time_step(open_pack(directory, overrides))
    overrides = [f"fit_world_model.num_steps={max(1, int(minutes * 60 / step_s))}", *overrides]
    context = open_pack(directory, overrides)
    settings = context.config_of(fit_world_model.Config)
    cuda = context.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    begin = time.time()
    state = run_stage("fit_world_model", LoopState(iteration=1, dataset=VERSION), context)
    fit_s = time.time() - begin
    memory = torch.cuda.max_memory_allocated() / 2**30 if cuda else None
    begin = time.time()
    state = run_stage("check_world_model", state, context)
    record = state.records[1]
    world_model = context.models.load_world_model(state.world_model).to(context.device)
    parameters = sum(p.numel() for p in world_model.parameters())
    world_model = world_model.for_imagination()
    result = {
        "schema_version": 1,
        "overrides": [*OVERRIDES, *overrides],
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or "cpu",
        "torch": torch.__version__,
        "parameters": parameters,
        "seconds_per_step": round(step_s, 5),
        "fit_steps": settings.num_steps,
        "proprio_steps": settings.num_proprio_steps,
        "fit_seconds": round(fit_s, 1),
        "check_seconds": round(time.time() - begin, 1),
        "peak_memory_gib": None if memory is None else round(memory, 2),
        "imagined_frames_per_s": measure_imagination(world_model, context),
        "reward_alignment": record["reward_alignment"],
        "world_model_check": record["world_model_check"],
        "bars": BARS,
    }
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    show(result)


def measure_imagination(world_model: WorldModel, context: StageContext) -> dict[str, float]:
    """Frames per second by rows imagined at once: ten frames each, the median of five calls after one."""
    dataset = context.open_clips(VERSION, "validation", world_model.spec)
    speeds = {}
    for rows in BATCHES:
        index = dataset.candidates[torch.arange(rows) % len(dataset.candidates)]
        state = world_model.start(dataset.observation(index), torch.arange(rows))
        actions = dataset.load(index, 1).actions.flatten(1, 2).repeat(1, 10, 1)
        seconds = []
        for _ in range(6):
            begin = time.perf_counter()
            _, chunk = world_model.imagine(state, actions)
            for frames in chunk.frames.values():
                frames.cpu()
            seconds.append(time.perf_counter() - begin)
        speeds[str(rows)] = round(rows * 10 / sorted(seconds[1:])[2], 1)
    return speeds


def show(result: dict[str, Any]) -> None:
    for name in ("device", "parameters", "fit_steps", "fit_seconds", "check_seconds", "peak_memory_gib"):
        print(f"{name}: {result[name]}")
    print("imagined frames/s by rows:", result["imagined_frames_per_s"])
    for source, alignment in result["reward_alignment"].items():
        check = result["world_model_check"][source]
        print(f"{source}: n {alignment['n']}, auc {alignment['auc']}, psnr_db {check['psnr_db']['mean']}")


def report(path: Path) -> None:
    result = json.loads(path.read_text())
    (HERE / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    show(result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("pack")
    command.add_argument("run", type=Path)
    command.add_argument("path", type=Path)
    command = commands.add_parser("fit")
    command.add_argument("path", type=Path)
    command.add_argument("out", type=Path)
    command.add_argument("minutes", type=float, help="of fitting; proprio and check left out")
    command.add_argument("overrides", nargs="*")
    commands.add_parser("report").add_argument("path", type=Path)
    given = parser.parse_args()
    if given.command == "pack":
        pack(given.run, given.path)
    elif given.command == "fit":
        fit(given.path, given.out, given.minutes, given.overrides)
    else:
        report(given.path)


if __name__ == "__main__":
    main()
