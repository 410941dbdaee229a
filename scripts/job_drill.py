"""Submits a loop to a Ray cluster as a job, stops it in its middle, submits it again, and compares what it found.

    python scripts/job_drill.py [--out FILE]

A cluster of one node on the loopback, for which a token is needed; the toy's loop of configs/debug.yaml, shortened. The
job that was stopped and submitted again has to end in the same results.json, byte for byte, as the loop without Ray.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
# the fit has to last longer than it takes to stop a job
SMALL = ["num_iterations=1", "fit_world_model.num_steps=500", "check_world_model.probe_steps=5"]
STOPPED_IN = "fit_world_model"
PATIENCE_S = 300.0


def find_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@contextmanager
def start_cluster(folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """A head node on the loopback; yields the address that takes jobs."""
    port, dashboard, agent = find_ports(3)
    command = [*RAY, "start", "--head", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1"]
    command += [f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", "--num-cpus=2"]
    command += [f"--dashboard-agent-listen-port={agent}", f"--temp-dir={folder / 'ray'}"]
    with open(folder / "head.log", "w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        address = f"http://127.0.0.1:{dashboard}"
        wait_for("the cluster", lambda: run(["job", "list", "--address", address], environment).returncode == 0)
        yield address
    finally:
        head.terminate()
        head.wait(30)


def run(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*RAY, *arguments], env=environment, capture_output=True, text=True, timeout=120)


def wait_for(what: str, is_so: Any) -> float:
    began = time.monotonic()
    while not is_so():
        if time.monotonic() - began > PATIENCE_S:
            raise SystemExit(f"waited {PATIENCE_S:.0f} s for {what}")
        time.sleep(0.5)
    return time.monotonic() - began


def drill(folder: Path) -> dict[str, Any]:
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"  # as an activated one is
    with_token = environment | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    configs = ROOT / "configs"
    loop = ["worldloop", "run", "debug.yaml", *SMALL]
    inline = [*loop, "runtime=inline", f"run_root={folder / 'alone'}"]
    alone = subprocess.run(inline, env=environment, cwd=configs)
    if alone.returncode:
        raise SystemExit("the loop without Ray failed")
    run_dir = folder / "jobs/debug"
    figures: dict[str, Any] = {"schema_version": 1}
    with start_cluster(folder, with_token) as address:

        def submit(name: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
            options = ["--address", address, "--no-wait", "--submission-id", name, "--working-dir", str(configs)]
            entry = [*loop, "runtime=ray", f"run_root={folder / 'jobs'}"]
            return run(["job", "submit", *options, "--", *entry], env)

        def status(name: str) -> str:
            said = run(["job", "status", "--address", address, name], with_token)
            shown = (said.stdout + said.stderr).upper()
            return next((s for s in ("SUCCEEDED", "FAILED", "STOPPED", "RUNNING", "PENDING") if s in shown), shown)

        refused = submit("stranger", with_token | {"RAY_AUTH_TOKEN_PATH": "", "RAY_AUTH_TOKEN": secrets.token_hex(32)})
        figures["wrong_token_refused"] = refused.returncode != 0
        print(f"a wrong token: {'refused' if refused.returncode else 'ACCEPTED'}", flush=True)
        if submit("first", with_token).returncode:
            raise SystemExit("the job was not taken")

        def is_there() -> bool:
            state = run_dir / "state.json"
            return state.exists() and json.loads(state.read_text())["next_stage"] == STOPPED_IN

        figures["seconds_to_stop"] = round(wait_for(f"stage {STOPPED_IN}", is_there), 1)
        run(["job", "stop", "--address", address, "first"], with_token)
        wait_for("the job to stop", lambda: status("first") not in ("RUNNING", "PENDING"))
        figures["first_job"] = status("first")
        figures["stopped_in"] = json.loads((run_dir / "state.json").read_text())["next_stage"]
        print(f"stopped in {figures['stopped_in']}", flush=True)
        submit("second", with_token)
        figures["seconds_to_end"] = round(
            wait_for("the end", lambda: status("second") not in ("RUNNING", "PENDING")), 1
        )
        figures["second_job"] = status("second")
        print(f"submitted again: {figures['second_job']}", flush=True)
    same = (run_dir / "results.json").read_bytes() == (folder / "alone/debug/results.json").read_bytes()
    figures["same_results"] = same
    print(f"results.json {'as without Ray, byte for byte' if same else 'DIFFERS from that without Ray'}", flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    folder = Path(tempfile.mkdtemp(prefix="wl-"))  # short: Ray puts sockets below it
    try:
        figures = drill(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if out:
        out.write_text(json.dumps(figures, indent=1) + "\n")
    expected = {"wrong_token_refused": True, "first_job": "STOPPED", "second_job": "SUCCEEDED", "same_results": True}
    raise SystemExit(0 if expected.items() <= figures.items() else 1)


if __name__ == "__main__":
    main()
