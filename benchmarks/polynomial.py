"""Where polynomial attention pays, measured on this machine: four Markdown tables.

1. Head dimensions, ranges of the logits and tolerances, beside exact attention and torch.
2. Degree 4 at head dimension 8, forward and backward, beside the same.
3. Every mask at five lengths, and how time grows.
4. What shorter ways to something like attention would err by on the same inputs.

All is float32, one head. Methods take turns, A B C A B C; times are medians. Queries and keys are
standard normal, scaled so that the largest logit, the mean key subtracted, is the range; half of
the variance of the values goes with the keys, so that outputs are more than the mean.

    python benchmarks/polynomial.py [--quick] [--table N]... [--head-dim D]... [--mask NAME]
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from polynomial_masks import MASKS, exponent

import convbasis as cb
from convbasis import _layout
from convbasis.cli._bench_backward import Judge, output_gradient, torch_backward
from convbasis.cli._bench_text import versions
from convbasis.cli._plain import plain_attention, relative_error
from convbasis.cli._timing import Seconds, interleaved, milliseconds, torch_attention
from convbasis.cli.info import processor
from convbasis.polynomial import choose, polynomial_settings
from convbasis.problems import Problem

RANGES, TOLS, DIMS = (0.1, 0.5, 1.0, 2.0), (1e-1, 1e-2, 1e-3), (4, 8, 16, 64)
TRUTH_ROWS = 128
TORCH, EXACT = "torch SDPA", "exact_attention"
NAME = "polynomial_attention"


class Run(NamedTuple):
    """What the command line asks for."""

    n: int
    longest: int  # of the search for the crossover
    rounds: int
    threads: int
    head_dims: tuple[int, ...]
    mask: str

    def times(self, functions: dict[str, Callable[[], Any]]) -> dict[str, Seconds]:
        """All functions in turn, all of them warm."""
        return interleaved(functions, lambda _: None, rounds=self.rounds, seconds=20.0)


@functools.lru_cache(maxsize=16)
def problem_of(n: int, head_dim: int, largest: float, seed: int = 0) -> Problem:
    """One head with causal logits of at most `largest`, the mean key subtracted."""
    rng = np.random.default_rng([seed, head_dim])
    query, key, noise = rng.standard_normal((3, n, head_dim)).astype(np.float32)
    mixing = np.linalg.qr(rng.standard_normal((head_dim, head_dim)))[0].astype(np.float32)
    scale, centred = head_dim**-0.5, key - key.mean(axis=0)
    found = 0.0
    for first in range(0, n, 1024):
        block = np.abs(query[first : first + 1024] @ centred[: first + 1024].T)
        found = max(found, float(np.tril(block, first).max()))
    query *= np.float32(largest / (scale * found))
    value = ((key @ mixing + noise) / np.sqrt(2)).astype(np.float32)
    return Problem(query, key, value, np.empty(0, np.int64), scale, np.empty((0, n)))


def scaled(problem: Problem, factor: float) -> Problem:
    return replace(problem, query=problem.query * np.float32(factor))


def arrays_of(problem: Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return problem.query, problem.key, problem.value


def table(columns: str, *, left: int = 1) -> str:
    """The head of a Markdown table; the first `left` columns are words."""
    names = [name.strip() for name in columns.split("|")]
    rule = ["---" if i < left else "--:" for i in range(len(names))]
    return f"| {' | '.join(names)} |\n|{'|'.join(rule)}|"


def line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def ratio(baseline: Seconds, ours: Seconds) -> str:
    return f"{baseline.median / ours.median:.3g}"


def baselines(problem: Problem, run: Run) -> dict[str, Callable[[], Any]]:
    """Causal attention computed exactly, by name."""
    common: Any = {"is_causal": True, "scale": problem.scale, "num_threads": run.threads}
    found: dict[str, Callable[[], Any]] = {}
    if (torch := torch_attention(problem, run.threads)) is not None:
        found[TORCH] = torch[1]
    found[EXACT] = lambda: cb.exact_attention(*arrays_of(problem), **common)
    return found


def truth_and_rows(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    n = len(problem.query)
    rows = np.unique(np.linspace(0, n - 1, TRUTH_ROWS).astype(np.int64))
    wide = (array.astype(np.float64) for array in arrays_of(problem))
    return plain_attention(*wide, scale=problem.scale, is_causal=True, rows=rows), rows


def crossover(head_dim: int, tol: float, problems: dict[int, Problem], factor: float) -> str:
    """The least length from which the plan is a polynomial at every longer one."""
    settings = polynomial_settings(NAME, None, tol, "exact", False, None)
    found = "none"
    for n in sorted(problems, reverse=True):
        small = scaled(problems[n], factor)
        inputs = _layout.attention_inputs(
            NAME, *arrays_of(small), None, 0.0, True, small.scale, False, takes_mask=True
        )
        if not choose(inputs, settings).by_polynomial.all():
            break
        found = f"{n:,}"
    return found


def sizes(run: Run) -> Iterator[str]:
    """Table 1."""
    yield table(
        "d | range (certified) | tol | computed | exact rows, columns | error of a weight "
        "| output error | ms | SDPA ms | exact ms | against SDPA | against exact | pays from n",
        left=0,
    )
    lengths = [1 << power for power in range(8, run.longest.bit_length())]
    for d in run.head_dims:
        base = problem_of(run.n, d, 1.0)
        longer = {n: problem_of(n, d, 1.0) for n in lengths}
        functions = baselines(base, run)
        heads = {}
        for largest, tol in itertools.product(RANGES, TOLS):
            problem = scaled(base, largest)
            functions[f"{largest} {tol}"] = call = caller(problem, run, tol=tol)
            pays = crossover(d, tol, longer, largest)
            heads[largest, tol] = (*told(d, largest, tol, problem, call), pays)
        for method in baselines(base, run).values():
            method()  # the others are warm by their reports
        seconds = run.times(functions)
        for (largest, tol), (*cells, pays) in heads.items():
            ours = seconds[f"{largest} {tol}"]
            theirs = [seconds.get(method) for method in (TORCH, EXACT)]
            times = [milliseconds(them.median) if them else "-" for them in theirs]
            ratios = [ratio(them, ours) if them else "-" for them in theirs]
            yield line(*cells, milliseconds(ours.median), *times, *ratios, pays)


def told(
    head_dim: int, largest: float, tol: float, problem: Problem, call: Callable[..., Any]
) -> Iterator[str]:
    """The cells of table 1 on what was done and how wrong it is."""
    out, report = call(return_report=True)
    want, rows = truth_and_rows(problem)
    error = np.abs(out[rows] - want).max() / np.abs(problem.value).max()
    yield from (str(head_dim), f"{largest:g} ({float(report.radius):.2g})", f"{tol:g}")
    if report.method == "exact":
        yield from ("exactly", "-", "-")
    else:
        yield f"degree {report.degree}, {report.rank:,} features"
        yield f"{int(report.rows_exact):,}, {int(report.columns_exact):,}"
        yield f"{float(report.epsilon + report.rounding):.1e}"
    yield f"{error:.1e}"


def caller(problem: Problem, run: Run, **options: Any) -> Callable[..., Any]:
    def call(**more: Any) -> Any:
        return cb.polynomial_attention(
            *arrays_of(problem),
            is_causal=True,
            scale=problem.scale,
            num_threads=run.threads,
            **options,
            **more,
        )

    return call


def degree_four(run: Run) -> Iterator[str]:
    """Table 2."""
    yield table("pass | method | ms (min to max) | relative error | SDPA's time over it", left=2)
    problem = problem_of(run.n, 8, 1.0)
    want, rows = truth_and_rows(problem)
    forward = {"degree 4": caller(problem, run, degree=4), **baselines(problem, run)}
    errors = {name: relative_error(f()[rows], want) for name, f in forward.items()}
    yield from contest("forward", run.times(forward), errors)

    grad = output_gradient(problem, 0)
    common: Any = {"is_causal": True, "scale": problem.scale, "num_threads": run.threads}
    operands = (*arrays_of(problem), grad)
    backward: dict[str, Callable[[], Any]] = {
        "degree 4": lambda: cb.polynomial_attention_backward(*operands, degree=4, **common),
        EXACT: lambda: cb.exact_attention_backward(*operands, **common),
    }
    if (torch := torch_backward(problem, grad, run.threads)) is not None:
        backward[TORCH] = torch
    judge = Judge(problem, grad, cb.RecoverOptions(), rows, run.threads)
    errors = {name: judge.error(name, function()) for name, function in backward.items()}
    yield from contest("backward", run.times(backward), errors)


def contest(what: str, seconds: dict[str, Seconds], errors: dict[str, float]) -> Iterator[str]:
    for name, ours in seconds.items():
        low, high = milliseconds(min(ours.runs)), milliseconds(max(ours.runs))
        against = ratio(seconds[TORCH], ours) if TORCH in seconds else "-"
        time = f"{milliseconds(ours.median)} ({low} to {high})"
        yield line(what, name, time, f"{errors[name]:.1e}", against)


def masks(run: Run) -> Iterator[str]:
    """Table 3."""
    lengths = [run.longest >> shift for shift in (4, 3, 2, 1, 0)]
    names = " | ".join(f"{n:,}" for n in lengths)
    yield table(f"mask | method | {names} | time ~ n^ | formula n^ | error", left=2)
    for name, (make, cost, exact_too) in MASKS.items():
        if not name.startswith(run.mask):
            continue
        rows: dict[str, list[float]] = {}
        for n in lengths:
            problem, mask = problem_of(n, 8, 0.5), make(n)
            call: Any = {"scale": problem.scale, "num_threads": run.threads}
            functions = {
                "degree 3": lambda p=problem, m=mask, c=call: cb.polynomial_attention(
                    *arrays_of(p), m, degree=3, **c
                ),
                EXACT: lambda p=problem, m=mask, c=call: cb.exact_attention(*arrays_of(p), m, **c),
            }
            if n == lengths[0]:
                wide = [array.astype(np.float64) for array in arrays_of(problem)]
                want = cb.exact_attention(*wide, mask, **call)
                errors = {key: relative_error(f(), want) for key, f in functions.items()}
            if not exact_too:
                functions.pop(EXACT)
            for function in functions.values():
                function()
            for key, seconds in run.times(functions).items():
                rows.setdefault(key, []).append(seconds.median)
        for key, medians in rows.items():
            formula = exponent(lengths, [cost(n) for n in lengths]) if key != EXACT else 1.0
            grown = f"{exponent(lengths, medians):.2f}"
            cells = [milliseconds(median) for median in medians]
            yield line(name, key, *cells, grown, f"{formula:.2f}", f"{errors[key]:.1e}")


def weak(run: Run) -> Iterator[str]:
    """Table 4."""
    yield table("method | largest error over max abs value | relative error (Frobenius)")
    problem = problem_of(run.n, 8, 1.0)
    want, rows = truth_and_rows(problem)
    running = np.cumsum(problem.value.astype(np.float64), axis=0) / np.arange(1, run.n + 1)[:, None]
    window = cb.masks.SlidingWindow(256) & cb.masks.Causal()
    methods = {
        "running mean of the values": running,
        "degree 1": caller(problem, run, degree=1)(),
        "the last 256 keys only": cb.exact_attention(
            *arrays_of(problem), window, scale=problem.scale, num_threads=run.threads
        ),
        "tol 1e-2": caller(problem, run, tol=1e-2)(),
        "tol 1e-3": caller(problem, run, tol=1e-3)(),
    }
    for name, got in methods.items():
        largest = np.abs(got[rows] - want).max() / np.abs(problem.value).max()
        yield line(name, f"{largest:.1e}", f"{relative_error(got[rows], want):.1e}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="n = 4,096, fewer rounds")
    parser.add_argument("--table", type=int, choices=range(1, 5), action="append", help="only this")
    parser.add_argument("--head-dim", type=int, action="append", help=f"of table 1, default {DIMS}")
    parser.add_argument("--mask", default="", help="of table 3, those whose name begins so")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    size = (4096, 8192, 2) if asked.quick else (32768, 65536, 5)
    run = Run(*size, asked.threads, tuple(asked.head_dim or DIMS), asked.mask)
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    print(f"{processor()}, {run.threads} threads, float32, one head, n = {run.n:,}")
    for number, part in enumerate((sizes, degree_four, masks, weak), start=1):
        if asked.table is None or number in asked.table:
            print(f"\nTable {number}\n")
            for row in part(run):
                print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
