"""``convbasis bench``: this package beside what one would use without it, on this machine."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..report import plain
from . import _files
from ._arguments import (
    HELP_STYLE,
    CommandError,
    add_dtype,
    add_integer,
    add_num_threads,
    threads_of,
)
from ._bench_cases import (
    GRID,
    GROWTH,
    MEMORY_METHODS,
    QUICK_GRID,
    QUICK_TABLE,
    TABLE,
    Contest,
    Grid,
    Settings,
)
from ._bench_job import Growth, Outcome, Result, measure, measure_memory, stages
from ._bench_json import as_dict
from ._bench_text import contest_lines, growth_line, heading, memory_line, notes
from ._progress import Silent, progress
from ._timing import ROUNDS

DESCRIPTION = """\
Time conv_attention, its backward pass and conv_matmul beside other methods, in turn on the same
random problems with known strips: torch's attention, exact_attention, long FFTs by scipy, plain
NumPy. Prints a Markdown table with the error beside every time, and the targets of this project.
torch and scipy are used where they are installed.

The exit code is 0 whether or not targets are met.
"""

EPILOG = """\
examples:
  convbasis bench --quick                           under a minute, n up to 16,384
  convbasis bench > table.md                        eight minutes or so, n up to 262,144
  convbasis bench --quick --json bench.json --plot bench.png
  convbasis bench --num-threads 1 --dtype float64 --head-dim 128

Compare ratios of one run, not times of two: other work on the machine changes both sides.
"""

#: Seconds that the methods of one contest share, in the table and in the picture.
TABLE_SECONDS, QUICK_TABLE_SECONDS = 20.0, 3.0
GRID_SECONDS, QUICK_GRID_SECONDS = 4.0, 0.5
GRID_REPEATS = 3


def add_to(commands: Any) -> None:
    """Add the subcommand to the command's parser."""
    parser = commands.add_parser(
        "bench",
        help="times and errors beside torch, scipy and NumPy; table, JSON, picture",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=HELP_STYLE,
    )
    parser.add_argument("--quick", action="store_true", help="only n up to 16,384")
    add_num_threads(parser)
    add_dtype(parser)

    add_integer(parser, "--head-dim", 16, 64, "head dimension, at least 16")
    add_integer(parser, "--seed", 0, 0, "seed of the random numbers")
    add_integer(
        parser, "--repeats", 1, ROUNDS, "most rounds; slow methods get fewer, but two if asked for"
    )
    parser.add_argument("--json", metavar="FILE.json", help="write all times and errors there")
    parser.add_argument(
        "--plot",
        metavar="FILE.png",
        help="measure more sizes and draw time against n, time against k, and the speed-up",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry out the subcommand; the exit code."""
    began = time.perf_counter()
    settings = Settings(
        arguments.head_dim,
        arguments.dtype,
        arguments.seed,
        threads_of(arguments),
        arguments.repeats,
        arguments.quick,
    )
    json_path = destination(arguments.json, "--json")
    plot_path = destination(arguments.plot, "--plot")
    draw = None if plot_path is None else drawing()
    job = Job(settings, with_grid=draw is not None)
    with progress(job.stages) as shown:
        outcome = job.run(shown)
        picture = b""
        if draw is not None:
            shown.step("drawing the picture")
            picture = draw(outcome, job.grid)
    seconds = time.perf_counter() - began
    print("\n".join(notes(outcome, seconds)), flush=True)
    if json_path is not None:
        content = json.dumps(plain(as_dict(outcome, seconds)), indent=2, allow_nan=False)
        _files.write(json_path, f"{content}\n".encode(), "--json")
    if plot_path is not None:
        _files.write(plot_path, picture, "--plot")
    return 0


def destination(text: str | None, option: str) -> Path | None:
    """The file of an option, found to be writable; None if it is not asked for."""
    suffix = {"--json": ".json", "--plot": ".png"}[option]
    return None if text is None else _files.destination(text, suffix, option)


def drawing() -> Callable[[Outcome, Grid], bytes]:
    """What draws the picture.

    Raises
    ------
    CommandError
        Without matplotlib.
    """
    try:
        from ._bench_plot import draw
    except ImportError as error:
        raise CommandError(
            f"no picture: matplotlib cannot be imported ({error}); "
            "pip install 'convbasis[cli]', or leave out --plot"
        ) from error
    return draw


class Job:
    """What is to be measured, and how long it may take."""

    def __init__(self, settings: Settings, *, with_grid: bool) -> None:
        self.settings = settings
        quick = settings.quick
        self.table = QUICK_TABLE if quick else TABLE
        self.growth = () if quick else GROWTH
        self.memory = () if quick else MEMORY_METHODS
        self.grid = QUICK_GRID if quick else GRID
        self.grid_contests = tuple(self.grid.contests()) if with_grid else ()
        self.table_seconds = QUICK_TABLE_SECONDS if quick else TABLE_SECONDS
        self.grid_seconds = QUICK_GRID_SECONDS if quick else GRID_SECONDS
        self.grid_repeats = min(GRID_REPEATS, settings.repeats)

    @property
    def stages(self) -> int:
        """Stages of the progress, the picture itself among them."""
        return (
            stages((*self.table, *self.growth), self.settings.repeats)
            + len(self.memory)
            + stages(self.grid_contests, self.grid_repeats)
            + bool(self.grid_contests)
        )

    def run(self, shown: Silent) -> Outcome:
        """Measure everything, and print each line of the table once it is known."""
        settings, outcome = self.settings, Outcome(self.settings, [])
        for text in heading(settings):
            shown.line(text)
        for result in self.measured(self.table, shown):
            outcome.results.append(result)
        if self.growth:
            results = list(self.measured(self.growth, shown))
            outcome.growth = Growth(results, settings.has_targets)
            shown.line(growth_line(outcome.growth))
        for method in self.memory:
            shown.step(f"memory of {method}, in a process of its own")
            outcome.memory.append(measure_memory(method, settings))
            shown.line(memory_line(outcome.memory[-1]))
        for contest in self.grid_contests:
            outcome.grid.append(
                measure(
                    contest,
                    settings,
                    shown.step,
                    repeats=self.grid_repeats,
                    seconds=self.grid_seconds,
                )
            )
        return outcome

    def measured(self, contests: tuple[Contest, ...], shown: Silent) -> Iterator[Result]:
        """Results of contests of the table, printed."""
        for contest in contests:
            result = measure(
                contest,
                self.settings,
                shown.step,
                repeats=self.settings.repeats,
                seconds=self.table_seconds,
            )
            for text in contest_lines(result):
                shown.line(text)
            yield result
