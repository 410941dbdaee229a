"""Peak memory of one stage: of the process that runs it, and of its GPU."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path

import torch

from worldloop.core.types import PeakMemory

MIB = 2**20
_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def begin_peak() -> None:
    """What was held before no longer counts. Where the system cannot forget it (no Linux), it still does."""
    with suppress(OSError):
        _CLEAR.write_text("5")  # man 5 proc: resets VmHWM
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def read_peak() -> PeakMemory:
    """The most that was held at once since `begin_peak`."""
    gpu = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
    try:
        (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        process = int(line.split()[1]) / 1024
    except (OSError, ValueError):
        process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return PeakMemory(process, gpu / MIB)
