"""What is said of mistakes: the one error of the house, and how a setting that cannot be is refused.

Apart from the vocabulary, so that raising it does not take importing torch.
"""

from __future__ import annotations


class WorldloopError(Exception):
    """A mistake or a broken input that a user can mend; the CLI prints it as one line.

    ``exit_code`` is 2 for wrong input (command, config, path) and 1 for anything else.
    """

    exit_code = 2


def first_line(error: BaseException) -> str:
    """What a library's error says, in the one line that a `WorldloopError` has room for."""
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
