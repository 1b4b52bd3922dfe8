"""Feature sparsification measured on this machine: five Markdown tables and a figure.

1. Time of both methods as columns are added, sparse and dense, and how it grows.
2. Time as entries are added to a fixed number of columns.
3. Epsilon against the number of columns, beside what is promised.
4. Exact scores beside sketched ones.
5. How far off a sketch of the columns is, beside how wide theory wants it.

Entries are standard normal, those of sparse x at random places. m = 4 n columns are asked for but
in table 3. Times are medians of some rounds in which the methods take turns ("bss" in tables 1 and
2: one round), in seconds.

    python benchmarks/sparsify.py [--quick] [--table N]... [--threads N] [--plot FILE]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from polynomial_masks import exponent
from scipy import sparse
from sparsify_plot import draw

import convbasis as cb
from convbasis import reference as ref
from convbasis.cli._bench_text import versions
from convbasis.cli._progress import Silent, progress
from convbasis.cli.info import processor

LEVERAGE, BSS = {"method": "leverage"}, {"method": "bss"}
EXACT, SKETCHED = {"scores": "exact"}, {"scores": "sketched"}
SEEDS = 5  # of leverage in table 3


class Run(NamedTuple):
    """Sizes."""

    n: int
    sparse_columns: Sequence[int]
    dense_columns: Sequence[int]
    shares: Sequence[float]
    ratios: Sequence[float]  # m / n in table 3
    columns: int  # d in table 3
    rows: Sequence[int]  # n in table 4
    rounds: int
    threads: int


class Curves(NamedTuple):
    """What the figure shows."""

    times: dict[str, dict[float, float]]  # of a method and kind of x, by d
    epsilons: dict[str, dict[float, float]]  # of a method, measured or promised, by m / n


def made(n: int, d: int, share: float) -> Any:
    """x, dense if all entries are to be there."""
    rng = np.random.default_rng([n, d])
    if share == 1:
        return rng.standard_normal((n, d))
    count = rng.poisson(share * n * d)
    at = rng.integers(n, size=count), rng.integers(d, size=count)
    return sparse.csc_array((rng.standard_normal(count), at), shape=(n, d))


def chosen(run: Run, x: Any, num_columns: int, **way: Any) -> tuple[float, cb.Sparsified]:
    begin = time.perf_counter()
    found = cb.sparsify_features(x, num_columns=num_columns, num_threads=run.threads, **way)
    return time.perf_counter() - begin, found


def contest(run: Run, x: Any, *ways: dict[str, Any]) -> list[tuple[float, cb.Sparsified]]:
    """Median seconds of each way, in turns, and its last result; "bss" has one turn."""
    turns: list[list[tuple[float, cb.Sparsified]]] = [[] for _ in ways]
    for round_number in range(run.rounds):
        for way, mine in zip(ways, turns, strict=True):
            if round_number == 0 or way is not BSS:
                mine.append(chosen(run, x, 4 * x.shape[0], rng=round_number, **way))
    return [(statistics.median(seconds for seconds, _ in mine), mine[-1][1]) for mine in turns]


def row(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def table(*names: str) -> str:
    return row(*names) + "\n|" + "|".join(["---"] + ["--:"] * (len(names) - 1)) + "|"


def three(value: float) -> str:
    return f"{value:#.3g}".rstrip(".") if value < 1000 else f"{value:,.0f}"


def growth(run: Run, curves: Curves, bar: Silent) -> Iterator[str]:
    """Table 1."""
    yield table("x", "d", "entries", "leverage s", "condition", "bss s", "condition", "bound")
    kinds = (("sparse", 0.01, run.sparse_columns), ("dense", 1.0, run.dense_columns))
    for kind, share, sizes in kinds:
        for d in sizes:
            bar.step(f"{kind}, {d:,} columns")
            x = made(run.n, d, share)
            (fast, drawn), (slow, best) = contest(run, x, LEVERAGE, BSS)
            curves.times.setdefault(f"leverage, {kind}", {})[d] = fast
            curves.times.setdefault(f"bss, {kind}", {})[d] = slow
            cells = three(fast), three(drawn.condition_number), three(slow)
            entries = f"{x.size:,}"
            yield row(kind, f"{d:,}", entries, *cells, three(best.condition_number), three(9))
    yield ""
    for name, times in curves.times.items():
        first, *_, before, last = times
        tail = exponent([before, last], [times[before], times[last]])
        power = exponent(list(times), list(times.values()))
        yield f"- {name}: time as d^{power:.2f} from {first:,} on, d^{tail:.2f} at the end"


def entries(run: Run, curves: Curves, bar: Silent) -> Iterator[str]:
    """Table 2."""
    d = run.dense_columns[-1]
    yield table("share", "entries", "sum of nnz_j^2", "leverage s", "as entries^", "bss s")
    last = None
    for share in run.shares:
        bar.step(f"{share:.1%} of {d:,} columns")
        x = made(run.n, d, share)
        (fast, _), (slow, _) = contest(run, x, LEVERAGE, BSS)
        power = f"{exponent([last[0], x.nnz], [last[1], fast]):.2f}" if last else "-"
        pairs = (np.diff(x.indptr).astype(np.float64) ** 2).sum()
        yield row(f"{share:.1%}", f"{x.nnz:,}", f"{pairs:.1e}", three(fast), power, three(slow))
        last = x.nnz, fast


def epsilons(run: Run, curves: Curves, bar: Silent) -> Iterator[str]:
    """Table 3."""
    of_leverage = "leverage epsilon", "promised", "condition"
    yield table("m / n", "bss s", "bss epsilon", "promised", "condition", "bound", *of_leverage)
    x = made(run.n, run.columns, 1.0)
    for ratio in run.ratios:
        bar.step(f"m = {ratio:g} n")
        m = int(ratio * run.n)
        seconds, best = chosen(run, x, m, **BSS)
        drawn = [chosen(run, x, m, rng=seed)[1] for seed in range(SEEDS)]
        epsilon = statistics.median(found.epsilon for found in drawn)
        condition = statistics.median(found.condition_number for found in drawn)
        values = best.epsilon, best.epsilon_promised, epsilon, drawn[0].epsilon_promised
        names = "bss", "bss, promised", "leverage", "leverage, promised"
        for name, value in zip(names, values, strict=True):
            curves.epsilons.setdefault(name, {})[ratio] = value
        bound = ((ratio**0.5 + 1) / (ratio**0.5 - 1)) ** 2
        cells = best.epsilon, best.epsilon_promised, best.condition_number, bound
        more = epsilon, drawn[0].epsilon_promised, condition
        yield row(f"{ratio:g}", three(seconds), *map(three, cells), *map(three, more))


def scores(run: Run, curves: Curves, bar: Silent) -> Iterator[str]:
    """Table 4."""
    yield table("x", "n", "d", "exact s", "sketched s", "sketched by itself", "epsilons")
    for n, (share, sizes) in itertools.product(
        run.rows, ((1.0, run.dense_columns), (0.01, run.sparse_columns))
    ):
        d = sizes[-1]
        bar.step(f"scores, n = {n}")
        x = made(n, d, share)
        (exact, first), (sketched, second) = contest(run, x, EXACT, SKETCHED)
        by_itself = chosen(run, x, 4 * n, rng=0)[1].is_sketched
        found = f"{first.epsilon:.2f}, {second.epsilon:.2f}"
        kind = "dense" if share == 1 else "sparse"
        cells = three(exact), three(sketched), "yes" if by_itself else "no"
        yield row(kind, n, f"{d:,}", *cells, found)


def sketches(run: Run, curves: Curves, bar: Silent) -> Iterator[str]:
    """Table 5."""
    n, d, delta, rng = 32, 20_000, 0.05, np.random.default_rng(0)
    x, widths = made(n, d, 1.0), [4 * n, 16 * n, 64 * n, 256 * n]
    white = ref.whitening(x)
    wanted = (n**2 + n) / (0.5**2 * delta)
    yield f"n = {n}, d = {d:,}: theory wants {wanted:,.0f} columns for a factor of 1/2 to 3/2."
    yield ""
    yield table("columns of the sketch", "factors", "root of (n^2 + n) / (width delta)")
    for width in widths:
        bar.step(f"sketch of {width:,} columns")
        against = white @ ref.count_sketch(x, width, rng)
        values = np.linalg.eigvalsh(against @ against.T)
        bound = ((n**2 + n) / (width * delta)) ** 0.5
        yield row(f"{width:,}", f"{values[0]:.2f} to {values[-1]:.2f}", three(bound))


TABLES = (growth, entries, epsilons, scores, sketches)
FULL = Run(
    n=256,
    sparse_columns=(10_000, 100_000, 1_000_000),
    dense_columns=(10_000, 31_623, 100_000),
    shares=(0.002, 0.01, 0.05, 0.2, 0.5),
    ratios=(1.5, 2, 3, 4, 8),
    columns=20_000,
    rows=(64, 256, 1024),
    rounds=3,
    threads=2,
)
QUICK = FULL._replace(
    n=64,
    sparse_columns=(5000, 20_000, 80_000),
    dense_columns=(2000, 6000, 20_000),
    columns=5000,
    rows=(64,),
    rounds=1,
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="n = 64, fewer columns, one round")
    parser.add_argument("--table", type=int, choices=range(1, 6), action="append", help="only this")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--plot", metavar="FILE", help="times and epsilons of tables 1 and 3")
    asked = parser.parse_args()
    run = (QUICK if asked.quick else FULL)._replace(threads=asked.threads)
    wanted = asked.table or range(1, 6)
    sizes = len(run.sparse_columns) + len(run.dense_columns)
    stages = (sizes, len(run.shares), len(run.ratios), 2 * len(run.rows), 4)
    curves = Curves({}, {})
    with progress(sum(stages[number - 1] for number in wanted)) as bar:
        bar.line(", ".join(f"{name} {version}" for name, version in versions().items()))
        bar.line(f"{processor()}, {run.threads} threads, float64, n = {run.n}")
        for number in wanted:
            bar.line(f"\nTable {number}\n")
            for text in TABLES[number - 1](run, curves, bar):
                bar.line(text)
    if asked.plot:
        draw(asked.plot, curves.times, curves.epsilons, run.n)
        print(f"\nwritten: {asked.plot}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
