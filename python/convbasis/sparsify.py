"""Wide features replaced by a few of their columns.

Source: Deng, Mahadevan, Song, *Randomized and Deterministic Attention Sparsification Algorithms
for Over-parameterized Feature Dimension*, arXiv 2304.04397.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from . import _barriers, _columns, _core, _leverage, _validate
from ._sparsified import Sparsified

#: Singular values up to this share of the largest count as zero, once rows have norm 1. They are
#: roots of eigenvalues of X X^T, whose own noise is near 1e-16 of the largest.
RANK_TOLERANCE = 1e-6

#: Taken when neither a number of columns nor an epsilon is given.
DEFAULT_EPSILON = 0.5


def sparsify_features(
    x: Any,
    *,
    method: Literal["leverage", "bss"] = "leverage",
    num_columns: int | None = None,
    epsilon: float | None = None,
    delta: float = 0.05,
    rng: np.random.Generator | int | None = None,
    num_threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sparsified:
    """A few reweighted columns Y of a wide matrix X with nearly the same logits ``X X^T``.

    ``(1 - epsilon) X X^T <= Y Y^T <= (1 + epsilon) X X^T`` in the Loewner order. Logits then err by
    at most ``epsilon r``, r the largest, and every entry of their softmax by at most a factor
    ``exp(2 epsilon r)``. Y has at least as many columns as X has rank: this is for short sequences
    with far wider features (``d >> n``), and of no use for ordinary attention heads.

    Parameters
    ----------
    x : ndarray, or scipy.sparse matrix or array in CSR or CSC, shape (n, d), d >= n
        float32, float64, float16 or bfloat16; sparse ones float32 or float64.
    method : {"leverage", "bss"}
        "leverage" draws columns with probabilities proportional to their leverage scores. "bss"
        (Batson, Spielman, Srivastava) chooses them one by one; it draws nothing, takes longer, and
        comes out at about half the condition number.
    num_columns : int, optional
        At most so many; at least the rank of x, for "bss" above it. From d on, all columns that
        are not zero are taken as they are.
    epsilon : float, optional
        In place of `num_columns`: an epsilon between 0 and 1 to promise. 0.5 if neither is given.
    delta : float
        Probability at most that "leverage" does not keep its promise.
    rng : numpy.random.Generator or int, optional
        Source of the draws, or its seed. "bss" gives the same for any.
    num_threads : int, optional
        Default all cores this process may use. Results do not depend on it. Some products of
        small matrices are NumPy's, in threads of its own.
    progress : callable, optional
        Called as ``progress(chosen, num_columns)`` after every column of "bss", and once at the
        end of "leverage".

    Returns
    -------
    Sparsified
        With the features, what they promised and what they turned out to be.

    Raises
    ------
    ValueError, TypeError
        If an argument breaks a rule.

    Notes
    -----
    For rank k, "leverage" promises epsilon from ``k log(2 k / delta) / h`` columns,
    ``h = (1 + epsilon) log(1 + epsilon) - epsilon``, the matrix Chernoff bound; it keeps columns
    that would be drawn once or more on average for certain. "bss" promises it from c k columns,
    ``epsilon = 2 sqrt(c) / (c + 1)``, whose condition number is at most
    ``((sqrt(c) + 1) / (sqrt(c) - 1))^2``.

    Singular values up to 1e-6 of the largest, of x with rows of norm 1, count as zero, and what
    lies in their directions is not held to epsilon. Rounding moves the measured epsilon by about
    1e-16 times the square of the largest singular value by the smallest that counts.

    Leverage scores are exact, not sketched as in the paper: measuring epsilon takes ``X X^T``, from
    which they follow at about the same cost, and sketched ones would need more columns.

    Everything is computed in float64. ``X X^T`` and the forms of all columns take O(n^2 d), or
    O(sum of nnz_j^2) when x is sparse. "bss" does so once every k/8 steps and keeps the 4 k best
    columns for the steps in between, which cost O(k^3) each. Memory O(n^2 + k m), for "bss"
    O(k^2), beside a copy of x unless it is float64 in rows.

    Source: Deng, Mahadevan, Song, arXiv 2304.04397.

    Examples
    --------
    >>> import numpy as np, convbasis as cb
    >>> x = 0.02 * np.random.default_rng(0).normal(size=(16, 2000))
    >>> few = cb.sparsify_features(x, method="bss", num_columns=64)
    >>> few.features.shape[1] <= 64, bool(few.epsilon < few.epsilon_promised == 0.8)
    (True, True)
    >>> value = np.eye(16)
    >>> exact = cb.exact_attention(x, x, value, scale=1.0)
    >>> out = cb.exact_attention(few.features, few.features, value, scale=1.0)
    >>> bool(np.abs(out / exact - 1).max() <= few.error_bound)
    True
    """
    name = "sparsify_features"
    x = _columns.checked(name, "x", x)
    if x.ndim != 2 or x.shape[0] == 0:
        raise _validate.wrong(name, "x", "is no matrix", "shape (n, d), n >= 1", f"shape {x.shape}")
    n, d = x.shape
    if d < n:
        raise _validate.wrong(
            name,
            "x",
            "has fewer columns than rows, and nothing to leave out",
            f"shape (n, d) with d >= n = {n}",
            f"shape {x.shape}",
        )
    if not np.isfinite(x.data if _columns.is_sparse(x) else x).all():
        raise _validate.wrong(
            name, "x", "has NaN or infinite entries", "finite numbers", f"shape {x.shape}"
        )
    _validate.choice(name, "method", method, ("leverage", "bss"))
    if num_columns is not None:
        num_columns = _validate.integer(name, "num_columns", num_columns, minimum=1)
        if epsilon is not None:
            raise _validate.wrong(
                name, "epsilon", "is given beside num_columns", "one of the two", epsilon
            )
    epsilon = probability(name, "epsilon", DEFAULT_EPSILON if epsilon is None else epsilon)
    delta = probability(name, "delta", delta)
    generator = generator_of(name, rng)
    threads = _validate.threads(name, num_threads)
    if progress is not None and not callable(progress):
        raise _validate.wrong(
            name, "progress", "cannot be called", "a function or None", repr(progress), TypeError
        )

    columns, factor = _columns.columns_of(x, threads)
    gram = columns.gram()
    white = whitening(gram)
    rank, is_bss = len(white), method == "bss"
    if num_columns is None:
        num_columns = (
            _barriers.barrier_columns(rank, epsilon)
            if is_bss
            else _leverage.leverage_columns(rank, epsilon, delta)
        )
    elif num_columns < rank + is_bss and num_columns < d:
        raise _validate.wrong(
            name,
            "num_columns",
            f"is too small for x of rank {rank}",
            f"more than {rank}" if is_bss else f"at least {rank}",
            num_columns,
        )
    promised = 0.0
    if num_columns >= d or rank == 0:
        indices = np.flatnonzero(columns.forms(np.eye(n)))
        if rank == 0:
            indices = np.zeros(1, np.int64)  # one column of zeros, so that the features have one
        weights = np.ones(len(indices))
    elif is_bss:
        promised = _barriers.barrier_epsilon(rank, num_columns)
        indices, weights = _barriers.barrier_sample(columns, white, num_columns, progress)
    else:
        promised = _leverage.leverage_epsilon(rank, num_columns, delta)
        scores = columns.forms(white.T @ white)
        indices, weights = _leverage.leverage_sample(scores, num_columns, generator)
        if progress is not None:
            progress(num_columns, num_columns)
    features = _columns.reweighted(x, indices, weights)
    return Sparsified(
        features=features,
        indices=indices,
        weights=weights,
        method=method,
        num_columns=num_columns,
        total_columns=d,
        rank=rank,
        epsilon_promised=promised,
        **measured(columns.take(indices) * weights, white, gram, factor, threads),
    )


def whitening(gram: np.ndarray) -> np.ndarray:
    """B, shape (rank, n), with ``B gram B^T = I``.

    Rows are brought to norm 1 first: the promise does not depend on their sizes, and the smaller
    ones would drown in the rounding of the larger.
    """
    norms = np.sqrt(np.diag(gram))
    norms[norms == 0.0] = 1.0
    values, vectors = _core.symmetric_eigen(gram / norms / norms[:, None])
    in_range = values > RANK_TOLERANCE**2 * values[-1]
    return np.asarray(vectors[in_range] / np.sqrt(values[in_range])[:, None] / norms)


def measured(
    features: np.ndarray, white: np.ndarray, gram: np.ndarray, factor: float, threads: int
) -> dict[str, float]:
    """How far the features are from what they stand for; `factor` was on both."""
    whitened = white @ features
    values = np.ones(1)
    if len(white):
        values = np.maximum(_core.symmetric_eigen(_core.gram_matrix(whitened, threads))[0], 0.0)
    epsilon = max(1.0 - values[0], values[-1] - 1.0, 0.0)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        logits = gram / factor / factor
        few = _core.gram_matrix(features, threads) / factor / factor
        radius, deviation = np.abs(logits).max(), np.abs(few - logits).max()
        change = log_softmax(few) - log_softmax(logits)
        return {
            "epsilon": float(epsilon),
            "condition_number": float(values[-1] / values[0]),
            "radius": float(radius),
            "logit_deviation": float(deviation),
            "error_bound": float(np.expm1(2 * max(epsilon * radius, deviation))),
            "error": float(np.abs(np.expm1(change)).max()),
            "trivial_error": float(
                np.abs(np.expm1(-np.log(len(gram)) - log_softmax(logits))).max()
            ),
        }


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def probability(function: str, name: str, value: object) -> float:
    """`value` as a number between 0 and 1, neither of them."""
    result = _validate.number(function, name, value)
    if not 0.0 < result < 1.0:
        raise _validate.wrong(function, name, "is out of range", "between 0 and 1", result)
    return result


def generator_of(function: str, rng: object) -> np.random.Generator:
    if isinstance(rng, np.random.Generator):
        return rng
    if rng is None:
        return np.random.default_rng()
    try:
        return np.random.default_rng(_validate.integer(function, "rng", rng, minimum=0))
    except TypeError as error:
        raise _validate.wrong(
            function,
            "rng",
            "is no source of random numbers",
            "a numpy.random.Generator, a seed or None",
            repr(rng),
            TypeError,
        ) from error
