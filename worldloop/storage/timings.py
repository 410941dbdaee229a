"""How long each stage of a run took. Without torch, so that the state of a run is told at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worldloop.core.files import malformed, read_json

_REMEDY = "delete it: only the report reads it"
_TIMING = {
    "iteration": int,
    "stage": str,
    "seconds": int | float,
    "peak_memory_mib": int | float,
    "peak_gpu_memory_mib": int | float,
    "finished": str,
}
_SINCE = {"peak_gpu_memory_mib": 0}  # value for stages that were recorded before the key existed


def read_timings(run: Path) -> list[dict[str, Any]]:
    """The entries of ``timings.json`` in the run directory ``run``, [] without one; `WorldloopError` if broken."""
    path = run / "timings.json"
    if not path.exists():
        return []
    value = read_json(path, f"timings {path}", 1, _REMEDY)
    with malformed(f"timings {path}", _REMEDY):
        stages = [_SINCE | entry for entry in value["stages"]]
        for entry in stages:
            for key, kind in _TIMING.items():
                if not isinstance(entry[key], kind):
                    raise TypeError(f"{key} is {entry[key]!r}")
        return [{key: entry[key] for key in _TIMING} for entry in stages]
