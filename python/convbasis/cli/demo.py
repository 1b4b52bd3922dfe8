"""``convbasis demo``: the method at work on a problem whose answer is known, and a picture."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from ..cost_model import break_even
from ..recover import RecoverOptions
from . import _files
from ._arguments import (
    HELP_STYLE,
    CommandError,
    add_dtype,
    add_integer,
    add_json,
    add_num_threads,
    print_json,
    threads_of,
)
from ._demo_job import STAGES, Outcome, Setup, solve
from ._demo_text import as_dict, text
from ._progress import progress

DESCRIPTION = """\
Build causal attention whose logits have a known conv basis, recover the basis from query and key,
attend through it, and compare with exact attention: strips, error, time. Nothing is downloaded.

The exit code is 0 when the recovered strips are those planted and the error is within its budget:
1e-11 in float64, twice that of plain NumPy plus two roundings (2.4e-07) in float32.
"""

EPILOG = """\
examples:
  convbasis demo                             some ten seconds, writes convbasis-demo.png
  convbasis demo --n 65536 --no-plot         exact attention takes 16 times as long there
  convbasis demo --num-bases 64 --dtype float64
  convbasis demo --json --no-plot > demo.json

Times are medians of interleaved turns after a warm-up, on the same number of threads; a turn is
one call, or the mean of those that fit in 50 ms. That of conv_attention includes recovery. Where
torch is installed, it is timed in the same rounds.
"""


def add_to(commands: Any) -> None:
    """Add the subcommand to the command's parser."""
    parser = commands.add_parser(
        "demo",
        help="the method on a problem with a known answer: strips, error, time, picture",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=HELP_STYLE,
    )

    add_integer(parser, "--n", 64, 16384, "sequence length")
    add_integer(parser, "--head-dim", 1, 64, "head dimension")
    add_integer(parser, "--num-bases", 1, 16, "strips to plant")
    add_dtype(parser)
    add_integer(parser, "--seed", 0, 0, "seed of the random numbers")
    add_num_threads(parser)
    parser.add_argument(
        "--output",
        default="convbasis-demo.png",
        metavar="FILE.png",
        help="where to put the picture (default: convbasis-demo.png)",
    )
    parser.add_argument("--no-plot", action="store_true", help="draw no picture")
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry out the subcommand; the exit code."""
    setup = setup_of(arguments)
    draw = None if arguments.no_plot else drawing()
    path = None if draw is None else _files.destination(arguments.output, ".png")
    with progress(STAGES + (draw is not None)) as shown:
        outcome = solve(setup, shown.step)
        picture = b""
        if draw is not None:
            shown.step("drawing the picture")
            picture = draw(outcome)
    if not arguments.json:
        print("\n".join(text(outcome)), flush=True)
    if path is not None:
        _files.write(path, picture)
    if arguments.json:
        print_json(as_dict(outcome, path))
    elif path is not None:
        print(f"picture   {arguments.output}")
    return 0 if outcome.passed else 1


def setup_of(arguments: argparse.Namespace) -> Setup:
    """The problem asked for, if conv_attention would solve it by strips.

    Raises
    ------
    CommandError
        If there are too many strips.
    """
    n, head_dim, num_bases = arguments.n, arguments.head_dim, arguments.num_bases
    window = RecoverOptions().window
    most = min(n // window, break_even(n, head_dim))
    if num_bases > most:
        raise CommandError(
            f"--num-bases {num_bases} is too many for --n {n}: a strip has at least {window} "
            f"columns, and with many of them exact attention is cheaper; give at most {most}, "
            "or a larger --n"
        )
    return Setup(n, head_dim, num_bases, arguments.dtype, arguments.seed, threads_of(arguments))


def drawing() -> Callable[[Outcome], bytes] | None:
    """What draws the picture; None, said on standard error, without matplotlib."""
    try:
        from ._plot import draw
    except ImportError as error:
        print(
            f"convbasis: no picture: matplotlib cannot be imported ({error}); "
            "pip install 'convbasis[cli]'",
            file=sys.stderr,
        )
        return None
    return draw
