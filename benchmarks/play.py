"""How fast is a game inside the world model, as the page plays it, alone and with the simulator beside it?

    python benchmarks/play.py RUN [--device cpu] [--out benchmarks/play.json]

A server of `worldloop play` on the loopback answers one call after the other: a step of one frame, with the pictures
and all figures that the page shows. A game of 40 frames, begun anew until the time is up; the simulator renders every
frame. Rounds take both in turn. RUN: a run directory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import threading
import time
import urllib.request
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from worldloop.play.make import find_simulator, make_play_session
from worldloop.play.server import TOKEN_HEADER, PlayServer

SECONDS, FRAMES = 5.0, 40


def call(server: PlayServer, name: str, **values: Any) -> dict[str, Any]:
    address = f"http://127.0.0.1:{server.port}/api/{name}"
    request = urllib.request.Request(address, json.dumps(values).encode(), {TOKEN_HEADER: server.token})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def play(server: PlayServer, seconds: float) -> float:
    """Frames per second."""
    count, began = 0, time.perf_counter()
    num_actions = len(call(server, "reset", start=0)["actions"])
    while time.perf_counter() - began < seconds:
        step = call(server, "step", action=[0.3, *[0.0] * (num_actions - 1)])
        count += 1
        if len(step["path"]) > FRAMES:
            call(server, "reset", start=0)
    return count / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    simulator = find_simulator(options.run)
    if simulator is None:
        parser.error(f"{options.run} has no simulator to play beside")
    servers = {
        "alone": PlayServer(lambda: make_play_session(options.run, None, options.device)),
        "beside the simulator": PlayServer(lambda: make_play_session(options.run, simulator, options.device)),
    }
    rates: dict[str, list[float]] = {name: [] for name in servers}
    for server in servers.values():
        threading.Thread(target=server.serve_forever, daemon=True).start()
        play(server, 1.0)
    for _ in range(options.rounds):
        for name, server in servers.items():
            rates[name].append(play(server, SECONDS))
    world_model = servers["alone"].session.world_model
    result = {
        "schema_version": 2,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "world_model": {
            "tasks": world_model.spec.task_ids,
            "cameras": [asdict(camera) for camera in world_model.spec.robot.cameras],
            "denoiser": world_model.config.denoiser,  # type: ignore[attr-defined]
        },
        "real_time": world_model.spec.frames_per_second,
        "frames_per_second": {
            name: {"median": float(np.median(v)), "low": min(v), "high": max(v), "n": len(v)}
            for name, v in rates.items()
        },
    }
    for server in servers.values():
        server.shutdown()
        server.close()
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
