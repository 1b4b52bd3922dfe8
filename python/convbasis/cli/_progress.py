"""A progress bar on standard error while a command works.

With rich installed it is a bar that goes away at the end, without rich one plain line a stage.
When standard error is no terminal nothing is shown: results go to standard output, and a log has
no use for a bar.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Silent:
    """Shows no progress, and is the interface of the others."""

    def step(self, text: str) -> None:
        """The next stage, `text`, begins."""

    def line(self, text: str) -> None:
        """Print a line of the result to standard output, clear of the bar."""
        print(text, flush=True)


class Lines(Silent):
    """A line for each stage."""

    def __init__(self, total: int) -> None:
        self.total, self.begun = total, 0

    def step(self, text: str) -> None:
        self.begun += 1
        print(f"[{self.begun}/{self.total}] {text}", file=sys.stderr, flush=True)


class Bar(Silent):
    """A bar drawn by rich."""

    def __init__(self, bar: Any, total: int) -> None:
        self.bar = bar
        self.task = bar.add_task("", total=total)
        self.begun = 0

    def step(self, text: str) -> None:
        self.bar.update(self.task, description=text, completed=self.begun)
        self.begun += 1

    def line(self, text: str) -> None:
        self.bar.stop()
        print(text, flush=True)
        self.bar.start()


def rich_bar() -> Any:
    """A rich progress bar on standard error, or None where rich is not installed."""
    try:
        from rich import progress
        from rich.console import Console
    except ImportError:
        return None
    return progress.Progress(
        progress.SpinnerColumn(),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("{task.description}"),
        console=Console(stderr=True),
        transient=True,
        refresh_per_second=8,
        redirect_stdout=False,  # it would send results to standard error
        redirect_stderr=False,
    )


@contextmanager
def progress(total: int) -> Iterator[Silent]:
    """The progress of a job of `total` stages; call ``step(text)`` as each of them begins."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield Silent()
        return
    bar = rich_bar()
    if bar is None:
        yield Lines(total)
        return
    with bar:
        yield Bar(bar, total)
