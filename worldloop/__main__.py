"""The command line. Heavy imports happen inside the commands, so that ``--help`` answers at once."""

from __future__ import annotations

import signal
import sys

from worldloop.cli.parser import make_parser


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 failed, 2 wrong input, 130 interrupted by Ctrl-C, 143 by SIGTERM."""
    options = make_parser().parse_args(arguments)
    from worldloop.cli import commands
    from worldloop.core.errors import WorldloopError
    from worldloop.core.packages import require_importable

    try:
        try:
            return commands.execute(options)
        except ImportError as error:
            require_importable(error)
            raise
    except WorldloopError as error:
        print(f"worldloop: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as interrupt:
        goes_on = "; the same command continues with this stage" if options.command in ("run", "stage") else ""
        print(f"worldloop: interrupted{goes_on}", file=sys.stderr)
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
    except BrokenPipeError:
        return 1
    except OSError as error:
        if error.filename is None:
            raise
        denied = isinstance(error, PermissionError)
        remedy = "ask its owner, or choose another folder" if denied else "choose another file or folder"
        print(f"worldloop: {error.filename}: {(error.strerror or str(error)).lower()}; {remedy}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
