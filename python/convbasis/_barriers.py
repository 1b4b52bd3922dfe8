"""Columns chosen one by one between two moving barriers.

Source: Batson, Spielman and Srivastava, *Twice-Ramanujan sparsifiers*, 2012, with the constants of
arXiv 2304.04397. A step needs the column of the largest slack, a quadratic form ``v^T M v`` with a
matrix that changes a little in every step. So all columns are looked at from time to time only,
and in between those that were best then. Any column with a slack of 0 or more keeps the promise,
so a stale list costs nothing but a little quality; when it has none left, all are looked at again.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from . import _core
from ._columns import DenseColumns, SparseColumns

#: Columns kept between looks at all, and steps until the next look, both per unit of rank. With
#: these the same columns are chosen as by a look at all in every step, or nearly the same.
LISTED_PER_RANK = 4
STEPS_PER_RANK = 1 / 8


class Candidates:
    """The columns, whitened, that had the largest forms when all were looked at last."""

    def __init__(self, columns: DenseColumns | SparseColumns, white: np.ndarray) -> None:
        self.columns, self.white = columns, white
        rank, d = len(white), columns.shape[1]
        self.listed = np.arange(d)
        self.size = LISTED_PER_RANK * rank
        self.period = max(int(STEPS_PER_RANK * rank), 1)
        self.is_all = self.size >= d
        self.left = 0  # steps until all are looked at again
        self.vectors = self.whitened() if self.is_all else np.empty((rank, 0))

    def whitened(self) -> np.ndarray:
        return np.ascontiguousarray(self.white @ self.columns.take(self.listed))

    def largest(self, matrix: np.ndarray) -> tuple[int, np.ndarray]:
        """The column with the largest form, and it whitened."""
        if self.left == 0 and not self.is_all:
            self.refresh(matrix)
        forms = self.forms(matrix)
        if forms.max() < 0 and self.left < self.period and not self.is_all:
            self.refresh(matrix)
            forms = self.forms(matrix)
        self.left -= 1
        best = int(np.argmax(forms))
        return int(self.listed[best]), self.vectors[:, best]

    def forms(self, matrix: np.ndarray) -> np.ndarray:
        return _core.dense_quadratic_forms(self.vectors, matrix, self.columns.num_threads)

    def refresh(self, matrix: np.ndarray) -> None:
        forms = self.columns.forms(self.white.T @ matrix @ self.white)
        self.listed = np.sort(np.argpartition(forms, -self.size)[-self.size :])
        self.vectors, self.left = self.whitened(), self.period


def barrier_sample(
    columns: DenseColumns | SparseColumns,
    white: np.ndarray,
    num_columns: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Indices and weights of at most `num_columns` columns; `white` (k, n) whitens them."""
    rank = len(white)
    candidates, squares = Candidates(columns, white), np.zeros(columns.shape[1])
    root = math.sqrt(num_columns / rank)
    step_high = (root + 1) / (root - 1)
    low, high = -rank * root, rank * (root**2 + root) / (root - 1)
    potential_low, potential_high = rank / -low, rank / high
    total = np.zeros((rank, rank))
    for step in range(num_columns):
        low, high = low + 1.0, high + step_high
        (below, above), (below_squared, above_squared) = _core.barrier_inverses(
            total, low, high, columns.num_threads
        )
        rise, fall = np.trace(below) - potential_low, potential_high - np.trace(above)
        most = below_squared / rise - below
        least = above_squared / fall + above
        best, v = candidates.largest(most - least)
        to_below, to_above = times(below, v), times(above, v)
        low_form, low_square = v @ to_below, to_below @ to_below
        high_form, high_square = v @ to_above, to_above @ to_above
        square = 2.0 / (low_square / rise - low_form + high_square / fall + high_form)
        squares[best] += square
        total += square * np.outer(v, v)
        # The potentials of the new total, by the formula of Sherman and Morrison.
        potential_low = np.trace(below) - low_square / (1.0 / square + low_form)
        potential_high = np.trace(above) + high_square / (1.0 / square - high_form)
        if progress is not None:
            progress(step + 1, num_columns)
    values, _ = _core.symmetric_eigen(total)
    squares *= 2.0 / (values[0] + values[-1])  # as far above 1 as below
    indices = np.flatnonzero(squares)
    return indices, np.sqrt(squares[indices])


def times(matrix: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Their product without BLAS, whose threads take longer to meet than this takes."""
    return np.asarray(np.einsum("ij,j->i", matrix, v))


def barrier_epsilon(rank: int, num_columns: int) -> float:
    """What the promise is for a number of columns above the rank: ``2 sqrt(c) / (c + 1)``."""
    return 2 * math.sqrt(num_columns * rank) / (num_columns + rank)


def barrier_columns(rank: int, epsilon: float) -> int:
    """The least number of columns with that promise."""
    ratio = ((1 + math.sqrt(1 - epsilon**2)) / epsilon) ** 2
    return max(math.ceil(ratio * rank), rank + 1)
