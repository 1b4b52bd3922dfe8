"""A few reweighted columns that stand for all of a wide X.

Source: DMS23. For X of shape ``(n, d)``, ``d >> n``, a matrix Y of reweighted columns of X with
``(1 - epsilon) X X^T <= Y Y^T <= (1 + epsilon) X X^T`` in the Loewner order changes no logit of
``X X^T`` by more than ``epsilon r``, r the largest of them, hence no entry of their softmax by
more than a factor ``exp(2 epsilon r)``.

``k`` is the rank of X, ``m`` the number of columns wanted, ``v_j = (X X^T)^(-1/2) x_j`` on the
range of X.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Columns = tuple[NDArray[np.int64], Floats]


def whitening(x: ArrayLike) -> Floats:
    """B, shape (k, n), with ``B X X^T B^T = I``: ``(X X^T)^(-1/2)`` on the range of X.

    Singular values up to ``max(n, d)`` units in the last place of the largest count as zero.
    """
    left, values, _ = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
    tolerance = max(np.shape(x)) * np.finfo(np.float64).eps * values.max(initial=0.0)
    kept = values > tolerance
    return np.asarray((left[:, kept] / values[kept]).T)


def leverage_scores(x: ArrayLike) -> Floats:
    """``x_j^T (X X^T)^+ x_j`` of every column: within [0, 1], and their sum is the rank."""
    return np.asarray(np.sum((whitening(x) @ np.asarray(x, np.float64)) ** 2, axis=0))


def chernoff_columns(rank: int, epsilon: float, delta: float) -> int:
    """Columns that leverage sampling needs for `epsilon` with probability ``1 - delta``.

    By the matrix Chernoff bounds (Tropp, *User-friendly tail bounds for sums of random matrices*,
    2012, theorem 1.1): terms of norm at most ``k / m`` that sum to I in the mean leave
    ``[1 - epsilon, 1 + epsilon]`` with probability at most ``2 k exp(-m h / k)``,
    ``h = (1 + epsilon) log(1 + epsilon) - epsilon``.
    """
    h = (1 + epsilon) * math.log1p(epsilon) - epsilon
    return math.ceil(rank * math.log(2 * rank / delta) / h) if rank else 0


def leverage_sample(scores: ArrayLike, num_columns: int, rng: np.random.Generator) -> Columns:
    """Columns drawn with probabilities proportional to their scores, and their weights.

    A column to be drawn once or more on average is kept for certain, with weight 1: the sum stays
    unbiased, no term is larger than in plain sampling, and a column that alone spans a direction
    (score 1) is never missed. A column drawn c times out of m' has the weight ``sqrt(c / (m' p))``.
    """
    scores = np.asarray(scores, np.float64)
    expected = num_columns * scores / max(scores.sum(), np.finfo(np.float64).tiny)
    kept = expected >= 1 - 1e-9  # a score of 1 may be rounded down
    squares = np.where(kept, 1.0, 0.0)
    rest = np.where(kept, 0.0, scores)
    draws = num_columns - np.count_nonzero(kept)
    if draws > 0 and rest.any():
        p = rest / rest.sum()
        for drawn in rng.choice(len(p), size=draws, p=p):
            squares[drawn] += 1 / (draws * p[drawn])
    indices = np.flatnonzero(squares)
    return indices, np.sqrt(squares[indices])


def count_sketch(x: ArrayLike, width: int, rng: np.random.Generator) -> Floats:
    """C, shape (n, width): every column is added, with a random sign, to one of C at random.

    ``C C^T`` is ``X X^T`` in the mean, in O(nnz). With probability ``1 - delta`` it is within a
    factor of ``1 - beta`` and ``1 + beta`` once ``width >= (k^2 + k) / (beta^2 delta)`` (Nelson
    and Nguyen, *OSNAP: faster numerical linear algebra algorithms via sparser subspace
    embeddings*, 2013, theorem 3).
    """
    x = np.asarray(x, np.float64)
    sketch = np.zeros((x.shape[0], width))
    for column in x.T:
        sketch[:, rng.integers(width)] += rng.choice((-1.0, 1.0)) * column
    return sketch


def sketched_scores(x: ArrayLike, width: int, rows: int, rng: np.random.Generator) -> Floats:
    """Leverage scores as in the paper: whitened by a sketch, squared lengths by a projection.

    Both only nearly: O(nnz + n^2 width) for the one, O(nnz rows) for the other.
    """
    white = whitening(count_sketch(x, width, rng))
    projection = rng.normal(size=(rows, len(white))) / math.sqrt(rows)
    return np.asarray(np.sum((projection @ white @ np.asarray(x, np.float64)) ** 2, axis=0))


def barrier_sample(
    x: ArrayLike, num_columns: int, *, choice: Literal["largest", "first"] = "largest"
) -> Columns:
    """Columns chosen one by one between two moving barriers, and their weights: deterministic.

    After Batson, Spielman and Srivastava, *Twice-Ramanujan sparsifiers*, 2012. Each of m steps
    moves the barriers ``l < A < u`` up and adds ``s v v^T`` to A, with a column that neither
    barrier forbids: ``U(v) <= 1/s <= L(v)``. One always exists for ``m > k``; `choice` takes the
    one with the largest slack ``L - U`` or the first one. Weights are scaled so that the
    eigenvalues of ``B Y Y^T B^T`` lie as far above 1 as below.
    """
    v = whitening(x) @ np.asarray(x, np.float64)
    rank, d = v.shape
    if rank == 0:
        return np.zeros(0, np.int64), np.zeros(0)
    root = math.sqrt(num_columns / rank)
    step_low, step_high = 1.0, (root + 1) / (root - 1)
    low, high = -rank * root, rank * (root**2 + root) / (root - 1)
    total, squares, identity = np.zeros((rank, rank)), np.zeros(d), np.eye(rank)
    for _ in range(num_columns):
        potential_low = np.trace(np.linalg.inv(total - low * identity))
        potential_high = np.trace(np.linalg.inv(high * identity - total))
        low, high = low + step_low, high + step_high
        below = np.linalg.inv(total - low * identity)
        above = np.linalg.inv(high * identity - total)
        most = forms(v, below @ below) / (np.trace(below) - potential_low) - forms(v, below)
        least = forms(v, above @ above) / (potential_high - np.trace(above)) + forms(v, above)
        slack = most - least
        best = int(np.argmax(slack if choice == "largest" else slack >= min(0.0, slack.max())))
        square = 2 / (most[best] + least[best])
        total += square * np.outer(v[:, best], v[:, best])
        squares[best] += square
    values = np.linalg.eigvalsh(total)
    squares *= 2 / (values[0] + values[-1])
    indices = np.flatnonzero(squares)
    return indices, np.sqrt(squares[indices])


def forms(v: Floats, matrix: Floats) -> Floats:
    """``v_j^T matrix v_j`` of every column."""
    return np.asarray(np.sum(v * (matrix @ v), axis=0))


def barrier_epsilon(columns_per_rank: float) -> float:
    """Largest epsilon of `barrier_sample` with ``m = c k``: ``2 sqrt(c) / (c + 1)``.

    The condition number is at most ``((sqrt(c) + 1) / (sqrt(c) - 1))^2``, and eigenvalues as far
    above 1 as below make of a condition number K an epsilon of ``(K - 1) / (K + 1)``.
    """
    return 2 * math.sqrt(columns_per_rank) / (columns_per_rank + 1)


def spectral_range(x: ArrayLike, features: ArrayLike) -> tuple[float, float]:
    """Extreme eigenvalues of ``Y Y^T`` against ``X X^T``, on the range of X."""
    white = whitening(x) @ np.asarray(features, np.float64)
    values = np.linalg.eigvalsh(white @ white.T)
    return (float(values[0]), float(values[-1])) if len(values) else (1.0, 1.0)


def spectral_epsilon(x: ArrayLike, features: ArrayLike) -> float:
    """Least epsilon for which the features keep the promise."""
    least, most = spectral_range(x, features)
    return max(1 - least, most - 1)


def sparsified_bound(epsilon: float, radius: float) -> float:
    """Largest relative change of an entry of the softmax: ``exp(2 epsilon r) - 1``."""
    return math.expm1(2 * epsilon * radius)


def softmax_change(x: ArrayLike, features: ArrayLike) -> float:
    """Largest relative change of an entry of the softmax of ``X X^T`` when Y replaces X.

    Features of zeros give the error of the trivial answer, the mean of all rows: whatever does
    not beat it says nothing.
    """

    def log_softmax(rows: Floats) -> Floats:
        logits = rows @ rows.T
        shifted = logits - logits.max(axis=1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))

    new, old = log_softmax(np.asarray(features, float)), log_softmax(np.asarray(x, float))
    return float(np.abs(np.expm1(new - old)).max(initial=0.0))
