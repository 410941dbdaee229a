"""The state of a run for other processes: ``status.json`` holds the current state, ``logs/`` the history.

A run needs neither to continue, and a failed write does not stop it. ``logs/iteration_NNN_STAGE.jsonl`` has one line
per event, ``{"time", "event", ...}``: begin, log, progress (every `PROGRESS_INTERVAL_S`), traceback, end.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from worldloop.core.files import read_json
from worldloop.reporting.progress import Display

STATUS_INTERVAL_S = 1.0
PROGRESS_INTERVAL_S = 15.0


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
