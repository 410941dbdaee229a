"""How fast is a world model as an environment, and against what? One table, one JSON file.

    python benchmarks/world_model.py CHECKPOINT ... [--seconds 3] [--rounds 5] [--out benchmarks/world_model.json]

CHECKPOINT is a run directory or a checked world model; its check's figures stand beside its speed. Measured in rounds
that take every row in turn, so that a machine that slows down slows all of them down; a ratio is the median over
rounds of the ratio within each, with its lowest and highest.

- world model (or the names of several checkpoints): steps of `WorldModelVectorEnv` (one frame each) with random
  actions, pixels out, `--threads` threads
- ManiSkill: the first of the same tasks, the same cameras, image sizes and control rate on the CPU, one process per
  thread, the fastest shader, no anti-aliasing; rendering after every action, and only where the world model would give
  a frame
- hybrid, one view | two views: a `VideoWorldModel` at its default size with random weights, imagining a frame of 64 px,
  or one of 64 and one of 48 px together, batch 16
- cosmos, cached | uncached: `CosmosDenoiser` at its default size with random weights, four sampler steps, batch 16: the
  memory of the window carried along, or computed anew at every sampler step as a full-window sampler does
- stock: diffusers' transformer of the same size over the same frames, all denoised at once, with its Euler
  flow-matching scheduler, batch 16
- of 3 | 8: frames that the memory holds, `cosmos.num_context_frames`
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

BATCHES = (1, 16, 128)
COSMOS_BATCH, COSMOS_STEPS = 16, 4
COSMOS_CONTEXTS = (3, 8)
VIEW_BATCH = 16
VIEWS = {"one view": {"base_camera": 64}, "two views": {"base_camera": 64, "hand_camera": 48}}  # pixels per side
HORIZON, HORIZON_BATCH = 60, 16  # frames over which the cost per frame is followed, and in how many rows


def simulate(
    connection: Any, tasks: tuple[str, ...], image_sizes: dict[str, int], actions_per_frame: int, has_frames_only: bool
) -> None:
    """A ManiSkill process: for every number of seconds received, step for so long and send (env steps, seconds)."""
    torch.set_num_threads(1)
    from worldloop.simulators.maniskill.simulator import ManiSkillConfig, ManiSkillSimulator

    s = actions_per_frame if has_frames_only else 1
    config = ManiSkillConfig(
        tasks=tasks,
        view="table" if len(tasks) > 1 else "task",
        cameras=tuple(image_sizes),
        image_sizes=image_sizes,
        actions_per_frame=s,
        backend="cpu",
    )
    simulator = ManiSkillSimulator(config)
    states, robot = simulator.draw_initial_states(tasks[0], "train", 4, seed=0), simulator.spec.robot
    low, high = (torch.tensor(bound) for bound in (robot.action_low, robot.action_high))
    generator = torch.Generator().manual_seed(0)
    connection.send("ready")
    number = 0
    while (seconds := connection.recv()) is not None:
        steps, began = 0, time.perf_counter()
        done = True
        while time.perf_counter() - began < seconds:
            if done:
                number += 1
                simulator.reset(states.select([number % len(states)]))
            actions = low + (high - low) * torch.rand(1, s, len(low), generator=generator)
            done = bool(simulator.step_chunk(actions).done.all())
            steps += s
        connection.send((steps, time.perf_counter() - began))
    simulator.close()


class ManiSkill:
    """Several processes that simulate at the same time."""

    def __init__(self, num_processes: int, *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.connections, self.processes = [], []
        for _ in range(num_processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=simulate, args=(theirs, *arguments), daemon=True)
            process.start()
            self.connections.append(ours)
            self.processes.append(process)
        for connection in self.connections:
            assert connection.recv() == "ready"

    def measure(self, seconds: float) -> float:
        """Environment steps per second of all processes together."""
        for connection in self.connections:
            connection.send(seconds)
        return sum(steps / took for steps, took in (connection.recv() for connection in self.connections))

    def close(self) -> None:
        for connection in self.connections:
            connection.send(None)
        for process in self.processes:
            process.join(20)


def rate(step: Callable[[], int], seconds: float) -> float:
    """What ``step`` counts, per second, with all that it has asked of a GPU."""
    synchronise = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    synchronise()
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        count += step()
    synchronise()
    return count / (time.perf_counter() - began)


def make_env_step(checkpoint: Path, batch: int, device: str) -> tuple[Callable[[], int], Any]:
    """A function that makes one step of ``batch`` rows and returns its environment steps; and the environment."""
    import gymnasium

    import worldloop.envs  # noqa: F401

    env = gymnasium.make_vec(
        "worldloop/WorldModel-v0",
        num_envs=batch,
        checkpoint=checkpoint,
        device=device,
        autoreset_mode="SameStep",  # otherwise a step in ten would imagine nothing
        vectorization_mode="vector_entry_point",
    )
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = itertools.cycle([env.action_space.sample() for _ in range(8)])
    s = env.unwrapped.world_spec.actions_per_frame  # type: ignore[attr-defined]

    def step() -> int:
        env.step(next(actions))
        return batch * s

    return step, env


def make_view_step(image_sizes: dict[str, int], device: torch.device) -> Callable[[], int]:
    """One frame of ``VIEW_BATCH`` rows, of all cameras of ``image_sizes``; returns its number of rows."""
    from worldloop.core.specs import CameraSpec, RobotSpec, SimulatorSpec, TaskSpec
    from worldloop.core.types import Normalisation, Observation
    from worldloop.world_model.config import WorldModelConfig
    from worldloop.world_model.model import VideoWorldModel

    B, proprio_dim, action_dim, s = VIEW_BATCH, 25, 4, 5
    robot = RobotSpec(
        name="any",
        proprio_names=tuple(f"p{i}" for i in range(proprio_dim)),
        action_names=tuple(f"a{i}" for i in range(action_dim)),
        action_low=(-1.0,) * action_dim,
        action_high=(1.0,) * action_dim,
        control_mode="any",
        hz=20.0,
        cameras=tuple(CameraSpec(name, size, size) for name, size in image_sizes.items()),
    )
    task = TaskSpec("any", ("do it",), success_radius_m=0.1, max_episode_steps=50)
    torch.manual_seed(0)
    unit = Normalisation(torch.zeros(proprio_dim), torch.ones(proprio_dim))
    spec = SimulatorSpec(robot, (task,), actions_per_frame=s, simulator_version="1")
    model = VideoWorldModel(WorldModelConfig(), spec, unit).to(device).for_imagination()
    start = Observation(
        {name: torch.randint(256, (B, 3, size, size, 3), dtype=torch.uint8) for name, size in image_sizes.items()},
        torch.zeros(B, proprio_dim),
        (task.id,) * B,
        (task.instruction,) * B,
        torch.zeros(B, dtype=torch.long),
    )
    state, actions = model.start(start, torch.arange(B)), torch.zeros(B, s, action_dim)

    def step() -> int:
        model.imagine(state, actions)
        return B

    return step


def make_cosmos_steps(size: int, num_context_frames: int, device: torch.device) -> dict[str, Callable[[], int]]:
    """One frame of ``COSMOS_BATCH`` rows by the cached, uncached and stock path; each returns its number of frames.

    ``size``: of the one camera, in pixels.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    from worldloop.core.context_frames import shift_frames
    from worldloop.world_model.cosmos import CosmosConfig, CosmosDenoiser
    from worldloop.world_model.denoiser import Conditioning, DenoiserOutput
    from worldloop.world_model.sampler import sample

    B, K = COSMOS_BATCH, num_context_frames
    torch.manual_seed(0)
    config = replace(CosmosConfig(), prediction="velocity", num_context_frames=K)
    denoiser = CosmosDenoiser(config, 3, {"camera": (size, size)}, 25, 4, 5, 32).to(device).eval()
    frames = torch.rand(B, K, 3, size, size, device=device) * 2 - 1
    shapes = (B, 1, 5, 4), (B, 25), (B, 1, 25), (B, 32)
    actions, proprio, next_proprio, instruction = (torch.zeros(shape, device=device) for shape in shapes)
    conditioning = Conditioning(actions, proprio, next_proprio, instruction)
    noise = torch.randn(B, 1, 3, size, size, device=device)
    memory = [denoiser.remember({"camera": frames}, conditioning.instruction)]
    window = [frames]

    def imagine(denoise: Callable[[Any, torch.Tensor], DenoiserOutput]) -> torch.Tensor:
        return sample(denoise, {"camera": noise}, COSMOS_STEPS).data["camera"][:, 0].clamp(-1, 1)

    def cached() -> int:
        def denoise(noisy: Any, t: torch.Tensor) -> DenoiserOutput:
            return denoiser(noisy, t, memory[0], conditioning)

        memory[0] = denoiser.shift(memory[0], {"camera": imagine(denoise)}, conditioning.instruction)
        return B

    def uncached() -> int:
        def denoise(noisy: Any, t: torch.Tensor) -> DenoiserOutput:
            recalled = denoiser.remember({"camera": window[0]}, conditioning.instruction)
            return denoiser(noisy, t, recalled, conditioning)

        window[0] = shift_frames(window[0], imagine(denoise))
        return B

    scheduler: Any = FlowMatchEulerDiscreteScheduler()
    text = conditioning.instruction[:, None]
    mask = torch.ones(B, 1, K + 1, size, size, device=device)
    mask[:, :, -1] = 0
    clean = frames.movedim(1, 2)

    def stock() -> int:
        scheduler.set_timesteps(COSMOS_STEPS, device=device)
        latents = noise.movedim(1, 2)
        for t in scheduler.timesteps:
            times = torch.zeros(B, 1, K + 1, 1, 1, device=device)
            times[:, :, -1] = t / scheduler.config.num_train_timesteps
            video = torch.cat([clean, latents], dim=2)
            output = denoiser.transformer(video, timestep=times, encoder_hidden_states=text, condition_mask=mask).sample
            latents = scheduler.step(output[:, :, -1:], t, latents).prev_sample
        return B

    return {f"cosmos of {K}, cached": cached, f"cosmos of {K}, uncached": uncached, f"cosmos of {K}, stock": stock}


def summarise(values: list[float]) -> dict[str, float]:
    return {"median": float(np.median(values)), "low": min(values), "high": max(values), "n": len(values)}


@torch.no_grad()
def run(options: argparse.Namespace) -> dict[str, Any]:
    from worldloop.core.device import choose_device
    from worldloop.reporting.progress import TerminalDisplay

    torch.set_num_threads(options.threads)
    display = TerminalDisplay()
    device = choose_device(options.device)
    rows: dict[str, Callable[[float], float]] = {}
    envs: dict[str, Any] = {}
    for label, checkpoint in name_checkpoints(options.checkpoints).items():
        for batch in BATCHES:
            step, env = make_env_step(checkpoint, batch, options.device)
            rows[f"{label}, batch {batch}"] = lambda seconds, step=step: rate(step, seconds)  # type: ignore[misc]
            if batch == HORIZON_BATCH:
                envs[label] = env
    spec = next(iter(envs.values())).unwrapped.world_spec
    s = spec.actions_per_frame
    image_sizes = {camera.name: camera.height for camera in spec.robot.cameras}
    simulators = {
        f"ManiSkill, {what}": ManiSkill(options.threads, spec.task_ids, image_sizes, s, has_frames_only)
        for what, has_frames_only in (("every step", False), ("chunk ends", True))
        if options.maniskill
    }
    rows |= {name: simulator.measure for name, simulator in simulators.items()}
    for what, sizes in VIEWS.items():
        step = make_view_step(sizes, device)
        rows[f"hybrid, {what}"] = lambda seconds, step=step: rate(step, seconds)  # type: ignore[misc]
    for context in COSMOS_CONTEXTS:
        for name, step in make_cosmos_steps(max(image_sizes.values()), context, device).items():
            rows[name] = lambda seconds, step=step: rate(step, seconds)  # type: ignore[misc]
    measured: dict[str, list[float]] = {name: [] for name in rows}
    display.open("benchmark", (options.rounds + 1) * len(rows), "measurement")
    for number in range(options.rounds + 1):
        for name, measure in rows.items():
            value = measure(options.seconds)
            display.advance(1, {})
            if number:  # the first round warms up
                measured[name].append(value)
    display.close()
    for simulator in simulators.values():
        simulator.close()

    def ratio(a: str, b: str) -> dict[str, float] | None:
        if a not in measured or b not in measured:
            return None
        return summarise([x / y for x, y in zip(measured[a], measured[b], strict=True)])

    return {
        "schema_version": 3,
        "machine": describe_machine(device, options.threads),
        "tasks": spec.task_ids,
        "cameras": [asdict(camera) for camera in spec.robot.cameras],
        "actions_per_frame": s,
        "world_models": {
            label: {
                "check": read_figures(checkpoint),
                "milliseconds_per_frame_over_horizon": follow_horizon(envs[label]),
            }
            for label, checkpoint in name_checkpoints(options.checkpoints).items()
        },
        "per_second": {name: summarise(values) for name, values in measured.items()},
        "unit": {name: "frames" if name.startswith(("cosmos of", "hybrid,")) else "environment steps" for name in rows},
        "ratios": {
            f"{label} / ManiSkill {what}": ratio(f"{label}, batch {BATCHES[-1]}", f"ManiSkill, {what}")
            for label in envs
            for what in ("every step", "chunk ends")
        }
        | {
            f"cosmos of {K}, cached / {other}": ratio(f"cosmos of {K}, cached", f"cosmos of {K}, {other}")
            for K in COSMOS_CONTEXTS
            for other in ("uncached", "stock")
        }
        | {"hybrid, one view / two views": ratio("hybrid, one view", "hybrid, two views")},
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def follow_horizon(env: Any) -> dict[str, float]:
    """Milliseconds of the first and last ten of ``HORIZON`` frames of one rollout without a reset."""
    simulator = env.unwrapped._simulator
    env.reset(seed=0)
    state = simulator.save().state
    spec = env.unwrapped.world_spec
    actions = torch.zeros(env.num_envs, spec.actions_per_frame, spec.robot.action_dim)
    took = []
    for _ in range(HORIZON):
        began = time.perf_counter()
        state, chunk = simulator.world_model.imagine(state, actions)
        for frames in chunk.frames.values():
            frames.cpu()
        took.append(1000 * (time.perf_counter() - began))
    return {"first_ten": round(float(np.median(took[:10])), 2), "last_ten": round(float(np.median(took[-10:])), 2)}


def describe_machine(device: torch.device, threads: int) -> dict[str, Any]:
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    model = next(
        (line.split(":")[1].strip() for line in _cpu_info() if line.startswith("model name")), platform.machine()
    )
    return {"processor": model, "cores": os.cpu_count(), "threads": threads, "gpu": gpu, "torch": torch.__version__}


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def name_checkpoints(checkpoints: list[Path]) -> dict[str, Path]:
    return {"world model": checkpoints[0]} if len(checkpoints) == 1 else {path.name: path for path in checkpoints}


def read_figures(checkpoint: Path) -> dict[str, Any]:
    """AUC and PSNR of the world model by source, from its card; of several tasks the means."""
    from worldloop.factory.pretrained import find_world_model
    from worldloop.storage.card import read_card

    figures = read_card(find_world_model(checkpoint)).figures
    return {
        source: {"auc": values["auc"], "n": values["n"], "psnr_db": values["psnr_db"]}
        for source, values in figures.items()
        if isinstance(values, dict) and "auc" in values
    }


def show(result: dict[str, Any]) -> None:
    machine = result["machine"]
    sizes = " and ".join(f"{camera['height']} x {camera['width']}" for camera in result["cameras"])
    print(
        f"{', '.join(result['tasks'])}, {sizes} px; "
        f"{machine['gpu'] or machine['processor']}, {machine['threads']} threads"
    )
    for label, values in result["world_models"].items():
        for source, figures in values["check"].items():
            auc = figures["auc"]["value"] if figures["auc"] else float("nan")
            print(f"  {label}, {figures['n']} {source} episodes: AUC {auc:.3f}, PSNR {figures['psnr_db']:.1f} dB")
    print()
    for name, values in result["per_second"].items():
        unit = result["unit"][name]
        line = f"{name:<28}{values['median']:>10,.0f}  ({values['low']:,.0f} to {values['high']:,.0f})"
        imagines = any(name.startswith(f"{label}, batch") for label in result["world_models"])
        frames = f", {values['median'] / result['actions_per_frame']:,.0f} frames" if imagines else ""
        print(f"{line} {unit}/s{frames}")
    print()
    for name, values in result["ratios"].items():
        if values:
            print(f"{name:<40}{values['median']:>8.1f} x  ({values['low']:.1f} to {values['high']:.1f})")
    for label, values in result["world_models"].items():
        first, last = values["milliseconds_per_frame_over_horizon"].values()
        print(f"{label}, ms per frame, batch {HORIZON_BATCH}: first ten {first}, last ten of {HORIZON} {last}")
    print(f"peak memory of this process {result['peak_memory_mib']} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--seconds", type=float, default=3.0, help="per measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--no-maniskill", dest="maniskill", action="store_false")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    result = run(options)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    show(result)


if __name__ == "__main__":
    main()
