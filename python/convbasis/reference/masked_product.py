"""``(W o U1 U2^T) V`` for masks ``W`` with structure, without an n x n array.

``U1`` (n_q x r) and ``U2`` (n_kv x r) are features of queries and keys, ``V`` (n_kv x d_v) the
values. Every method rests on sums of ``U2_j^T V_j``, r x d_v numbers, over the keys that a query
sees: query ``i`` then takes ``U1_i`` times its sum. With a column of ones in ``V`` the last
column of the result is the row sums. Queries that see nothing get exactly 0.

Source: Conv-Basis, section on low-rank approximation with structured masks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64 = NDArray[np.float64]


def as_factors(U1: ArrayLike, U2: ArrayLike, V: ArrayLike) -> tuple[Float64, Float64, Float64]:
    """The three as arrays of float64, if ``(W o U1 U2^T) V`` is a product."""
    U1, U2, V = (np.asarray(array, dtype=np.float64) for array in (U1, U2, V))
    if U1.ndim != 2 or U2.ndim != 2 or V.ndim != 2 or U1.shape[1] != U2.shape[1]:
        raise ValueError(
            "[masked_product] U1, U2 and V are no factors; expected shapes (n_q, r), (n_kv, r) "
            f"and (n_kv, d_v); got {U1.shape}, {U2.shape} and {V.shape}"
        )
    if len(U2) != len(V):
        raise ValueError(
            f"[masked_product] V does not match U2; expected {len(U2)} rows; got {len(V)}"
        )
    return U1, U2, V


def masked_product(U1: ArrayLike, U2: ArrayLike, V: ArrayLike, mask: ArrayLike) -> Float64:
    """``(W o U1 U2^T) V`` densely: what the other functions are held against.

    Parameters
    ----------
    U1 : array_like, shape (n_q, r)
    U2 : array_like, shape (n_kv, r)
    V : array_like, shape (n_kv, d_v)
    mask : array_like of bool, broadcastable to (n_q, n_kv)

    Returns
    -------
    ndarray of float64, shape (n_q, d_v)

    Examples
    --------
    >>> from convbasis import reference
    >>> reference.masked_product([[1.0], [2.0]], [[1.0], [1.0]], [[3.0], [4.0]],
    ...                          [[True, False], [True, True]]).tolist()
    [[3.0], [14.0]]
    """
    U1, U2, V = as_factors(U1, U2, V)
    product: Float64 = (np.asarray(mask, dtype=bool) * (U1 @ U2.T)) @ V
    return product


def causal_product(U1: ArrayLike, U2: ArrayLike, V: ArrayLike) -> Float64:
    """Query ``i`` sees keys ``0..i``: a running sum. O((n_q + n_kv) r d_v).

    Examples
    --------
    >>> from convbasis import reference
    >>> reference.causal_product([[1.0], [2.0]], [[1.0], [1.0]], [[3.0], [4.0]]).tolist()
    [[3.0], [14.0]]
    """
    U1, U2, V = as_factors(U1, U2, V)
    running = np.zeros((U2.shape[1], V.shape[1]))
    out = np.zeros((len(U1), V.shape[1]))
    for i in range(len(U1)):
        if i < len(U2):
            running += np.outer(U2[i], V[i])
        out[i] = U1[i] @ running
    return out


def row_window_product(
    U1: ArrayLike,
    U2: ArrayLike,
    V: ArrayLike,
    start: ArrayLike,
    stop: ArrayLike,
    *,
    method: str = "tree",
) -> Float64:
    """Query ``i`` sees keys ``start[i] <= j < stop[i]``.

    Parameters
    ----------
    U1, U2, V
        As in `masked_product`.
    start, stop : array_like of int, shape (n_q,)
    method : {"tree", "prefix"}
        "tree": the paper's segment tree, whose nodes hold the sums over aligned ranges; a window
        is a sum of at most ``2 log2(n_kv)`` nodes. O((n_kv + n_q log n_kv) r d_v).
        "prefix": the difference of two running sums, O((n_kv + n_q) r d_v). It cancels: its
        error is relative to the sums over all keys before the window, not to the window's own.

    Returns
    -------
    ndarray of float64, shape (n_q, d_v)

    Raises
    ------
    ValueError
        If `method` is neither of the two, or shapes do not match.

    Examples
    --------
    A large key before the window: its size is lost on the way through a difference.

    >>> from convbasis import reference
    >>> factors = [[1.0]], [[1e16], [1.0]], [[1.0], [1.0]]
    >>> [reference.row_window_product(*factors, [1], [2], method=method).tolist()
    ...  for method in ("tree", "prefix")]
    [[[1.0]], [[0.0]]]
    """
    U1, U2, V = as_factors(U1, U2, V)
    start, stop = np.asarray(start, dtype=np.int64), np.asarray(stop, dtype=np.int64)
    if method not in ("tree", "prefix"):
        raise ValueError(
            f"[row_window_product] method is unknown; expected 'tree' or 'prefix'; got {method!r}"
        )
    products = U2[:, :, None] * V[:, None, :]
    out = np.zeros((len(U1), V.shape[1]))
    if method == "prefix":
        sums = np.zeros((len(U2) + 1, *products.shape[1:]))
        np.cumsum(products, axis=0, out=sums[1:])
        for i in range(len(U1)):
            out[i] = U1[i] @ (sums[stop[i]] - sums[start[i]])
        return out
    tree = segment_tree(products)
    for i in range(len(U1)):
        for node in window_nodes(len(tree) // 2, int(start[i]), int(stop[i])):
            out[i] += U1[i] @ tree[node]
    return out


def segment_tree(leaves: Float64) -> Float64:
    """Sums over aligned ranges: node 1 is the root, node ``s`` has the children 2s and 2s + 1.

    Leaf ``j`` is node ``size + j``, ``size`` the power of two that holds all leaves.
    """
    size = 1 << max(len(leaves) - 1, 0).bit_length()
    tree = np.zeros((2 * size, *leaves.shape[1:]))
    tree[size : size + len(leaves)] = leaves
    for node in range(size - 1, 0, -1):
        tree[node] = tree[2 * node] + tree[2 * node + 1]
    return tree


def window_nodes(size: int, start: int, stop: int) -> list[int]:
    """The nodes of a segment tree with `size` leaves whose ranges make up ``[start, stop)``."""
    nodes = []
    left, right = size + start, size + stop
    while left < right:
        if left % 2:
            nodes.append(left)
            left += 1
        if right % 2:
            right -= 1
            nodes.append(right)
        left, right = left // 2, right // 2
    return nodes


def row_change_product(
    U1: ArrayLike,
    U2: ArrayLike,
    V: ArrayLike,
    first_row: ArrayLike,
    added: Sequence[ArrayLike],
    removed: Sequence[ArrayLike],
) -> Float64:
    """Query 0 sees `first_row`; query ``i + 1`` sees what ``i`` does, plus and minus some keys.

    Parameters
    ----------
    U1, U2, V
        As in `masked_product`.
    first_row : array_like of int
    added, removed : sequence of n_q - 1 array_like of int
        The keys by which row ``i + 1`` differs from row ``i``.

    Returns
    -------
    ndarray of float64, shape (n_q, d_v)

    Notes
    -----
    One running sum, O(r d_v (n_q + sum of B_i)), ``B_i`` the number of changes of row ``i``.
    Removing cancels: errors are relative to the largest sum so far. The sum starts anew whenever
    the set is empty.

    Examples
    --------
    >>> from convbasis import reference
    >>> reference.row_change_product([[1.0], [1.0]], [[1.0], [1.0]], [[3.0], [4.0]],
    ...                              [0], [[1]], [[0]]).tolist()
    [[3.0], [4.0]]
    """
    U1, U2, V = as_factors(U1, U2, V)
    out = np.zeros((len(U1), V.shape[1]))
    running, count = np.zeros((U2.shape[1], V.shape[1])), 0
    for i in range(len(U1)):
        plus = np.asarray(first_row if i == 0 else added[i - 1], dtype=np.int64)
        minus = np.asarray([] if i == 0 else removed[i - 1], dtype=np.int64)
        running += U2[plus].T @ V[plus] - U2[minus].T @ V[minus]
        count += len(plus) - len(minus)
        if count == 0:
            running[:] = 0.0
        out[i] = U1[i] @ running
    return out


def distinct_rows_product(
    U1: ArrayLike,
    U2: ArrayLike,
    V: ArrayLike,
    pattern_of_row: ArrayLike,
    patterns: ArrayLike,
    *,
    is_causal: bool = False,
) -> Float64:
    """Query ``i`` sees the keys of ``patterns[pattern_of_row[i]]``, shape (m, n_kv).

    One sum a pattern, shared by its queries: ``O((m n_kv + n_q) r d_v)``. Causal, it is one
    running sum a pattern.
    """
    U1, U2, V = as_factors(U1, U2, V)
    pattern_of_row, patterns = np.asarray(pattern_of_row), np.asarray(patterns, dtype=bool)
    out = np.zeros((len(U1), V.shape[1]))
    for pattern, keys in enumerate(patterns):
        rows = pattern_of_row == pattern
        if is_causal:
            out[rows] = causal_product(U1, keys[:, None] * U2, V)[rows]
        else:
            out[rows] = U1[rows] @ (U2[keys].T @ V[keys])
    return out


def distinct_columns_product(
    U1: ArrayLike,
    U2: ArrayLike,
    V: ArrayLike,
    pattern_of_column: ArrayLike,
    patterns: ArrayLike,
    *,
    is_causal: bool = False,
) -> Float64:
    """Key ``j`` is seen by the queries of ``patterns[pattern_of_column[j]]``, shape (m, n_q).

    One sum a pattern, over its keys: ``O((n_kv + m n_q) r d_v)``. Causal, it is one running sum a
    pattern.
    """
    U1, U2, V = as_factors(U1, U2, V)
    pattern_of_column, patterns = np.asarray(pattern_of_column), np.asarray(patterns, dtype=bool)
    out = np.zeros((len(U1), V.shape[1]))
    for pattern, rows in enumerate(patterns):
        keys = pattern_of_column == pattern
        if is_causal:
            out[rows] += causal_product(U1, keys[:, None] * U2, V)[rows]
        else:
            out[rows] += U1[rows] @ (U2[keys].T @ V[keys])
    return out


def sliding_window_product(
    U1: ArrayLike, U2: ArrayLike, V: ArrayLike, size: int, *, is_causal: bool = False
) -> Float64:
    """Query ``i`` sees keys at distance below `size`; causal, its own and ``size - 1`` before.

    Windows of their own for each row, by segment tree.
    """
    U1, U2, V = as_factors(U1, U2, V)
    row = np.arange(len(U1))
    start = np.minimum(np.maximum(row - size + 1, 0), len(U2))
    stop = np.minimum(row + (1 if is_causal else size), len(U2))
    return row_window_product(U1, U2, V, start, stop)


def longformer_product(
    U1: ArrayLike,
    U2: ArrayLike,
    V: ArrayLike,
    window: int,
    global_tokens: ArrayLike,
    *,
    is_causal: bool = False,
) -> Float64:
    """A sliding window, and tokens that see everything and are seen by everything.

    Each entry is taken once: the window without the global keys, one more column pattern with
    them, and the global queries as rows of a full matrix.
    """
    U1, U2, V = as_factors(U1, U2, V)
    tokens = np.asarray(global_tokens, dtype=np.int64)
    global_key = np.isin(np.arange(len(U2)), tokens)
    global_query = np.isin(np.arange(len(U1)), tokens)
    local = np.where(global_key[:, None], 0.0, U2)
    out = sliding_window_product(U1, local, V, window, is_causal=is_causal)
    everyone = np.ones((1, len(U1)), dtype=bool)
    others = np.where(global_key, 0, 1)  # keys of pattern 1 are seen by none
    out += distinct_columns_product(
        U1, U2, V, others, np.concatenate([everyone, ~everyone]), is_causal=is_causal
    )
    full = causal_product(U1, U2, V) if is_causal else U1 @ (U2.T @ V)
    return np.where(global_query[:, None], full, out)
