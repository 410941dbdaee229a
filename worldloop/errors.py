"""The one error of the house, apart from the vocabulary so that raising it does not take importing torch."""

from __future__ import annotations


class WorldloopError(Exception):
    """A mistake or a broken input that a user can mend; the CLI prints it as one line.

    ``exit_code`` is 2 for wrong input (command, config, path) and 1 for anything else.
    """

    exit_code = 2


def first_line(error: BaseException) -> str:
    """What a library's error says, in the one line that a `WorldloopError` has room for."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
