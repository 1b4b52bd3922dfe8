"""What `convbasis demo` prints, as text and as JSON."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__, build_info
from ._demo_job import JUDGED, PLAIN_ROWS, TOLERANCE, Outcome
from ._names import CONV, EXACT, PLAIN, TORCH
from ._timing import milliseconds

MARGIN = " " * 10


def text(outcome: Outcome) -> list[str]:
    """The lines for people."""
    setup = outcome.setup
    threads = f"{setup.num_threads} thread{'s' if setup.num_threads > 1 else ''}"
    return [
        f"convbasis {__version__} demo: causal attention of one head, n = {setup.n:,}, "
        f"head_dim {setup.head_dim}, {setup.dtype}, {threads}, seed {setup.seed}",
        "",
        *strips(outcome),
        "",
        *errors(outcome),
        "",
        *times(outcome),
        "",
        f"versions  {', '.join(f'{name} {number}' for name, number in versions(outcome).items())}",
        verdict(outcome),
    ]


def strips(outcome: Outcome) -> list[str]:
    """What was recovered."""
    planted, found = outcome.problem.starts, outcome.starts
    where = "at the planted columns" if outcome.starts_equal else "NOT at the planted columns"
    columns = ", ".join(map(str, found))
    lines = textwrap.wrap(columns, 88, initial_indent=MARGIN, subsequent_indent=MARGIN)
    if len(lines) > 3:
        lines = [*lines[:2], f"{MARGIN}... {found[-1]}"]
    return [f"strips    {planted.size} planted, {found.size} recovered, {where}", *lines]


def errors(outcome: Outcome) -> list[str]:
    """How large the errors are, and what the call itself says about its own."""
    notes = {CONV: f"budget {outcome.budget:.1e}", PLAIN: f"on {PLAIN_ROWS} rows"}
    low, high = outcome.report.error_interval
    return [
        "error     ||Y~ - Y|| / ||Y||, with Y by exact attention in float64",
        *(
            f"{MARGIN}{name:20} {error:8.1e}   {notes.get(name, '')}".rstrip()
            for name, error in outcome.errors.items()
        ),
        f"{MARGIN}by row: median {np.median(outcome.row_errors):.1e}, largest "
        f"{outcome.row_errors.max():.1e}; {outcome.report.rows_exact} rows recomputed directly",
        f"{MARGIN}conv_attention's own estimate: {outcome.report.error_estimate:.1e} "
        f"({low:.1e} to {high:.1e}) from {outcome.report.sample_rows} rows",
    ]


def times(outcome: Outcome) -> list[str]:
    """Medians and ranges, and ratios to conv_attention."""
    notes = {CONV: "recovery included", JUDGED: f"tol={TOLERANCE:g}: its error estimated"}
    lines = []
    for name, seconds in outcome.seconds.items():
        spread = f"({milliseconds(min(seconds.runs))} to {milliseconds(max(seconds.runs))})"
        note = notes.get(name, f"{outcome.speedup(name):.1f} times as long")
        lines.append(f"{MARGIN}{name:20} {milliseconds(seconds.median):>8} ms  {spread:20} {note}")
    runs = len(outcome.seconds[CONV].runs)
    return [f"time      median (range) of up to {runs} interleaved runs, after a warm-up", *lines]


def versions(outcome: Outcome) -> dict[str, str]:
    """What the times depend on."""
    found = {"NumPy": np.__version__, "SIMD": str(build_info()["simd"])}
    return {**found, "torch": outcome.torch} if outcome.torch else found


def verdict(outcome: Outcome) -> str:
    """The last line."""
    complaints = []
    if not outcome.starts_equal:
        complaints.append("the recovered strips are not the planted ones")
    if outcome.report.heads_exact:
        complaints.append("the head was computed exactly, not by strips")
    if not outcome.error <= outcome.budget:
        complaints.append(f"the error {outcome.error:.1e} is above {outcome.budget:.1e}")
    if not outcome.passed and not complaints:
        complaints.append(f"exact_attention is off by {outcome.truth_error:.1e} in float64")
    if complaints:
        return f"FAILED    {'; '.join(complaints)}"
    ratios = [f"{outcome.speedup(EXACT):.1f} times as fast as exact_attention"]
    if TORCH in outcome.seconds:
        ratios.append(f"{outcome.speedup(TORCH):.1f} times as fast as torch's attention")
    if outcome.speedup(EXACT) < 1.0:
        ratios.append("strips pay at a larger --n")
    return f"result    all strips found; {', '.join(ratios)}"


def as_dict(outcome: Outcome, picture: Path | None) -> dict[str, Any]:
    """The content of ``--json``."""
    return {
        "version": __version__,
        "passed": outcome.passed,
        "problem": {**asdict(outcome.setup), "scale": outcome.problem.scale},
        "strips": {
            "planted": outcome.problem.starts.size,
            "recovered": outcome.starts.size,
            "equal": outcome.starts_equal,
            "starts": outcome.starts,
            "planted_starts": outcome.problem.starts,
        },
        "error": {
            "relative": outcome.errors,
            "budget": outcome.budget,
            "median_row": float(np.median(outcome.row_errors)),
            "largest_row": float(outcome.row_errors.max()),
            "truth_against_plain_float64": outcome.truth_error,
        },
        "seconds": {name: seconds.to_dict() for name, seconds in outcome.seconds.items()},
        "times_as_fast_as": {
            name: outcome.speedup(name) for name in outcome.seconds if name in (EXACT, TORCH)
        },
        "report": outcome.report.to_dict(),
        "versions": versions(outcome),
        "build": build_info(),
        "picture": None if picture is None else str(picture),
    }
