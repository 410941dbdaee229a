"""The runtime without Ray: stages run in this process, simulators in a few spawned ones or in this one too."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from worldloop.core.errors import WorldloopError
from worldloop.reporting.progress import Display

SIMULATOR_DIED = (
    "a simulator's process died again and again on the same block (killed, or out of memory); "
    "lower resources.num_simulators or simulator.*.num_envs, then run again: it resumes"
)
_PR_SET_PDEATHSIG = 1


def _initialise_worker(driver: int) -> None:
    """Make a worker ignore Ctrl-C, and end when the process ``driver`` ends, also if it is killed (Linux)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != driver:  # the driver was killed while this process started
        os._exit(1)


class InlineRuntime:
    """Runs stages in this process, and simulator work in ``num_simulators`` processes; 0: in this process.

    If a simulator process dies, all are started again and repeat what is not done, up to ``max_retries`` times per
    block. Then `map` raises `WorldloopError`.
    """

    def __init__(self, num_simulators: int, max_retries: int, display: Display) -> None:
        self.display = display
        self._num_simulators = num_simulators
        self._max_retries = max_retries
        self._pool: ProcessPoolExecutor | None = None

    def run_stage(self, function: Callable[..., Any], *arguments: Any, trains: bool = False) -> Any:
        """``function(*arguments, executor, display)`` in this process, whether or not the stage ``trains``."""
        return function(*arguments, self, self.display)

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """Results in the order of ``items``; a worker's exception is raised here."""
        if self._num_simulators == 0:
            yield from map(function, items)
            return
        left = list(items)
        retries = 0
        while left:
            try:
                for result in self._start_pool().map(function, left):
                    left, retries = left[1:], 0
                    yield result
            except BrokenProcessPool as error:
                self.close()
                retries += 1
                if retries > self._max_retries:
                    raise WorldloopError(SIMULATOR_DIED) from error

    def _start_pool(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(
                self._num_simulators, mp_context=context, initializer=_initialise_worker, initargs=(os.getpid(),)
            )
        return self._pool

    def close(self) -> None:
        """End the workers at once. Work that they have not finished is dropped."""
        if self._pool is not None:
            processes = list((self._pool._processes or {}).values())
            self._pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
            for process in processes:
                process.join(timeout=2)
            self._pool = None
