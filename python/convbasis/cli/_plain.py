"""Attention written plainly in NumPy: the yardstick of working precision, and its budgets."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Largest relative error in float64.
FLOAT64_BUDGET = 1e-11

ROWS_AT_ONCE = 64  # logits of so many rows are in memory at a time


def plain_attention(
    query: NDArray[Any],
    key: NDArray[Any],
    value: NDArray[Any],
    *,
    scale: float,
    is_causal: bool,
    rows: ArrayLike | None = None,
) -> NDArray[Any]:
    """Softmax attention of some rows in the type of the arrays, as a textbook has it.

    Parameters
    ----------
    query, key, value : ndarray, shapes (..., n_q, d), (..., n_kv, d), (..., n_kv, d_v)
    scale : float
    is_causal : bool
    rows : array_like of int, shape (m,), optional
        Default: all query rows.

    Returns
    -------
    ndarray, shape (..., m, d_v), the dtype of `query`
    """
    rows = np.arange(query.shape[-2]) if rows is None else np.asarray(rows)
    columns = np.arange(key.shape[-2])
    out = np.empty((*query.shape[:-2], rows.size, value.shape[-1]), query.dtype)
    for first in range(0, rows.size, ROWS_AT_ONCE):
        some = rows[first : first + ROWS_AT_ONCE]
        logits = query.dtype.type(scale) * (query[..., some, :] @ np.swapaxes(key, -1, -2))
        if is_causal:
            logits[..., columns > some[:, None]] = -np.inf
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        total = weights.sum(axis=-1, keepdims=True)
        out[..., first : first + some.size, :] = (weights @ value) / total
    return out


def relative_error(got: ArrayLike, want: ArrayLike) -> float:
    """``||got - want|| / ||want||`` of the worst head; infinity for another shape or NaN."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if got.shape != want.shape or not np.isfinite(got).all():
        return float("inf")
    if want.size == 0:
        return 0.0
    axes = tuple(range(max(want.ndim - 2, 0), want.ndim))
    gap = np.sqrt(np.square(got - want).sum(axis=axes))
    norm = np.sqrt(np.square(want).sum(axis=axes))
    return float((gap / np.where(norm > 0.0, norm, 1.0)).max())


def row_errors(got: NDArray[Any], want: NDArray[np.float64]) -> NDArray[np.float64]:
    """Error of each row relative to its norm, (..., n)."""
    norm = np.linalg.norm(want, axis=-1)
    gap = np.linalg.norm(got.astype(np.float64) - want, axis=-1)
    errors: NDArray[np.float64] = gap / np.where(norm > 0.0, norm, 1.0)
    return errors


def budget(plain_error: float, dtype: Any) -> float:
    """Largest relative error allowed to a result whose plain computation has `plain_error`.

    In float32 twice that error and two roundings more: some plain results are exact by luck, such
    as that of a single key, and the rounding of a transform does not average out as theirs does.
    """
    if dtype == np.float64:
        return FLOAT64_BUDGET
    return 2.0 * plain_error + 2.0 * float(np.finfo(np.float32).eps)
