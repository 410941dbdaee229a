"""Signals that a run answers: SIGINT and SIGTERM end it, SIGUSR1 asks it to write a checkpoint now.

A training step that ends within `GRACE_S` is finished first (`finish_step`), and the trainer writes a checkpoint after
it. Elsewhere the run ends at once. A second signal ends it at once everywhere.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

GRACE_S = 10  # how long a step may still take; schedulers kill half a minute after SIGTERM


@dataclass
class _Asked:
    """What has been asked of this process: ``signals`` to end it, by number, and ``checkpoint`` to write one now."""

    signals: list[int] = field(default_factory=list)
    checkpoint: bool = False
    in_step: bool = False


_asked = _Asked()


@contextmanager
def answer_signals() -> Iterator[None]:
    """Make Ctrl-C and SIGTERM raise ``KeyboardInterrupt(signal number)``, and SIGUSR1 ask for a checkpoint."""

    def end(number: int, frame: Any) -> None:
        _asked.signals.append(number)
        if not _asked.in_step or len(_asked.signals) > 1:
            raise KeyboardInterrupt(number)
        signal.alarm(GRACE_S)

    forget()
    handlers: dict[int, Any] = {
        signal.SIGINT: end,
        signal.SIGTERM: end,
        signal.SIGALRM: lambda number, frame: raise_if_interrupted(),
        signal.SIGUSR1: lambda number, frame: ask_for_checkpoint(),
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    except KeyboardInterrupt as raised:
        if raised.args or not _asked.signals:
            raise
        raise KeyboardInterrupt(_asked.signals[-1]) from raised  # a library, e.g. Ray, has raised one of its own
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)
        forget()


@contextmanager
def finish_step() -> Iterator[None]:
    """Let the block end before a first signal is answered; then raise ``KeyboardInterrupt`` if one has come."""
    is_outer = not _asked.in_step
    _asked.in_step = True
    try:
        yield
    finally:
        _asked.in_step = not is_outer
    if is_outer:
        raise_if_interrupted()


def end_grace() -> None:
    """Give the present signal no time limit any more: the step has ended, and something else is to end in order."""
    if threading.current_thread() is threading.main_thread():
        signal.alarm(0)


def raise_if_interrupted() -> None:
    """Raise ``KeyboardInterrupt`` if a signal to end has come, also if a library has caught the first one."""
    if _asked.signals:
        raise KeyboardInterrupt(_asked.signals[-1])


def ask_to_end(number: int = signal.SIGTERM) -> None:
    """End this process as if it had got the signal, at the next progress or after the present training step."""
    _asked.signals.append(number)


def ask_for_checkpoint() -> None:
    _asked.checkpoint = True


def wants_checkpoint() -> bool:
    """Whether a checkpoint is to be written now: because one was asked for, or because the process is to end."""
    return _asked.checkpoint or bool(_asked.signals)


def take_checkpoint_request() -> bool:
    """Whether a checkpoint was asked for since the last call."""
    asked, _asked.checkpoint = _asked.checkpoint, False
    return asked


def forget() -> None:
    """Forget all that was asked."""
    _asked.signals.clear()
    _asked.checkpoint = False
