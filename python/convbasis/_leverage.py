"""Columns drawn with probabilities proportional to their leverage scores.

The numbers are those of the matrix Chernoff bounds: Tropp, *User-friendly tail bounds for sums of
random matrices*, 2012, theorem 1.1. Terms of norm at most ``k / m`` whose mean is I leave
``[1 - epsilon, 1 + epsilon]`` with a probability of at most ``2 k exp(-m h(epsilon) / k)``.
"""

from __future__ import annotations

import math

import numpy as np


def tail_exponent(epsilon: float) -> float:
    """h, the exponent of the upper tail, the weaker one."""
    return (1 + epsilon) * math.log1p(epsilon) - epsilon


def leverage_columns(rank: int, epsilon: float, delta: float) -> int:
    """Columns that bring `epsilon` with probability ``1 - delta``."""
    if rank == 0:
        return 1
    return max(math.ceil(rank * math.log(2 * rank / delta) / tail_exponent(epsilon)), rank)


def leverage_epsilon(rank: int, num_columns: int, delta: float) -> float:
    """What a number of columns brings with probability ``1 - delta``: the bound, inverted."""
    wanted = rank * math.log(2 * rank / delta) / num_columns
    low, high = 0.0, 1.0
    while tail_exponent(high) < wanted:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if tail_exponent(middle) < wanted else (low, middle)
    return high


def leverage_sample(
    scores: np.ndarray, num_columns: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Indices and weights of at most `num_columns` columns.

    A column to be drawn once or more on average is kept for certain, with weight 1. Its term then
    does not vary, and those of the others are no larger than in plain sampling: the bounds hold,
    and no direction is lost that only one column has.
    """
    scores = np.maximum(scores, 0.0)
    kept = num_columns * scores >= (1 - 1e-9) * scores.sum()  # a score of 1 may be rounded down
    draws = max(num_columns - int(kept.sum()), 0)
    squares = kept.astype(np.float64)
    rest = np.where(kept, 0.0, scores)
    if draws and rest.any():
        total = np.cumsum(rest)
        drawn = np.searchsorted(total, rng.random(draws) * total[-1], side="right")
        times = np.bincount(drawn, minlength=len(scores))
        chosen = times > 0
        squares[chosen] += times[chosen] * total[-1] / (draws * rest[chosen])
    indices = np.flatnonzero(squares)
    return indices, np.sqrt(squares[indices])
