"""conv_attention beside exact attention: time and error in one table.

Every row is one structured problem with k known bases, or with none (random query and key),
float32, one head, causal. The candidates run in turn (A B C A B C ...) on the same inputs with the
same number of threads; the table gives the median time, its spread, and the error against exact
attention in float64. torch is compared when it is installed.

    python benchmarks/attention.py [--threads 2] [--repeats 7] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

import convbasis as cb

SIZES = [(4096, 4), (16384, 16), (65536, 16), (4096, 0)]


def candidates(problem: cb.problems.Problem, threads: int) -> dict[str, Callable[[], np.ndarray]]:
    """What is timed, by name."""
    query, key, value = problem.query, problem.key, problem.value
    common: dict[str, Any] = {"is_causal": True, "scale": problem.scale, "num_threads": threads}
    found: dict[str, Callable[[], np.ndarray]] = {
        "conv_attention": lambda: cb.conv_attention(query, key, value, **common),
        "exact_attention": lambda: cb.exact_attention(query, key, value, **common),
    }
    try:
        import torch
    except ImportError:
        return found
    torch.set_num_threads(threads)
    tensors = [torch.from_numpy(array)[None, None] for array in (query, key, value)]
    sdpa = torch.nn.functional.scaled_dot_product_attention
    found[f"torch {torch.__version__} SDPA"] = lambda: sdpa(
        *tensors, is_causal=True, scale=problem.scale
    ).numpy()[0, 0]
    return found


def timed(run: Callable[[], np.ndarray]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def measure(n: int, num_bases: int, head_dim: int, threads: int, repeats: int) -> dict[str, Any]:
    """Times and errors of every candidate for one problem."""
    problem = cb.problems.conv_problem(n, head_dim, max(num_bases, 1), dtype=np.float32, seed=n)
    if num_bases == 0:
        rng = np.random.default_rng(n)
        query, key = rng.standard_normal((2, n, head_dim), dtype=np.float32)
        problem = replace(problem, query=query, key=key, scale=head_dim**-0.5)
    runs = candidates(problem, threads)
    rows = np.sort(np.random.default_rng(0).choice(n, size=min(n, 1024), replace=False))
    truth = exact_rows(problem, rows)
    result: dict[str, Any] = {"n": n, "num_bases": num_bases, "head_dim": head_dim}
    for name, run in runs.items():  # warm up, and judge
        error = np.linalg.norm(run()[rows] - truth) / np.linalg.norm(truth)
        result[name] = {"error": float(error), "seconds": []}
    for _ in range(repeats if n <= 16384 else min(repeats, 3)):
        for name, run in runs.items():
            result[name]["seconds"].append(timed(run))
    _, report = cb.conv_attention(
        problem.query,
        problem.key,
        problem.value,
        is_causal=True,
        scale=problem.scale,
        return_report=True,
        num_threads=threads,
    )
    result["rows_exact"] = int(np.sum(report.rows_exact))
    result["recovered"] = int(report.num_bases)
    return result


def exact_rows(problem: cb.problems.Problem, rows: np.ndarray) -> np.ndarray:
    """Exact attention of a few rows in float64, one by one."""
    query = problem.query[rows].astype(np.float64) * problem.scale
    out = np.empty((len(rows), problem.value.shape[1]))
    for at, row in enumerate(rows):
        logits = problem.key[: row + 1].astype(np.float64) @ query[at]
        weights = np.exp(logits - logits.max())
        out[at] = weights @ problem.value[: row + 1] / weights.sum()
    return out


def as_markdown(results: list[dict[str, Any]]) -> str:
    names = [name for name, value in results[0].items() if isinstance(value, dict)]
    lines = [
        "| n | k | method | median, ms (min to max) | relative error | times faster than it |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        ours = statistics.median(result["conv_attention"]["seconds"])
        for name in names:
            seconds = result[name]["seconds"]
            median = statistics.median(seconds)
            bases = result["num_bases"] or "none"
            faster = "" if name == "conv_attention" else f"{median / ours:.1f}"
            lines.append(
                f"| {result['n']:,} | {bases} | {name} | {median * 1e3:.1f} "
                f"({min(seconds) * 1e3:.1f} to {max(seconds) * 1e3:.1f}) | "
                f"{result[name]['error']:.1e} | {faster} |"
            )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--json", metavar="FILE", help="write all times as JSON")
    options = parser.parse_args()
    results = []
    for n, num_bases in SIZES:
        print(f"n = {n:,}, k = {num_bases} ...", file=sys.stderr)
        results.append(measure(n, num_bases, options.head_dim, options.threads, options.repeats))
    info = cb.build_info()
    print(
        f"convbasis {cb.__version__} ({info['simd']}), NumPy {np.__version__}, Python "
        f"{platform.python_version()}, {options.threads} threads, float32, head_dim "
        f"{options.head_dim}, one head, causal\n"
    )
    print(as_markdown(results))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
