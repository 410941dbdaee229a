"""Peak memory of one stage: of the process that runs it, and of its GPU."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path

import torch

from worldloop.storage.run_directory import PeakMemory

MIB = 2**20
_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def begin_peak() -> None:
    """Reset the peaks. Without Linux, the process's peak cannot be reset and includes earlier use."""
    with suppress(OSError):
        _CLEAR.write_text("5")  # man 5 proc: resets VmHWM
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def read_peak() -> PeakMemory:
    """Peak memory since `begin_peak` in MiB, of this process and of its GPU."""
    gpu = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
    try:
        (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        process = int(line.split()[1]) / 1024
    except (OSError, ValueError):
        process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return PeakMemory(process, gpu / MIB)
