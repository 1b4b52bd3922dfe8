"""Recovery of a conv basis from the logits (Conv-Basis, Algorithms 2 and 3).

Given are logits ``H~ = H + R`` where ``H`` has a (T, delta)-non-degenerate k-conv basis and
``max |R| <= epsilon <= delta / (5 T)``. Compare the first ``T`` entries of column ``j`` with the
head ``v`` of the current kernel,

    ``alpha_j = || H~[j : j + T, j] - v ||_1``.

Inside the current strip ``alpha_j <= 2 T epsilon``; in any later strip
``alpha_j >= delta - 2 T epsilon``, which is larger. So the next start is the first column that
reaches the threshold ``delta - 2 T epsilon``, and it can be found by bisection. Recovered logits
differ from the given ones by at most ``2 epsilon``.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

from .attention import attention_logits
from .conv import Array, Basis, exact_or_float64


def head_distance(logits: Array, head: Array, j: int) -> float:
    """``alpha_j``: l1 distance of the first ``T`` entries of column ``j`` from `head`."""
    distance: float = np.abs(logits[j : j + len(head), j] - head).sum()
    return distance


def search_bisect(
    logits: Array, head: Array, first: int, last: int, threshold: float
) -> int | None:
    """Smallest column in ``first..last`` whose head differs from `head`, by bisection.

    Conv-Basis, Algorithm 2. It relies on ``alpha`` staying at or above the threshold once it has
    reached it, which non-degeneracy guarantees.

    Returns
    -------
    int or None
        None when the search ends on a column that does not differ, or has nowhere to look.
    """
    if first > last:
        return None
    lo, hi = first, last
    while lo < hi:
        j = (lo + hi) // 2
        if head_distance(logits, head, j) >= threshold:
            hi = j
        else:
            lo = j + 1
    return lo if head_distance(logits, head, lo) >= threshold else None


def search_scan(logits: Array, head: Array, first: int, last: int, threshold: float) -> int | None:
    """Smallest column in ``first..last`` whose head differs from `head`, column by column.

    Same meaning as `search_bisect`, without relying on ``alpha`` being monotone.
    """
    for j in range(first, last + 1):
        if head_distance(logits, head, j) >= threshold:
            return j
    return None


def recover_logits(
    logits: ArrayLike,
    *,
    num_bases: int | None = None,
    window: int = 16,
    delta: float = 1e-2,
    epsilon: float = 0.0,
    search: str = "scan",
) -> tuple[Basis, bool]:
    """Recover a conv basis from dense logits (Conv-Basis, Algorithm 3).

    Only the lower triangle is read. Starts are looked for in the columns ``0..last``,
    ``last = n - T``, as a strip must have ``T`` rows; the columns after it belong to the last
    strip. A window longer than the matrix counts as ``T = n``.

    Parameters
    ----------
    logits : array_like, shape (n, num_columns)
    num_bases : int, optional
        Take at most this many strips. Default: as many as there are. When it is not smaller than
        the number of columns searched, every one of them becomes a strip of its own, whether it
        differs or not: with ``window=1`` the basis then holds the logits themselves.
    window : int
        ``T``, number of entries compared.
    delta, epsilon : float
        The threshold is ``delta - 2 T epsilon``.
    search : {"scan", "bisect"}

    Returns
    -------
    basis : Basis
    complete : bool
        False when a further column would have started a strip after `num_bases` were found, or
        when one of the last ``T - 1`` columns, too short to start a strip, differs from the last
        strip on the entries that it has.

    Raises
    ------
    ValueError
        If an option is out of its range, or `epsilon` exceeds ``delta / (5 window)``.

    Notes
    -----
    As a matter of counting, ``bisect`` reads ``O(k n + k T log n)`` logits and ``scan``
    ``O(k n + n T)``.

    Examples
    --------
    >>> from convbasis import reference
    >>> H = reference.conv([1.0, 2.0, 3.0, 4.0]) + reference.conv([5.0, 5.0, 0.0, 0.0], 2)
    >>> basis, complete = reference.recover_logits(H, window=2)
    >>> basis.starts.tolist(), basis.kernels.tolist(), complete
    ([0, 2], [[1.0, 2.0, 3.0, 4.0], [6.0, 7.0, 0.0, 0.0]], True)
    """
    check_options(num_bases, window, delta, epsilon, search)
    logits = exact_or_float64(logits)
    n, num_columns = logits.shape
    window = max(1, min(window, n))
    threshold = delta - 2 * window * epsilon
    find = search_bisect if search == "bisect" else search_scan
    last = min(n - window, num_columns - 1)

    if num_bases is not None and num_bases >= last + 1:
        columns = [logits[s:, s] for s in range(last + 1)]
        complete = tail_agrees(logits, columns[-1][:window], last + 1, threshold)
        return basis_from_columns(range(last + 1), columns, logits), complete

    v = np.zeros(window, dtype=logits.dtype)  # head of the kernel so far
    u = np.zeros(n, dtype=logits.dtype)  # kernel so far, u_r = b_1 + ... + b_r
    starts: list[int] = []
    columns = []
    s = find(logits, v, 0, last, threshold)
    while s is not None and (num_bases is None or len(starts) < num_bases):
        b = logits[s:, s] - u[: n - s]
        v = v + b[:window]
        u[: n - s] = u[: n - s] + b
        starts.append(s)
        columns.append(u[: n - s].copy())
        s = find(logits, v, s + 1, last, threshold)
    complete = s is None and tail_agrees(logits, v, last + 1, threshold)
    return basis_from_columns(starts, columns, logits), complete


def tail_agrees(logits: Array, head: Array, first: int, threshold: float) -> bool:
    """Whether the columns from `first` on belong to the strip of `head`, as far as they reach."""
    n, num_columns = logits.shape
    tails = (logits[j:, j] for j in range(first, min(n, num_columns)))
    return all(abs(tail - head[: len(tail)]).sum() < threshold for tail in tails)


def recover(
    query: ArrayLike,
    key: ArrayLike,
    *,
    scale: float | None = None,
    num_bases: int | None = None,
    window: int = 16,
    delta: float = 1e-2,
    epsilon: float = 0.0,
    search: str = "scan",
) -> tuple[Basis, bool]:
    """Recover a conv basis of ``scale * Q K^T`` for one head.

    Parameters
    ----------
    query : array_like, shape (n_q, d)
    key : array_like, shape (n_kv, d)
        The two lengths may differ; the matrix is top-left aligned.
    scale : float, optional
        Default ``1 / sqrt(d)``.
    num_bases, window, delta, epsilon, search
        As in `recover_logits`.

    Returns
    -------
    basis : Basis
        ``n_q`` rows, ``n_kv`` columns.
    complete : bool

    Notes
    -----
    For attention that is not causal the upper triangle has a basis of its own: that of
    ``recover(query[::-1], key[::-1])``, see `conv_attention`.
    """
    logits = attention_logits(query, key, scale=scale)
    return recover_logits(
        logits, num_bases=num_bases, window=window, delta=delta, epsilon=epsilon, search=search
    )


def basis_from_columns(starts: Iterable[int], columns: list[Array], logits: Array) -> Basis:
    """A `Basis` of the shape of `logits` from start columns, each from its diagonal down."""
    n, num_columns = logits.shape
    kernels = np.zeros((len(columns), n), dtype=logits.dtype)
    for kernel, column in zip(kernels, columns, strict=True):
        kernel[: len(column)] = column
    return Basis(np.array(list(starts), dtype=np.int64), kernels, num_columns)


def check_options(
    num_bases: int | None, window: int, delta: float, epsilon: float, search: str
) -> None:
    """Raise ValueError for options outside the range that Algorithms 2 and 3 are stated for."""
    if num_bases is not None and num_bases < 1:
        raise ValueError(f"[recover] num_bases is too small; expected at least 1; got {num_bases}")
    if window < 1:
        raise ValueError(f"[recover] window is too small; expected at least 1; got {window}")
    if not delta >= 0:
        raise ValueError(f"[recover] delta is negative; expected at least 0; got {delta}")
    if not 0 <= epsilon <= delta / (5 * window):
        raise ValueError(
            "[recover] epsilon is out of range; expected 0 to delta / (5 * window) = "
            f"{delta / (5 * window)}; got {epsilon}"
        )
    if search not in ("scan", "bisect"):
        raise ValueError(
            f"[recover] search is unknown; expected 'scan' or 'bisect'; got {search!r}"
        )
