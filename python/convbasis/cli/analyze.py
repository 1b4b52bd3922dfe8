"""``convbasis analyze``: which heads of a model can be approximated, and what that costs."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from . import _files
from ._analyze_input import Heads, read_heads
from ._analyze_job import Analysis, analyze, stages
from ._analyze_model import capture, check_model, read_text
from ._analyze_text import as_dict, text
from ._arguments import (
    HELP_STYLE,
    CommandError,
    add_integer,
    add_json,
    add_num_threads,
    integer_from,
    print_json,
    threads_of,
)
from ._progress import progress

DESCRIPTION = """\
Look at every head of a model: how far its attention is driven by position (error of plain strips
against their number), how far by what is near (windows) and by a few heavy keys, and what
conv_attention costs at several tolerances. Attention is causal.

The heads come from an .npz file with arrays query, key and value, (layers, heads, n, d), after any
rotary embedding; key and value may have fewer heads, `layers` and `scale`, one number or one for
each layer, may be there as well. Or they are captured from a model that transformers can load,
reading a text.
"""

EPILOG = """\
examples:
  convbasis analyze heads.npz
  convbasis analyze heads.npz --layers 0,10-12 --n 2048 --plot pictures
  convbasis analyze --model FOLDER --text novel.txt --n 4096
  convbasis analyze --model FOLDER --gguf weights.gguf --text novel.txt --json > heads.json

Errors are ||Y~ - Y|| / ||Y|| on 128 sampled rows of each head. The table names the cheapest way
that holds --tol with settings up to n / 16: strips (position), window (what is near), heavy
(a window of 64 and some keys that all queries attend to), calibrated (conv_attention keeps some
approximation), content (it computes the head exactly). --plot writes heads.png, errors.png and
cost.png.
"""

TOLS = (0.05, 0.1, 0.22, 0.5)


def add_to(commands: Any) -> None:
    """Add the subcommand to the command's parser."""
    parser = commands.add_parser(
        "analyze",
        help="which heads of a model can be approximated, and what that costs",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=HELP_STYLE,
    )
    parser.add_argument("file", nargs="?", metavar="FILE.npz", help="arrays query, key and value")
    parser.add_argument("--model", metavar="FOLDER", help="a model instead of a file")
    parser.add_argument("--gguf", metavar="NAME", help="its file of quantized weights")
    parser.add_argument("--text", metavar="FILE", help="what the model reads, UTF-8")
    parser.add_argument(
        "--n",
        type=integer_from(64),
        metavar="N",
        help="positions (default: all of the file; 2048 tokens of a text)",
    )
    parser.add_argument(
        "--layers", type=layer_list, metavar="LIST", help="such as 0,3-5 (default: all)"
    )
    parser.add_argument(
        "--tol", type=tolerance, default=0.22, metavar="TOL", help="wanted error (default: 0.22)"
    )
    add_integer(parser, "--seed", 0, 0, "seed of the sampled rows")
    add_num_threads(parser)
    parser.add_argument("--plot", metavar="FOLDER", help="write pictures to this folder")
    add_json(parser)
    parser.set_defaults(run=run)


def layer_list(text: str) -> list[int]:
    """The type of ``--layers``: "0,3-5" -> [0, 3, 4, 5]."""
    found: set[int] = set()
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            some = range(int(first), int(last or first) + 1)
            if not some:
                raise ValueError
            found.update(some)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected layers such as 0,3-5, got {text!r}") from None
    return sorted(found)


def tolerance(text: str) -> float:
    """The type of ``--tol``."""
    try:
        tol = float(text)
    except ValueError:
        tol = 0.0
    if not 0.0 < tol < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return tol


def run(arguments: argparse.Namespace) -> int:
    """Carry out the subcommand; the exit code."""
    check_source(arguments)
    draw = None if arguments.plot is None else drawing()
    heads = heads_of(arguments)
    folder = None if arguments.plot is None else pictures_folder(arguments.plot)
    tols = sorted({*TOLS, arguments.tol})
    with progress(stages(heads, tols) + (draw is not None)) as shown:
        threads = threads_of(arguments)
        found = analyze(heads, arguments.tol, tols, arguments.seed, threads, shown.step)
        pictures = {}
        if draw is not None:
            shown.step("drawing the pictures")
            pictures = draw(found)
    paths = [] if folder is None else write_pictures(folder, pictures)
    tell(arguments, found, paths)
    return 0


def tell(arguments: argparse.Namespace, found: Analysis, paths: list[Path]) -> None:
    """Print the result."""
    if arguments.json:
        print_json(as_dict(found, paths))
        return
    print("\n".join(text(found)))
    for path in paths:
        print(f"picture   {path}")


def check_source(arguments: argparse.Namespace) -> None:
    """Either a file, or a model and a text."""
    if (arguments.file is None) == (arguments.model is None):
        raise CommandError("give either FILE.npz or --model FOLDER; see 'convbasis analyze --help'")
    if arguments.model is None:
        for name in ("gguf", "text"):
            if getattr(arguments, name) is not None:
                raise CommandError(f"--{name} goes with --model, not with a file")
        return
    if arguments.text is None:
        raise CommandError("--model needs --text FILE: something for the model to read")
    check_model(arguments.model, arguments.gguf, arguments.text)


def heads_of(arguments: argparse.Namespace) -> Heads:
    """The heads asked for."""
    if arguments.model is None:
        return read_heads(arguments.file).cut(arguments.n, arguments.layers)
    text = read_text(arguments.text)
    n = 2048 if arguments.n is None else arguments.n
    threads = threads_of(arguments)
    return capture(arguments.model, arguments.gguf, text, n, arguments.layers, threads)


def drawing() -> Any:
    """What draws the pictures.

    Raises
    ------
    CommandError
        Without matplotlib: the pictures were asked for.
    """
    try:
        from ._analyze_plot import draw
    except ImportError as error:
        raise CommandError(
            f"--plot needs matplotlib, which cannot be imported ({error}); "
            "pip install 'convbasis[cli]'"
        ) from error
    return draw


def pictures_folder(name: str) -> Path:
    """The folder, made where it is not there yet, after finding out that it can be written.

    Raises
    ------
    CommandError
        If it is a file, or cannot be made or written.
    """
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"cannot make the folder {name!r}: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise CommandError(f"the folder {name!r} is read-only; {_files.advice('--plot')}")
    return folder


def write_pictures(folder: Path, pictures: dict[str, bytes]) -> list[Path]:
    """Put them there."""
    paths = []
    for name, content in pictures.items():
        _files.write(folder / name, content, "--plot")
        paths.append(folder / name)
    return paths
