"""The masks of benchmarks/polynomial.py, each with the cost of its product by the docstring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from convbasis import masks

WINDOW, TOKENS, PATTERNS = 256, 16, 8

Made = tuple[Callable[[int], masks.Mask], Callable[[int], float], bool]


def row_window(n: int) -> masks.Mask:
    """Windows of some n / 4 keys in no order, so that no sum can be carried on."""
    rng = np.random.default_rng(n)
    start = rng.integers(0, n - n // 4, n)
    return masks.RowWindow(start, start + rng.integers(1, n // 2, n).clip(max=n - start))


def row_change(n: int) -> masks.Mask:
    """A quarter of all keys in shuffled order; from row to row one comes and one goes."""
    width = n // 4
    keys = np.random.default_rng(n).permutation(n)
    added = [[keys[(row + width) % n]] for row in range(n - 1)]
    removed = [[keys[row]] for row in range(n - 1)]
    return masks.RowChange(keys[:width], added, removed)


def patterns(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    return rng.integers(0, PATTERNS, n), rng.random((PATTERNS, n)) < 0.5


def longformer(n: int) -> masks.Mask:
    return masks.Longformer(WINDOW, np.arange(TOKENS) * (n // TOKENS))


#: By name: the mask of n queries and keys, the products that it costs, and whether exact attention
#: is linear under it.
MASKS: dict[str, Made] = {
    "Causal": (lambda n: masks.Causal(), float, False),
    "RowWindow, any order": (row_window, lambda n: n * np.log2(n), False),
    f"SlidingWindow({WINDOW})": (lambda n: masks.SlidingWindow(WINDOW), float, True),
    "SlidingWindow(2048)": (lambda n: masks.SlidingWindow(2048), float, True),
    "RowChange, 2 a row": (row_change, float, False),
    f"DistinctRows, {PATTERNS}": (lambda n: masks.DistinctRows(*patterns(n)), float, False),
    f"DistinctColumns, {PATTERNS}": (lambda n: masks.DistinctColumns(*patterns(n)), float, False),
    f"Longformer({WINDOW}), {TOKENS} tokens": (longformer, float, True),
}


def exponent(lengths: Sequence[int], times: Sequence[Any]) -> float:
    """Of the power of n that fits the times best."""
    return float(np.polyfit(np.log(lengths), np.log(times), 1)[0])
