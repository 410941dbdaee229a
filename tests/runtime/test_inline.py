"""Simulator work in processes of this machine: order, and what becomes of it when a process dies."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from worldloop.core.errors import WorldloopError
from worldloop.reporting.progress import TerminalDisplay
from worldloop.runtime.inline import InlineRuntime


def die_until(item: tuple[int, Path, int]) -> int:
    """Squares ``number``; item 2 kills its process instead the first ``times`` times."""
    number, folder, times = item
    if number == 2:
        died = len(list(folder.iterdir()))
        if died < times:
            (folder / str(died)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return number**2


@pytest.mark.parametrize(("driver", "code"), [("os.getppid()", 0), ("os.getpid()", 1)])
def test_a_worker_whose_driver_is_gone_already_ends(driver: str, code: int) -> None:
    program = f"import os; from worldloop.runtime.inline import _initialise_worker; _initialise_worker({driver})"
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == code


@pytest.mark.parametrize("workers", [0, 2])
def test_map_keeps_the_order(workers: int) -> None:
    runtime = InlineRuntime(workers, 0, TerminalDisplay())
    assert list(runtime.map(abs, [-3, 1, -2, 5])) == [3, 1, 2, 5]
    runtime.close()


def test_a_block_whose_process_died_is_done_again(tmp_path: Path) -> None:
    runtime = InlineRuntime(2, 2, TerminalDisplay())
    items = [(number, tmp_path, 2) for number in range(6)]
    assert list(runtime.map(die_until, items)) == [0, 1, 4, 9, 16, 25]
    assert len(list(tmp_path.iterdir())) == 2
    runtime.close()


def test_a_block_that_always_kills_its_process_is_one_clear_error(tmp_path: Path) -> None:
    runtime = InlineRuntime(1, 1, TerminalDisplay())
    results = runtime.map(die_until, [(number, tmp_path, 100) for number in range(4)])
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(WorldloopError, match="died again and again on the same block"):
        next(results)
    assert len(list(tmp_path.iterdir())) == 2
    runtime.close()


def hang_until(item: tuple[int, Path, int]) -> int:
    """Squares ``number``; item 2 hangs instead the first ``times`` times."""
    number, folder, times = item
    if number == 2:
        hung = len(list(folder.iterdir()))
        if hung < times:
            (folder / str(hung)).touch()
            time.sleep(600)
    return number**2


def test_a_block_that_is_stuck_is_done_again(tmp_path: Path) -> None:
    runtime = InlineRuntime(2, 2, TerminalDisplay(), block_timeout_s=4)
    assert list(runtime.map(hang_until, [(number, tmp_path, 1) for number in range(4)])) == [0, 1, 4, 9]
    runtime.close()


def test_a_block_that_is_always_stuck_is_one_clear_error(tmp_path: Path) -> None:
    runtime = InlineRuntime(1, 1, TerminalDisplay(), block_timeout_s=4)
    results = runtime.map(hang_until, [(number, tmp_path, 100) for number in range(4)])
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(WorldloopError, match="not finish a block within 4 s, again and again"):
        next(results)
    assert len(list(tmp_path.iterdir())) == 2
    runtime.close()
