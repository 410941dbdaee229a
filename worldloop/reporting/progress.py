"""Progress of a running loop: a bar with the time left on a terminal, plain lines otherwise.

A stage in another process (Ray) writes to a `RemoteDisplay`; the driver replays its events.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
import threading
import time
from typing import Any, Protocol

from tqdm import tqdm

from worldloop.core.interrupts import raise_if_interrupted

LINE_INTERVAL_S = 15.0
# No elapsed time and no rate: with them the figures would not fit into 80 columns. `worldloop status` shows the rate.
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit}s, {remaining} left{postfix}"


class Display(Protocol):
    def log(self, line: str) -> None: ...

    def open(self, label: str, total: int, unit: str) -> None: ...

    def advance(self, count: int, figures: dict[str, float]) -> None: ...

    def close(self) -> None: ...


def _format(figures: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.3f}" for name, value in figures.items())


def format_minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def wrap(line: str, width: int) -> str:
    """``line`` in rows of at most ``width`` columns, split between words, the later ones indented.

    A text of several lines stays as it is: it holds commands to copy.
    """
    if "\n" in line:
        return line
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    return textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


class TerminalDisplay:
    """Writes to standard error, so that standard output has only results."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._is_terminal = sys.stderr.isatty()
        self._label, self._total, self._unit = "", 0, ""
        self._count, self._began, self._last_line = 0, 0.0, 0.0

    def log(self, line: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        if self._is_terminal:
            line = wrap(line, shutil.get_terminal_size().columns)
        print(line, file=sys.stderr, flush=True)

    def open(self, label: str, total: int, unit: str) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._count, self._began = 0, time.monotonic()
        self._last_line = self._began
        if self._is_terminal:
            self._bar = tqdm(
                total=total,
                desc=label,
                unit=unit,
                leave=False,
                dynamic_ncols=True,
                file=sys.stderr,
                bar_format=BAR,
            )

    def advance(self, count: int, figures: dict[str, float]) -> None:
        raise_if_interrupted()
        self._count += count
        if self._bar is not None:
            self._bar.set_postfix_str(_format(figures), refresh=False)
            self._bar.update(count)
            return
        now = time.monotonic()
        if now - self._last_line >= LINE_INTERVAL_S:
            self._last_line = now
            rate = self._count / (now - self._began)
            remaining = (self._total - self._count) / rate
            self.log(
                f"  {self._label} {self._count}/{self._total} {self._unit}s, {rate:.2g}/s, "
                f"{format_minutes(remaining)} left {_format(figures)}"
            )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class SilentDisplay:
    """Shows nothing: for all workers but the first."""

    def log(self, line: str) -> None:
        pass

    def open(self, label: str, total: int, unit: str) -> None:
        pass

    def advance(self, count: int, figures: dict[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


class RemoteDisplay:
    """Collects events; `drain` returns them and forgets them. Consecutive advances are merged."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: list[tuple[str, tuple[Any, ...]]] = []

    def log(self, line: str) -> None:
        with self._lock:
            self._events.append(("log", (line,)))

    def open(self, label: str, total: int, unit: str) -> None:
        with self._lock:
            self._events.append(("open", (label, total, unit)))

    def advance(self, count: int, figures: dict[str, float]) -> None:
        raise_if_interrupted()
        with self._lock:
            if self._events and self._events[-1][0] == "advance":
                count += self._events.pop()[1][0]
            self._events.append(("advance", (count, figures)))

    def close(self) -> None:
        with self._lock:
            self._events.append(("close", ()))

    def extend(self, events: list[tuple[str, tuple[Any, ...]]]) -> None:
        """Append events that another `RemoteDisplay` has drained."""
        with self._lock:
            self._events += events

    def drain(self) -> list[tuple[str, tuple[Any, ...]]]:
        with self._lock:
            events, self._events = self._events, []
            return events


def replay(events: list[tuple[str, tuple[Any, ...]]], display: Display) -> None:
    for name, arguments in events:
        getattr(display, name)(*arguments)
