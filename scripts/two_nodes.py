"""A Ray cluster of two nodes, each in a network namespace of its own, that loses one of them in every kind of stage.

    sudo python scripts/two_nodes.py [--workers 2] [--out FILE]       # Linux, root, iproute2

The head node has no processors: every simulator, every stage and every training worker is on the other one. That is
killed once in each stage of a shortened loop of configs/debug.yaml, and another takes its place. The loop has to end in
the same results.json, byte for byte, as one without Ray.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NAMES = (f"wl{os.getpid()}a", f"wl{os.getpid()}b")
HEAD, WORKER = "10.213.7.1", "10.213.7.2"
PORT = 6379
SMALL = [
    "num_iterations=1",
    "fit_world_model.num_steps=20",
    "check_world_model.probe_steps=5",
    "improve_policy.num_imitation_steps=20",
]
PATIENCE_S = 1800.0


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@contextmanager
def make_network() -> Iterator[None]:
    """Two namespaces joined by a pair of virtual interfaces, and by nothing else."""
    first, second = NAMES
    try:
        for name in NAMES:
            ip("netns", "add", name)
        ip("link", "add", f"{first}0", "netns", first, "type", "veth", "peer", "name", f"{second}0", "netns", second)
        for name, address in zip(NAMES, (HEAD, WORKER), strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", f"{name}0")
            ip("-n", name, "link", "set", f"{name}0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


class Node:
    """One node of the cluster; all its processes are of one session, which `kill` ends at once."""

    def __init__(self, number: int, arguments: list[str], folder: Path, environment: dict[str, str]) -> None:
        # Ray's own folder apart on each node, as on two machines: a file in it says what the node's address is
        mount = f'mount -t tmpfs none {folder / "ray"} && exec "$@"'
        apart = ["unshare", "-m", "sh", "-c", mount, "sh"] if number else []
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
        command = ["ip", "netns", "exec", NAMES[number], *apart, *ray]
        command += [f"--node-ip-address={(HEAD, WORKER)[number]}", "--disable-usage-stats", *arguments]
        with open(folder / f"node{number}.log", "a") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def kill(self) -> None:
        """SIGKILL to everything in the session: Ray's daemons and every actor, as when a machine loses power."""
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                if int(status.read_text().rpartition(")")[2].split()[3]) == self.process.pid:
                    os.kill(int(status.parent.name), signal.SIGKILL)
            except (OSError, ProcessLookupError):
                continue
        self.process.wait(30)


def drill(folder: Path, num_workers: int) -> dict[str, Any]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    parts = f"num_microbatches={num_workers}"
    loop = [sys.executable, "-m", "worldloop", "run", str(ROOT / "configs/debug.yaml"), *SMALL, parts]
    subprocess.run([*loop, "runtime=inline", f"run_root={folder / 'alone'}"], env=environment, check=True)
    run_dir = folder / "cluster/debug"
    on_ray = [f"resources.num_workers={num_workers}", "resources.num_simulators=2", "resources.cpus_per_simulator=0.5"]
    on_ray += ["runtime=ray", f"resources.ray_address={HEAD}:{PORT}", f"run_root={folder / 'cluster'}"]
    on_ray += ["resources.checkpoint_every_s=1"]
    losses: list[dict[str, Any]] = []
    with ExitStack() as stack:
        stack.enter_context(make_network())

        def start(number: int, *arguments: str) -> Node:
            node = Node(number, list(arguments), folder, environment)
            stack.callback(node.kill)
            return node

        def start_worker() -> Node:
            return start(1, f"--address={HEAD}:{PORT}", f"--num-cpus={num_workers + 1}")

        start(
            0, "--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={folder / 'ray'}"
        )
        time.sleep(10)
        worker = start_worker()
        time.sleep(10)
        with open(folder / "driver.log", "w") as log:
            inside = ["ip", "netns", "exec", NAMES[0], *loop, *on_ray]
            driver = subprocess.Popen(inside, env=environment, stdout=log, stderr=subprocess.STDOUT)
        stack.callback(driver.kill)
        began = time.monotonic()
        while driver.poll() is None and time.monotonic() - began < PATIENCE_S:
            time.sleep(0.02)  # the shortest stage takes some .2 s
            stage = read_stage(run_dir)
            if stage and stage not in [loss["stage"] for loss in losses]:
                worker.kill()
                losses.append({"stage": stage, "seconds": round(time.monotonic() - began, 1)})
                print(f"{losses[-1]['seconds']:6.1f} s: the worker node is lost in {stage}", flush=True)
                worker = start_worker()
        code = driver.poll()
        seconds = round(time.monotonic() - began, 1)
    if code:
        print((folder / "driver.log").read_text()[-2000:], file=sys.stderr)
    same = code == 0 and (run_dir / "results.json").read_bytes() == (folder / "alone/debug/results.json").read_bytes()
    print(f"{len(losses)} losses, {seconds} s, exit {code}, results.json {'as without Ray' if same else 'DIFFERS'}")
    return {"schema_version": 1, "losses": losses, "seconds": seconds, "exit": code, "same_results": same}


def read_stage(run_dir: Path) -> str:
    """The stage that runs and has shown some progress, "" while there is none."""
    try:
        status = json.loads((run_dir / "status.json").read_text())
    except (OSError, ValueError):
        return ""
    progress = status.get("progress")
    return str(status["stage"]) if status.get("state") == "running" and progress is not None else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="data-parallel workers of a training stage")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if os.geteuid() != 0 or not shutil.which("ip"):
        raise SystemExit("network namespaces need root and iproute2")
    folder = Path(tempfile.mkdtemp(prefix="wl-"))  # short: Ray puts sockets below it
    try:
        figures = drill(folder, given.workers)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if given.out:
        given.out.write_text(json.dumps(figures, indent=1) + "\n")
    raise SystemExit(0 if figures["same_results"] else 1)


if __name__ == "__main__":
    main()
