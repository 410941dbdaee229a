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

    try:
        return commands.execute(options)
    except WorldloopError as error:
        print(f"worldloop: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as interrupt:
        goes_on = "; the same command continues with this stage" if options.command in ("run", "stage") else ""
        print(f"worldloop: interrupted{goes_on}", file=sys.stderr)
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
    except BrokenPipeError:
        return 1
    except PermissionError as error:
        print(
            f"worldloop: {error.filename}: permission denied; ask its owner, or choose another folder", file=sys.stderr
        )
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
