"""Every accuracy and memory number that the project promises, measured on this machine.

One line a promise: what was run and how large, what was measured, the limit or the baseline that it
is held against, and whether it held. The exit code is 0 if all did. Times are the business of
`convbasis bench`.

    python benchmarks/promises.py [--quick]
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

import convbasis as cb
from convbasis import problems, reference
from convbasis.cli._bench_memory import NotMeasured, memory_growth
from convbasis.problems import Problem


class Line(NamedTuple):
    """One promise as measured."""

    what: str
    measured: str
    limit: str
    held: bool | None  # None: could not be measured here, and `measured` says why


def at_most(what: str, value: float, limit: float, note: str = "") -> Line:
    return Line(what, f"{value:.2g}{note}", f"<= {limit:.2g}", bool(value <= limit))


def none_of(what: str, failures: int, count: int, note: str = "") -> Line:
    return Line(what, f"{failures} of {count:,} fail{note}", "none", failures == 0)


def relative(got: np.ndarray, want: np.ndarray) -> float:
    """Frobenius norm of the error over that of the truth."""
    return float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want))


def truth(problem: Problem) -> np.ndarray:
    wide = (a.astype(np.float64) for a in (problem.query, problem.key, problem.value))
    return reference.attention(*wide, is_causal=True, scale=problem.scale)[0]


def attend(problem: Problem, **options: Any) -> Any:
    arrays = (problem.query, problem.key, problem.value)
    return cb.conv_attention(*arrays, is_causal=True, scale=problem.scale, **options)


def naive(problem: Problem) -> np.ndarray:
    """Attention in the type of the inputs, written plainly: the baseline for float32."""
    dtype, n = problem.query.dtype, len(problem.query)
    logits = (problem.query @ problem.key.T) * dtype.type(problem.scale)
    logits = np.where(np.tri(n, dtype=bool), logits, dtype.type(-np.inf))
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (weights @ problem.value) / weights.sum(axis=1, keepdims=True)


def finds_its_starts(problem: Problem, options: cb.RecoverOptions | None = None) -> bool:
    basis = cb.recover_basis(problem.query, problem.key, scale=problem.scale, options=options)
    return bool(np.array_equal(basis.starts, problem.starts))


def exactly_conv(quick: bool) -> Iterator[Line]:
    """k-conv logits: exact in float32 too (dyadic), and rounded as any input is (rotary)."""
    seeds = 2 if quick else 5
    for n, k in itertools.product((512, 1024) if quick else (512, 1024, 2048), (1, 3, 16)):
        wrong, wide, ratios = 0, 0.0, {"dyadic": 0.0, "rotary": 0.0}
        for seed in range(seeds):
            problem = problems.conv_problem(n, 64, k, seed=seed)
            wide = max(wide, relative(attend(problem), truth(problem)))
            single: dict[str, Any] = {"seed": seed, "dtype": np.float32}
            dyadic = problems.dyadic_conv_problem(n, 64, k, **single)
            wrong += (not finds_its_starts(problem)) + (not finds_its_starts(dyadic))
            rotary = problems.conv_problem(n, 64, k, **single)
            for kind, problem in {"dyadic": dyadic, "rotary": rotary}.items():
                want = truth(problem)
                ratio = relative(attend(problem), want) / relative(naive(problem), want)
                ratios[kind] = max(ratios[kind], ratio)
        size = f"n {n:,} k {k}"
        yield none_of(f"{size}: starts are the planted ones", wrong, 2 * seeds)
        yield at_most(f"{size}: float64, error against the oracle", wide, 1e-11)
        for kind, ratio in ratios.items():
            what = f"{size}: float32, {kind}, error over naive float32's"
            yield at_most(what, ratio, 2.0, " times")


def noisy(quick: bool) -> Iterator[Line]:
    """Noise up to delta / (5 T): the theorem's bound, the starts, and the certificates."""
    count, window, delta, rng = 200 if quick else 1000, 16, 0.1, np.random.default_rng(0)
    worst, above, uncertified, moved = 0.0, 0, 0, 0
    for seed in range(count):
        n, k = int(rng.integers(64, 257)), int(rng.integers(1, 5))
        epsilon = delta / (5 * window) * rng.uniform(0.05, 1.0)
        problem = problems.conv_problem(n, 16, k, seed=seed, epsilon=epsilon, min_size=window)
        options = cb.RecoverOptions(num_bases=k, window=window, delta=delta, epsilon=epsilon)
        out, report = attend(problem, options=options, return_report=True, certify=True)
        error = float(np.abs(out - truth(problem)).max())
        bound = reference.theorem_bound(epsilon, problem.value)
        worst, above = max(worst, error / bound), above + (error > bound)
        uncertified += error > report.error_bound * (1 + 1e-9) + 1e-13
        moved += not finds_its_starts(problem, options)
    share = f", largest {worst:.2f} of it"
    yield none_of("noise <= delta/(5T): error below the theorem's bound", above, count, share)
    yield none_of("noise <= delta/(5T): error below the certificate", uncertified, count)
    yield none_of("noise <= delta/(5T): starts are the planted ones", moved, count)


def decompositions(quick: bool) -> Iterator[Line]:
    """Planted k is found, multiplies back bit by bit, and a dense matrix needs every column."""
    count, rng, wrong, unequal = 50 if quick else 200, np.random.default_rng(1), 0, 0
    for _ in range(count):
        n, k = int(rng.integers(20, 129)), int(rng.integers(1, 21))
        starts = np.sort(rng.choice(n, k, replace=False))
        dense = np.zeros((n, n))
        for start, stop in zip(starts, np.append(starts, n)[1:], strict=True):
            kernel = rng.normal(size=n)
            for column in range(start, stop):
                dense[column:, column] = kernel[: n - column]
        wrong += (basis := cb.decompose(dense)).num_bases != k
        unequal += not np.array_equal(basis.to_dense(), dense)
    yield none_of("decompose, n 20 to 128: k is the planted one", wrong, count)
    yield none_of("decompose, n 20 to 128: multiplies back exactly", unequal, count)
    found = cb.decompose(np.tril(rng.normal(size=(100, 100)))).num_bases
    yield Line("decompose, dense 100 x 100: every column", f"k {found}", "k 100", found == 100)


def every_column(quick: bool) -> Iterator[Line]:
    """Any query and key: as many strips as columns are exact attention."""
    for dtype, limit in ((np.float32, 1e-6), (np.float64, 1e-12)):
        rng, worst = np.random.default_rng(2), 0.0
        for _ in range(5 if quick else 20):
            n = int(rng.integers(2, 300))
            query, key, value = rng.normal(size=(3, n, 24)).astype(dtype)
            options = cb.RecoverOptions(num_bases=n, window=1)
            out = cb.conv_attention(query, key, value, is_causal=True, options=options)
            wide = (array.astype(np.float64) for array in (query, key, value))
            worst = max(worst, relative(out, reference.attention(*wide, is_causal=True)[0]))
        yield at_most(f"num_bases=n, window=1, {dtype.__name__}: error", worst, limit)


def heavy(quick: bool) -> Iterator[Line]:
    """Float32 logits of standard deviation 8, which spread weights over more than e^50."""
    rng = np.random.default_rng(3)
    for n in (1024, 4096) if quick else (1024, 4096, 16384):
        for k in (1, 4):
            starts = np.arange(k) * n // k
            kernels = (8.0 * rng.normal(size=(k, n))).astype(np.float32)
            kernels[np.arange(n) >= (n - starts)[:, None]] = 0.0
            basis = cb.ConvBasis(starts, k, kernels)
            value = rng.normal(size=(n, 64)).astype(np.float32)
            unused = np.zeros((n, 4), np.float32)
            out, report = cb.conv_attention(
                unused, unused, value, is_causal=True, basis=basis, return_report=True
            )
            strip_of = np.searchsorted(starts, np.arange(n), side="right") - 1
            wide, worst = value.astype(np.float64), 0.0
            for row in range(n):
                logits = kernels[strip_of[: row + 1], row - np.arange(row + 1)].astype(np.float64)
                weights = np.exp(logits - logits.max())
                worst = max(worst, relative(out[row], weights @ wide[: row + 1] / weights.sum()))
            what = f"heavy logits, n {n:,} k {k}: worst row error"
            yield at_most(what, worst, 1e-4, f" ({int(report.rows_exact):,} rows direct)")


def future_independence(quick: bool) -> Iterator[Line]:
    """With a given basis, later value rows change nothing before, bit for bit, on any threads."""
    dtypes = [np.dtype(name) for name in ("float16", "float32", "float64")]
    try:
        import ml_dtypes

        dtypes.append(np.dtype(ml_dtypes.bfloat16))
    except ImportError:
        yield Line("future-independence, bfloat16", "not measured: no ml_dtypes", "", None)
    few = cb.RecoverOptions(num_bases=3)
    for dtype in dtypes:
        failures = count = 0
        for n in (100, 1500) if quick else (100, 1500, 5000):
            problem = problems.conv_problem(n, 16, 3, seed=n)
            query, key, value = problem.query, problem.key, problem.value
            query, key, value = (array.astype(dtype) for array in (query, key, value))
            basis = cb.recover_basis(query, key, scale=problem.scale, options=few)
            call: dict[str, Any] = {"is_causal": True, "basis": basis}
            want = cb.conv_attention(query, key, value, **call, num_threads=1)
            for threads, row in itertools.product((1, 2, 3, 8), (0, n // 3, n - 2)):
                changed = value.copy()
                changed[row + 1 :] = -3 * value[row + 1 :] + 1
                got = cb.conv_attention(query, key, changed, **call, num_threads=threads)
                same = np.array_equal(got[: row + 1], want[: row + 1])
                failures, count = failures + (not same or not np.any(got != want)), count + 1
        yield none_of(f"future-independence, {dtype}, 1 to 8 threads", failures, count)


def memory(quick: bool) -> Iterator[Line]:
    """Peak growth of one call, recovery included, in a process of its own."""
    what = "memory growth of a call, n 16,384 k 16, float32"
    try:
        grown = memory_growth(16384, 64, 16, dtype="float32", seed=0, num_threads=2)
    except NotMeasured as error:
        held = None if "/proc/self" in str(error) else False
        yield Line(what, f"not measured: {error}", "", held)
    else:
        yield Line(what, f"{grown:.0f} MiB", "<= 200", grown <= 200)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n    ")[0])
    parser.add_argument("--quick", action="store_true", help="smaller and fewer problems")
    quick = parser.parse_args().quick
    began, broken = time.perf_counter(), 0
    print(f"convbasis {cb.__version__} ({cb.build_info()['simd']}), NumPy {np.__version__}\n")
    parts = (exactly_conv, noisy, decompositions, every_column, heavy, future_independence, memory)
    for line in itertools.chain.from_iterable(part(quick) for part in parts):
        broken += line.held is False
        mark = {True: "ok", False: "BROKEN", None: "-"}[line.held]
        print(f"{mark:6} {line.what:57} {line.measured:32} {line.limit}", flush=True)
    verdict = f"{broken} promises BROKEN" if broken else "every promise held"
    print(f"\n{verdict}, {time.perf_counter() - began:.0f} s")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
