"""The command ``convbasis``: `info`, `check`, `demo`, `bench` and `analyze`.

Results go to standard output, progress and errors to standard error. Exit codes: 0 success, 1 a
result that is out of its budget, 2 a call that cannot be carried out, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from .. import __version__
from . import analyze, bench, check, demo, info
from ._arguments import HELP_STYLE, CommandError

EPILOG = """\
examples:
  convbasis info                     what this build can do, on this machine
  convbasis check                    compiled core against the NumPy oracle
  convbasis demo                     the method at n = 16,384, with a picture
  convbasis demo --n 65536 --no-plot
  convbasis bench --quick            times and errors beside other methods
  convbasis analyze heads.npz        which heads of a model can be approximated

'convbasis COMMAND --help' tells more of each.
"""

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and whose options are not abbreviated."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise CommandError(f"{message}; see '{self.prog} --help'")


def build_parser() -> Parser:
    """The parser of the command with all its subcommands."""
    parser = Parser(
        prog="convbasis",
        description="Attention in almost linear time by convolution bases, with the error known.",
        epilog=EPILOG,
        formatter_class=HELP_STYLE,
    )
    parser.add_argument("--version", action="version", version=f"convbasis {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in (info, check, demo, bench, analyze):
        command.add_to(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments after the command's name; default ``sys.argv[1:]``.

    Examples
    --------
    >>> from convbasis.cli import main
    >>> main(["--version"])  # doctest: +ELLIPSIS
    convbasis ...
    0
    """
    try:
        code = run(argv)
        if sys.stdout is not None:
            sys.stdout.flush()
    except CommandError as error:
        return failed(str(error))
    except MemoryError:
        return failed("there is not enough memory for this size; ask for a smaller one")
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        close_stdout()
        return EXIT_BROKEN_PIPE
    except OSError as error:  # a full disk behind standard output
        close_stdout()
        return failed(f"the output cannot be written: {error}")
    return code


def run(argv: Sequence[str] | None) -> int:
    """Parse and carry out."""
    parser = build_parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:  # --help and --version
        return stop.code if isinstance(stop.code, int) else 0
    if not hasattr(arguments, "run"):
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    code: int = arguments.run(arguments)
    return code


def failed(message: str) -> int:
    """Tell what is wrong in one line."""
    print(f"convbasis: error: {message}", file=sys.stderr)
    return EXIT_USAGE


def close_stdout() -> None:
    """Nobody reads any more: let the flush at exit go nowhere instead of raising again."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
