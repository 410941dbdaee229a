"""How long does HarmoWAM take to decide a chunk, and which part of it?

    python benchmarks/harmowam.py RUN [--policy CHECKPOINT] [--device cpu] [--out benchmarks/harmowam.json]

One observation of the run's dataset at a time, as in a simulator. Rounds take the parts in turn: the whole decision by
either expert, the planned frames, the planner's tokens, the gate, and each expert alone. ``rate`` is how many chunks
are decided per second; in real time a chunk of H actions takes H / hz seconds. RUN: a run of policy.kind harmowam.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldloop.core.device import choose_device
from worldloop.factory.checkpoints import load_policy
from worldloop.policies.harmowam.policy import HarmoWAM
from worldloop.sans.clips import make_observation
from worldloop.sans.store import SansStore
from worldloop.storage.run_directory import RunDirectory

CALLS = 20  # in a row, of each part and round


def time_calls(call: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of one call."""
    began = time.perf_counter()
    for _ in range(CALLS):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1000 * (time.perf_counter() - began) / CALLS


@torch.no_grad()
def list_parts(policy: HarmoWAM, store: SansStore) -> dict[str, Callable[[], object]]:
    """Name -> a call of that part, on the first frame of the dataset's first episode."""
    cache = store.open_cache(store.version(store.list_versions()[0]))
    seen = make_observation(cache, policy.spec.robot.camera_names, np.array([[0, 0]]))
    device = policy.proprio_mean.device
    tokens, plan = policy._see(seen.to(device)), policy._plan(seen, needs_frames=True)
    video = policy._make_video(seen, plan)

    def decide(share: float) -> object:
        policy.choose = lambda observation, interaction: torch.full_like(interaction, share)  # type: ignore[method-assign]
        return policy.act(seen, None)

    return {
        "predictive, all": lambda: decide(1.0),
        "reactive, all": lambda: decide(0.0),
        "planned frames": lambda: policy._plan(seen, needs_frames=True),
        "planner's tokens": lambda: policy._plan(seen, needs_frames=False),
        "gate": lambda: policy.tell_interaction(seen),
        "predictive expert": lambda: policy._predict(seen, tokens, plan, None),
        "reactive expert": lambda: policy.reactive(video, plan.features),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--policy", default="", help="in the run (default: its current policy)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    state = RunDirectory(options.run).read_state()
    device = choose_device(options.device)
    policy = load_policy(options.run / (options.policy or state.policy)).to(device)
    if not isinstance(policy, HarmoWAM):
        parser.error(f"the policy of {options.run} is no HarmoWAM")
    parts = list_parts(policy, SansStore(options.run / "sans"))
    with torch.no_grad():
        for call in parts.values():
            time_calls(call, device)
        times: dict[str, list[float]] = {name: [] for name in parts}
        for _ in range(options.rounds):
            for name, call in parts.items():
                times[name].append(time_calls(call, device))
    robot = policy.spec.robot
    result: dict[str, Any] = {
        "schema_version": 1,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "device": device.type},
        "cameras": [f"{camera.name} {camera.width} x {camera.height}" for camera in robot.cameras],
        "sampler_steps": policy.planner.config.num_sampler_steps,  # type: ignore[union-attr]
        "real_time_rate": robot.hz / policy.chunk_length,
        "milliseconds": {
            name: {"median": float(np.median(own)), "low": min(own), "high": max(own)} for name, own in times.items()
        },
    }
    result["rate"] = {
        name.removesuffix(", all"): 1000 / float(np.median(own)) for name, own in times.items() if name.endswith("all")
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for name, entry in result["milliseconds"].items():
        print(f"{name:<20}{entry['median']:8.1f} ms ({entry['low']:.1f} to {entry['high']:.1f})")
    print(f"chunks a second: {result['rate']}, real time {result['real_time_rate']:.1f}")


if __name__ == "__main__":
    main()
