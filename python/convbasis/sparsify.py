"""Wide features replaced by a few of their columns.

Source: Deng, Mahadevan, Song, *Randomized and Deterministic Attention Sparsification Algorithms
for Over-parameterized Feature Dimension*, arXiv 2304.04397.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np

from . import _columns, _validate
from ._sparsified import Sparsified

#: Taken when neither a number of columns nor an epsilon is given.
DEFAULT_EPSILON = 0.5

#: Of the bar: a hundred columns or more would be that many lines where there is no bar.
STEPS_SHOWN = 20


def sparsify_features(
    x: Any,
    *,
    method: Literal["leverage", "bss"] = "leverage",
    num_columns: int | None = None,
    epsilon: float | None = None,
    delta: float = 0.05,
    rng: np.random.Generator | int | None = None,
    scores: Literal["auto", "exact", "sketched"] = "auto",
    num_threads: int | None = None,
    progress: bool | Callable[[int, int], None] = False,
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
    scores : {"auto", "exact", "sketched"}
        How "leverage" comes by its scores. "exact" forms those of all columns, "sketched" only of
        columns on which draws fall, and guesses the others; "auto" takes what is expected to be
        cheaper. The columns are drawn from the same distribution.
    num_threads : int, optional
        Default all cores this process may use. Results do not depend on it.
    progress : bool or callable
        True shows a bar on standard error, if that is a terminal. A callable is called as
        ``progress(chosen, num_columns)`` after every column of "bss", and once at the end of
        "leverage".

    Returns
    -------
    Sparsified
        With the features, what they promised and what they turned out to be.

    Raises
    ------
    ValueError, TypeError
        If an argument breaks a rule, or features overflow the type of x.

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

    Sketched scores are squared lengths of a random projection of the whitened columns, in
    O(nnz log d). A draw that falls on a column by four times its guess is kept with the
    probability that its exact score asks for. A guess below a quarter of a score has probability
    ``delta / 16`` at most, which is taken from the draws; nothing else is lost. X X^T is formed in
    either case, because epsilon is measured.

    Everything is computed and measured in float64; then the features are rounded to the type of x,
    in float16 by up to 5e-4 of each. ``X X^T`` and the forms of all columns take O(n^2 d), or
    O(sum of nnz_j^2) when x is sparse. "bss" forms them once every k/8 steps and keeps the 4 k best
    columns for the steps in between, which cost O(k^3) each. Memory O(n^2 + n m + d), for "bss"
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
    if x.ndim != 2:
        raise _validate.wrong(name, "x", "is no matrix", "shape (n, d), n >= 1", f"shape {x.shape}")
    _validate.choice(name, "method", method, ("leverage", "bss"))
    _validate.choice(name, "scores", scores, ("auto", "exact", "sketched"))
    if num_columns is not None:
        num_columns = _validate.integer(name, "num_columns", num_columns, minimum=1)
        if epsilon is not None:
            raise _validate.wrong(
                name, "epsilon", "is given beside num_columns", "one of the two", epsilon
            )
    epsilon = DEFAULT_EPSILON if epsilon is None else _validate.number(name, "epsilon", epsilon)
    delta = _validate.number(name, "delta", delta)
    generator = generator_of(name, rng)
    threads = _validate.threads(name, num_threads)
    if not isinstance(progress, bool) and not callable(progress):
        raise _validate.wrong(
            name, "progress", "cannot be called", "a bool or a function", repr(progress), TypeError
        )
    with told(progress) as call:
        found = _columns.core_function(x)(
            _columns.in_core(x),
            method == "bss",
            scores,
            num_columns,
            epsilon,
            delta,
            generator.random,
            call,
            threads,
        )
    return Sparsified(
        features=_columns.reweighted(name, "x", x, found["indices"], found["weights"]),
        method=method,
        total_columns=x.shape[1],
        **found,
    )


@contextmanager
def told(
    progress: bool | Callable[[int, int], None],
) -> Iterator[Callable[[int, int], None] | None]:
    """What the core calls after every column."""
    if not isinstance(progress, bool):
        yield progress
    elif not progress:
        yield None
    else:
        from .cli._progress import progress as shown_bar  # the command imports this package

        with shown_bar(STEPS_SHOWN) as bar:
            shown = 0

            def step(chosen: int, num_columns: int) -> None:
                nonlocal shown
                while shown * num_columns < chosen * STEPS_SHOWN:
                    shown += 1
                    bar.step(f"{chosen} of {num_columns} columns chosen")

            yield step


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
