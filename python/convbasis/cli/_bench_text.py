"""What `convbasis bench` prints: a Markdown table, line by line, and what is to be known of it."""

from __future__ import annotations

import platform

import numpy as np

from .. import __version__, _validate, build_info
from ._bench_backward import GRADIENT_OF
from ._bench_backward import NOTES as BACKWARD_NOTES
from ._bench_cases import GROWTH_TARGET, MEMORY_TARGET, Settings
from ._bench_job import TRUTH_ROWS, Growth, Memory, Outcome, Result
from ._bench_peers import BY_STRIP, NOTES, PRODUCT
from ._names import CONV, EXACT, TORCH
from ._timing import Seconds, milliseconds
from .info import processor, version_of

#: Columns and their widths in characters; numbers are on the right.
COLUMNS = {
    "problem": 9,
    "n": 13,
    "k": 3,
    "method": 27,
    "median ms (min to max)": 25,
    "error": 7,
    "rows exact": 10,
    "against baseline": 16,
    "target": 16,
    "met": 3,
}
LEFT = ("problem", "method", "against baseline", "target", "met")

#: What to say without a package, by the method that needs it.
MISSING = {
    TORCH: f"torch cannot be imported: {EXACT} is the baseline instead of {TORCH}, and "
    "targets against that are not judged. 'pip install torch' brings it; its CPU build is enough.",
    BY_STRIP: f"scipy cannot be imported: {PRODUCT} has no baseline, and '{BY_STRIP}' is left out. "
    "pip install 'convbasis[cli]' brings it.",
}


def versions() -> dict[str, str]:
    """What the times depend on."""
    found = {"convbasis": __version__, "SIMD": str(build_info()["simd"])}
    found.update(NumPy=np.__version__, Python=platform.python_version())
    peers = {name: version_of(name) for name in ("torch", "scipy")}
    return {**found, **{name: version for name, version in peers.items() if version}}


def heading(settings: Settings) -> list[str]:
    """The lines before the first result."""
    threads = f"{settings.num_threads} thread{'s' if settings.num_threads > 1 else ''}"
    return [
        ", ".join(f"{name} {version}" for name, version in versions().items()),
        f"{processor()}, {threads}, {settings.dtype}, head_dim {settings.head_dim}, one head, "
        f"causal, seed {settings.seed}",
        "",
        line({name: name for name in COLUMNS}),
        "|" + "|".join(rule(name) for name in COLUMNS) + "|",
    ]


def rule(name: str) -> str:
    """The part of the line below the names that aligns one column."""
    dashes = "-" * (COLUMNS[name] + 1)
    return f"{dashes}-" if name in LEFT else f"{dashes}:"


def line(cells: dict[str, str]) -> str:
    """One line of the table."""
    padded = (
        cells.get(name, "").ljust(width) if name in LEFT else cells.get(name, "").rjust(width)
        for name, width in COLUMNS.items()
    )
    return f"| {' | '.join(padded)} |"


def contest_lines(result: Result) -> list[str]:
    """A line for each method."""
    lines = []
    for method, score in result.scores.items():
        cells = {
            "problem": result.contest.title,
            "n": f"{result.contest.n:,}",
            "k": str(result.contest.num_bases),
            "method": method,
            "median ms (min to max)": times(score.seconds),
            "error": f"{score.error:.1e}",
        }
        if method in (CONV, *GRADIENT_OF) and result.by_strips is not None:
            cells["method"] += " (strips)" if result.by_strips else " (exact)"
            cells["rows exact"] = f"{result.rows_exact:,}"
        speedup = result.speedup(method)
        if method == result.baseline:
            cells["against baseline"] = "baseline"
        elif speedup is not None:
            cells["against baseline"] = ratio(speedup)
            if (target := result.contest.targets.get(method)) is not None:
                cells.update(target=str(target), met=verdict(result.met(method)))
        lines.append(line(cells))
    return lines


def growth_line(growth: Growth) -> str:
    """The line below those of the single lengths."""
    last = growth.results[-1].contest
    cells = {
        "problem": "growth",
        "n": f"up to {last.n:,}",
        "k": str(last.num_bases),
        "method": CONV,
        "against baseline": f"time ~ n^{growth.exponent:.2f}",
    }
    if growth.met is not None:
        cells.update(target=f"<= n^{GROWTH_TARGET:g}", met=verdict(growth.met))
    return line(cells)


def memory_line(memory: Memory) -> str:
    """The line of peak memory."""
    cells = {
        "problem": "memory",
        "n": f"{memory.n:,}",
        "k": str(memory.num_bases),
        "method": memory.method,
    }
    if memory.mebibytes is None:
        cells["against baseline"] = "not measured"
    else:
        cells["against baseline"] = f"{memory.mebibytes:,.0f} MiB"
        if memory.met is not None:
            cells.update(target=f"< {MEMORY_TARGET:,.0f} MiB", met=verdict(memory.met))
    return line(cells)


def notes(outcome: Outcome, seconds: float) -> list[str]:
    """The lines after the last result."""
    settings = outcome.settings
    missing = {
        method
        for result in outcome.results
        for method in result.contest.methods
        if method not in result.scores
    }
    cores = _validate.threads("bench", None)
    lines = [
        "Times are medians of interleaved turns after a warm-up, a turn being one call, or the "
        "mean of those that fit in 50 ms; those of conv_attention include recovery. Errors are "
        "relative to float64, in the Frobenius norm, on at least "
        f"{TRUTH_ROWS} random rows. 'rows exact' are rows that it, or its backward pass, computed "
        "directly.",
        *(f"{method}: {note}." for method, note in (NOTES | BACKWARD_NOTES).items()),
    ]
    if not settings.has_targets:
        lines.append("Targets are for float32 and head_dim 64 alone.")
    else:
        lines.append("Targets were set for two threads.")
    if settings.num_threads != cores:
        lines.append(f"NumPy takes as many threads as it likes, not {settings.num_threads}.")
    lines += [text for method, text in MISSING.items() if method in missing]
    return ["", *(f"- {text}" for text in lines), "", f"{seconds:.0f} s in all"]


def ratio(speedup: float) -> str:
    """How much faster than the baseline, or slower."""
    if speedup < 1.0:
        return f"{1.0 / speedup:.{digits(1.0 / speedup)}f}x its time"
    return f"{speedup:.{digits(speedup)}f}x as fast"


def digits(value: float) -> int:
    """Decimals that make three digits."""
    return 2 if value < 10 else 1 if value < 100 else 0


def verdict(met: bool | None) -> str:
    return {True: "yes", False: "no", None: ""}[met]


def times(seconds: Seconds) -> str:
    """Median and range, in milliseconds."""
    low, high = min(seconds.runs), max(seconds.runs)
    return f"{milliseconds(seconds.median)} ({milliseconds(low)} to {milliseconds(high)})"
