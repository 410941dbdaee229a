"""The runtime without Ray: stages run in this process, simulators in a few spawned ones or in this one too."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from worldloop.core.errors import WorldloopError
from worldloop.reporting.progress import Display

SIMULATOR_DIED = (
    "a simulator's process died again and again on the same block (killed, or out of memory); "
    "lower resources.num_simulators or simulator.*.num_envs, then run again: it resumes"
)
_PR_SET_PDEATHSIG = 1


def describe_stuck(timeout_s: float) -> str:
    """What to say of a block that no simulator finished in time."""
    return (
        f"a simulator did not finish a block within {timeout_s:g} s, again and again; "
        "raise resources.block_timeout_s if the simulator is slow, then run again: it resumes"
    )


def _initialise_worker(driver: int) -> None:
    """Make a worker ignore Ctrl-C, and end when the process ``driver`` ends, also if it is killed (Linux)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != driver:  # the driver was killed while this process started
        os._exit(1)


class _StuckError(Exception):
    """No simulator process finished a block in time."""


class InlineRuntime:
    """Runs stages in this process, and simulator work in ``num_simulators`` processes; 0: in this process.

    If a simulator process dies, or none finishes a block within ``block_timeout_s`` (0: no limit), all are started
    again and repeat what is not done, up to ``max_retries`` times per block. Then `map` raises `WorldloopError`.
    """

    def __init__(self, num_simulators: int, max_retries: int, display: Display, block_timeout_s: float = 0.0) -> None:
        self.display = display
        self._num_simulators = num_simulators
        self._max_retries = max_retries
        self._block_timeout_s = block_timeout_s
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
            pool = self._start_pool()
            futures = [pool.submit(function, item) for item in left]
            try:
                for future in futures:
                    self._wait_for(future, futures)
                    result = future.result()
                    left, retries = left[1:], 0
                    yield result
            except (BrokenProcessPool, _StuckError) as error:
                self.close()
                retries += 1
                if retries > self._max_retries:
                    is_stuck = isinstance(error, _StuckError)
                    raise WorldloopError(
                        describe_stuck(self._block_timeout_s) if is_stuck else SIMULATOR_DIED
                    ) from error
            finally:
                for future in futures:
                    future.cancel()

    def _wait_for(self, future: Future[Any], futures: list[Future[Any]]) -> None:
        """Wait until ``future`` is done. Raises `_StuckError` if none of ``futures`` gets done within the limit."""
        while not future.done():
            pending = [other for other in futures if not other.done()]
            done, _ = wait(pending, timeout=self._block_timeout_s or None, return_when=FIRST_COMPLETED)
            if not done:
                raise _StuckError

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
                process.kill()  # one that is stuck in a driver may not answer the first signal
            self._pool = None
