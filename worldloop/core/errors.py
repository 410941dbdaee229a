"""`WorldloopError`, the error that users see, and checks of a single setting.

This module does not import torch, so that code without torch can raise the error.
"""

from __future__ import annotations


class WorldloopError(Exception):
    """A mistake or a broken input that the user can fix; the CLI prints it as one line.

    ``exit_code`` is 2 for wrong input (command, config, path) and 1 for anything else.
    """

    exit_code = 2


def first_line(error: BaseException) -> str:
    """The first line of a library's error message, or the error's type if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def require_choice(key: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ``ValueError`` naming ``key`` and the allowed values."""
    if value not in allowed:
        raise ValueError(f"{key} is {value!r}, allowed: {', '.join(allowed)}")


def require_range(key: str, value: float, low: float, high: float = float("inf")) -> None:
    """Raise ``ValueError`` naming ``key`` and its range unless low <= value <= high."""
    if not low <= value <= high:
        raise ValueError(f"{key} is {value}, allowed: {low} to {high}")


def require_positive(key: str, value: float) -> None:
    """Raise ``ValueError`` naming ``key`` unless value > 0."""
    if not value > 0:
        raise ValueError(f"{key} is {value}, allowed: above 0")
