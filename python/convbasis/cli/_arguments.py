"""What the subcommands share: types of arguments, the error, JSON output."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from .. import _validate
from ..report import plain

HELP_STYLE = argparse.RawDescriptionHelpFormatter


class CommandError(Exception):
    """A call that cannot be carried out; the message says what to do instead."""


def integer_from(minimum: int) -> Callable[[str], int]:
    """The type of an argument that is an integer of at least `minimum`; ``16_384`` is fine."""

    def convert(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = minimum - 1
        if number < minimum:
            raise argparse.ArgumentTypeError(
                f"expected an integer of at least {minimum}, got {text!r}"
            )
        return number

    return convert


def add_num_threads(parser: argparse.ArgumentParser) -> None:
    """``--num-threads``."""
    parser.add_argument(
        "--num-threads",
        type=integer_from(1),
        metavar="N",
        help="threads to use (default: all cores this process may use)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def threads_of(arguments: argparse.Namespace) -> int:
    """The number of threads asked for, or all cores this process may use."""
    return _validate.threads("convbasis", arguments.num_threads)


def print_json(content: dict[str, Any]) -> None:
    """Strict JSON on standard output: what is not a number, or infinite, is null."""
    print(json.dumps(plain(content), indent=2, allow_nan=False))


def add_integer(parser: Any, name: str, minimum: int, default: int, text: str) -> None:
    """Add an option that takes an integer of at least `minimum`."""
    parser.add_argument(
        name,
        type=integer_from(minimum),
        default=default,
        metavar="N",
        help=f"{text} (default: {default})",
    )


def add_dtype(parser: Any) -> None:
    """Add the option for the type of the arrays."""
    parser.add_argument(
        "--dtype",
        choices=("float32", "float64"),
        default="float32",
        help="type of the arrays, and of the computation (default: float32)",
    )
