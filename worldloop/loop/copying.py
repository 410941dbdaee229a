"""Copies of a run to its mirror: after every stage, and what a long stage keeps while it runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from worldloop.config.schema import LoopConfig
from worldloop.core.errors import first_line
from worldloop.core.interrupts import end_grace
from worldloop.reporting.progress import Display
from worldloop.storage.mirror import Mirror
from worldloop.storage.mirror_upload import CancelledError
from worldloop.storage.object_store import StoreError
from worldloop.storage.snapshot import Files

LAST_COPY_S = 15.0  # how long a run that a signal ends still copies; schedulers kill half a minute after SIGTERM
_END_S = 2.0  # how long the end of a stage waits for a copy that was given up


class RunCopier:
    """Copies the run in ``path`` to ``config.mirror``; without one it does nothing."""

    def __init__(self, config: LoopConfig, path: Path, display: Display) -> None:
        self._mirror = Mirror(config.mirror, config.run_name) if config.mirror else None
        self._path, self._display = path, display
        self._every_s = config.resources.checkpoint_every_s

    @contextmanager
    def during_stage(self) -> Iterator[None]:
        """Copy every ``checkpoint_every_s`` (0: never) what the stage in this block keeps in ``partial/``.

        If a signal ends the stage, copy once more, for at most `LAST_COPY_S`. An error is logged and ends nothing.
        """
        if self._mirror is None or self._every_s == 0:
            yield
            return
        copying = _StageCopies(self._mirror, self._path, self._display, self._every_s)
        try:
            yield
        except KeyboardInterrupt:
            copying.copy_last()
            raise
        finally:
            copying.end()

    def copy(self) -> None:
        """Copy the run between two stages. A store out of reach does not stop it: the next stage tries again."""
        try:
            self.finish()
        except StoreError as error:
            self._display.log(f"  not copied, the next stage tries again: {error}")

    def finish(self) -> None:
        """Copy the run at its end, also files that could not be copied before. Raises `StoreError`."""
        if self._mirror is not None:
            self._mirror.push(self._path)


class _StageCopies:
    """A thread that copies what a stage keeps, from now until `end`."""

    def __init__(self, mirror: Mirror, path: Path, display: Display, every_s: float) -> None:
        self._mirror, self._path, self._display, self._every_s = mirror, path, display, every_s
        self._base: Files = mirror.snapshot(path)
        self._is_last, self._is_over = threading.Event(), threading.Event()
        self._is_failing = False
        self._thread = threading.Thread(target=self._run, name="copies", daemon=True)
        self._thread.start()

    def copy_last(self) -> None:
        """Copy once more and wait for it."""
        end_grace()
        self._is_last.set()
        self._thread.join(LAST_COPY_S)
        if self._thread.is_alive():
            self._display.log(f"  the copy was given up after {LAST_COPY_S:g} s; {self._mirror.place} is older")

    def end(self) -> None:
        """Give up what has not been copied."""
        self._is_over.set()
        self._is_last.set()
        self._thread.join(_END_S)

    def _run(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._is_last.wait(self._every_s)
            if self._is_over.is_set():
                return
            try:
                self._mirror.push(self._path, self._base, self._is_over.is_set)
                self._is_failing = False
            except CancelledError:
                return
            except Exception as error:
                if not self._is_failing:
                    self._display.log(f"  what this stage keeps was not copied, trying again: {first_line(error)}")
                self._is_failing = True
