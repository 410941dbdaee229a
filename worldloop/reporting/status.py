"""The state of a run for other processes: ``status.json`` holds the current state, ``logs/`` the history.

A run needs neither to continue, and a failed write does not stop it. ``logs/iteration_NNN_STAGE.jsonl`` has one line
per event, ``{"time", "event", ...}``: begin, log, progress (every `PROGRESS_INTERVAL_S`), traceback, end. Nothing here
imports torch, so that `worldloop status` answers at once.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from worldloop.core.errors import WorldloopError
from worldloop.core.files import read_json
from worldloop.reporting.progress import Display, format_minutes
from worldloop.storage.timings import read_timings

STATUS_INTERVAL_S = 1.0
PROGRESS_INTERVAL_S = 15.0
AGAIN = "to continue, run the command again that started it"
SIGN_OF_LIFE_S = 120.0  # after so long without an update a run on another machine may have died


class StatusDisplay:
    """A `Display` that passes everything on to ``inner`` and also writes it to the run directory ``path``."""

    def __init__(self, inner: Display, path: Path) -> None:
        self._inner, self._path = inner, path
        self._status: dict[str, Any] = {"schema_version": 1, "pid": os.getpid(), "host": socket.gethostname()}
        self._log_path: Path | None = None
        self._written = self._logged = 0.0

    def begin(
        self, iteration: int, num_iterations: int, stage: str, number: int, num_stages: int, left: list[str]
    ) -> None:
        """A stage begins. ``number``: its place in the iteration, from 1; ``left``: the stages after it in the loop."""
        self._status |= {"state": "running", "iteration": iteration, "num_iterations": num_iterations, "stage": stage}
        self._status |= {"stage_number": number, "num_stages": num_stages, "stage_began": time.time(), "progress": None}
        self._status["left"] = left
        self._log_path = self._path / "logs" / f"iteration_{iteration:03d}_{stage}.jsonl"
        self._note("begin", iteration=iteration, stage=stage)
        self._write()
        self._inner.log(f"iteration {iteration}/{num_iterations}, stage {number}/{num_stages}: {stage}")

    def finish(self, **figures: float) -> None:
        """The stage is done; ``figures`` go into the log."""
        self._note("end", state="done", **figures)
        self._log_path = None

    def note_traceback(self, text: str) -> None:
        """Log the traceback of an unexpected error."""
        self._note("traceback", text=text)

    def end(self, state: str) -> None:
        """The run is over; ``state`` is ``ended`` (after the last stage), ``stopped``, or an error."""
        self._status |= {"state": state, "progress": None}
        self._note("end", state=state)  # for the running stage, if there is one
        self._write()

    def log(self, line: str) -> None:
        self._note("log", line=line.strip())
        self._inner.log(line)

    def open(self, label: str, total: int, unit: str) -> None:
        self._status["progress"] = {"unit": unit, "count": 0, "total": total, "began": time.time(), "figures": {}}
        self._write()
        self._inner.open(label, total, unit)

    def advance(self, count: int, figures: dict[str, float]) -> None:
        if progress := self._status.get("progress"):
            progress["count"] += count
            progress["figures"] = {name: round(float(value), 6) for name, value in figures.items()}
            now = time.monotonic()
            if now - self._written >= STATUS_INTERVAL_S:
                self._write()
            if now - self._logged >= PROGRESS_INTERVAL_S:
                self._logged = now
                self._note("progress", **{k: progress[k] for k in ("unit", "count", "total", "figures")})
        self._inner.advance(count, figures)

    def close(self) -> None:
        self._status["progress"] = None
        self._inner.close()

    def _write(self) -> None:
        self._written = time.monotonic()
        self._status["updated"] = time.time()
        partial = self._path / ".partial-status.json"
        with suppress(OSError):
            partial.write_text(json.dumps(self._status, indent=1) + "\n")
            partial.rename(self._path / "status.json")

    def _note(self, event: str, **values: Any) -> None:
        if self._log_path is None:
            return
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with suppress(OSError):
            self._log_path.parent.mkdir(exist_ok=True)
            with self._log_path.open("a") as file:
                file.write(json.dumps({"time": now, "event": event, **values}) + "\n")


def read_status(path: Path) -> dict[str, Any] | None:
    """``status.json`` of the run directory ``path``; ``None`` if nothing has run. Raises `WorldloopError` if broken."""
    file = path / "status.json"
    if not file.exists():
        return None
    return read_json(file, f"status {file}", 1, "it is written anew when the run goes on")


def is_alive(status: dict[str, Any]) -> bool | None:
    """Whether the process that wrote ``status`` still runs; ``None`` if it is on another machine."""
    if status["host"] != socket.gethostname():
        return None
    try:
        os.kill(status["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def format_status(run_dir: Path) -> str:
    """What the run in ``run_dir`` is doing, or how it stopped and how to continue it.

    Raises `WorldloopError` if nothing has run there.
    """
    status = read_status(run_dir)
    if status is None:
        missing = "no run directory, or nothing has run in it yet" if run_dir.exists() else "it does not exist"
        raise WorldloopError(f"{run_dir} has no status.json: {missing}")
    now = time.time()
    ago = format_minutes(max(0.0, now - status["updated"]))
    if status["state"] != "running":
        again = "" if status["state"] == "ended" else f"\n{AGAIN}"
        return f"{run_dir}: {status['state']}, {ago} ago{again}"
    alive = is_alive(status)
    if alive is False:
        return f"{run_dir}: its process is gone, last seen {ago} ago\n{AGAIN}"
    lines = [f"{run_dir}: running, process {status['pid']} on {status['host']}"]
    if alive is None and now - status["updated"] > SIGN_OF_LIFE_S:
        lines[0] += f", no sign of life for {ago}"
    lines.append(
        f"iteration {status['iteration']}/{status['num_iterations']}, stage {status['stage_number']}/"
        f"{status['num_stages']}: {status['stage']}, for {format_minutes(now - status['stage_began'])}"
    )
    if progress := status["progress"]:
        lines.append(_bar(progress, now))
    lines.append(_expect(status, read_timings(run_dir), now))
    return "\n".join(lines)


def _bar(progress: dict[str, Any], now: float, width: int = 20) -> str:
    count, total = progress["count"], max(1, progress["total"])
    done = min(width, width * count // total)
    rate = count / max(1e-9, now - progress["began"])
    left = f", {format_minutes((total - count) / rate)} left" if count else ""
    figures = "".join(f", {name} {value:.3f}" for name, value in progress["figures"].items())
    return f"  [{'#' * done}{'-' * (width - done)}] {count}/{total} {progress['unit']}s, {rate:.2g}/s{left}{figures}"


def _expect(status: dict[str, Any], timings: list[dict[str, Any]], now: float) -> str:
    """The time left in the loop if every stage takes as long as the last time."""
    last = {t["stage"]: t["seconds"] for t in timings}
    left = status.get("left", [])
    known = [last[stage] for stage in left if stage in last]
    progress, here = status["progress"], []
    if progress and progress["count"]:
        here.append((progress["total"] - progress["count"]) * (now - progress["began"]) / progress["count"])
    if status["stage"] in last:  # a stage may have several bars; progress is only of the current one
        here.append(max(0.0, last[status["stage"]] - (now - status["stage_began"])))
    seconds = format_minutes(max(here, default=0.0) + sum(known))
    if not here and not left:
        return "the last stage; it has not run before"
    if not here:
        return f"about {seconds} for {len(known)} of {len(left)} stages to come; this one has not run before"
    if len(known) == len(left):
        return f"about {seconds} to the end of the loop, if stages take as long as before"
    if not known:
        return f"{len(left)} stages to come, of which none has run yet"
    return f"about {seconds} for this and {len(known)} of {len(left)} stages to come; the others have not run yet"
