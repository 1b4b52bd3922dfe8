"""Softmax attention, dense: ``Y = D^-1 A V`` with ``A = mask o exp(H)`` and ``D = diag(A 1)``."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def attention_logits(
    query: ArrayLike, key: ArrayLike, *, scale: float | None = None, enable_gqa: bool = False
) -> NDArray[np.float64]:
    """Logits ``H = scale * Q K^T`` of every query row against every key column.

    Parameters
    ----------
    query : array_like, shape (..., n_q, d)
    key : array_like, shape (..., n_kv, d)
        Leading dimensions as those of `query`; with `enable_gqa` the one before ``n_kv`` may be
        smaller.
    scale : float, optional
        Default ``1 / sqrt(d)``.
    enable_gqa : bool
        Query head ``h`` uses key head ``h // (heads / kv_heads)``.

    Returns
    -------
    ndarray of float64, shape (..., n_q, n_kv)

    Raises
    ------
    ValueError
        If the head dimensions differ or are 0, or the heads cannot be shared evenly.

    Examples
    --------
    >>> from convbasis import reference
    >>> reference.attention_logits([[1.0, 2.0]], [[3.0, 4.0], [5.0, 6.0]], scale=0.5).tolist()
    [[5.5, 8.5]]
    """
    query = np.asarray(query, dtype=np.float64)
    key = np.asarray(key, dtype=np.float64)
    head_dim = query.shape[-1]
    if head_dim == 0:
        raise ValueError(
            f"[attention_logits] query has head_dim 0; expected at least 1; got shape {query.shape}"
        )
    if key.shape[-1] != head_dim:
        raise ValueError(
            f"[attention_logits] key has head_dim {key.shape[-1]}; expected "
            f"{head_dim} to match query; got shape {key.shape}"
        )
    if enable_gqa:
        key = share_heads(key, query.shape[-3])
    logits: NDArray[np.float64] = scale_or_default(scale, head_dim) * (
        query @ np.swapaxes(key, -1, -2)
    )
    return logits


def scale_or_default(scale: float | None, head_dim: int) -> float:
    """The scale itself when it is given, else ``1 / sqrt(head_dim)``."""
    return 1.0 / float(np.sqrt(head_dim)) if scale is None else scale


def share_heads(array: NDArray[np.float64], heads: int) -> NDArray[np.float64]:
    """Repeat each of the ``g`` heads of a (..., g, n_kv, d) array ``heads / g`` times in a row."""
    kv_heads = array.shape[-3]
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(
            f"[share_heads] array has {kv_heads} heads; expected a divisor of the "
            f"{heads} query heads; got shape {array.shape}"
        )
    return np.repeat(array, heads // kv_heads, axis=-3)


def visible(num_rows: int, num_columns: int, *, is_causal: bool) -> NDArray[np.bool_]:
    """Which keys each query sees, top-left aligned.

    Causal: query ``i`` sees keys ``0..i``, whatever the two lengths are, so that rows past the
    last key see all keys and columns past the last row are seen by none.

    Returns
    -------
    ndarray of bool, shape (num_rows, num_columns)

    Examples
    --------
    >>> from convbasis import reference
    >>> reference.visible(3, 2, is_causal=True).astype(int).tolist()
    [[1, 0], [1, 1], [1, 1]]
    """
    if not is_causal:
        return np.ones((num_rows, num_columns), dtype=bool)
    seen: NDArray[np.bool_] = np.arange(num_rows)[:, None] >= np.arange(num_columns)[None, :]
    return seen


def masked_softmax(
    logits: ArrayLike, mask: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Softmax over the entries where `mask` is true, and the log of its denominator.

    The largest visible logit of each row is subtracted before the exponential; softmax does not
    change, and no row overflows.

    Parameters
    ----------
    logits : array_like, shape (..., n_q, n_kv)
    mask : array_like of bool, broadcastable to `logits`

    Returns
    -------
    weights : ndarray of float64, shape (..., n_q, n_kv)
        Rows sum to 1; a row that sees nothing is 0.
    lse : ndarray of float64, shape (..., n_q)
        ``log(sum_j exp(H[i, j]))`` over the visible ``j``; ``-inf`` for a row that sees nothing.
    """
    logits = np.asarray(logits, dtype=np.float64)
    masked = np.where(mask, logits, -np.inf)
    peak = np.max(masked, axis=-1, keepdims=True, initial=-np.inf)
    peak = np.where(np.isneginf(peak), 0.0, peak)
    weights = np.exp(masked - peak)
    total = weights.sum(axis=-1, keepdims=True)
    sees_something = total > 0.0
    safe_total = np.where(sees_something, total, 1.0)
    lse = np.where(sees_something, np.log(safe_total) + peak, -np.inf)
    return weights / safe_total, lse[..., 0]


def attention_weights(
    query: ArrayLike,
    key: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Softmax of the visible logits, ``f = D^-1 A``; parameters as in `attention`.

    Returns
    -------
    weights : ndarray of float64, shape (..., n_q, n_kv)
    lse : ndarray of float64, shape (..., n_q)
        As in `masked_softmax`.
    """
    logits = attention_logits(query, key, scale=scale, enable_gqa=enable_gqa)
    seen = visible(*logits.shape[-2:], is_causal=is_causal)
    if mask is not None:
        seen = seen & np.asarray(mask, dtype=bool)
    return masked_softmax(logits, seen)


def attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Softmax attention, the formula itself.

    Parameters
    ----------
    query : array_like, shape (..., n_q, d)
    key : array_like, shape (..., n_kv, d)
    value : array_like, shape (..., n_kv, d_v)
    mask : array_like of bool, broadcastable to (..., n_q, n_kv), optional
        True where a query may see a key; joined with the causal mask.
    is_causal : bool
        Query ``i`` sees keys ``0..i`` (top-left aligned, any ``n_q`` and ``n_kv``).
    scale : float, optional
        Default ``1 / sqrt(d)``.
    enable_gqa : bool
        `key` and `value` may have fewer heads than `query`.

    Returns
    -------
    out : ndarray of float64, shape (..., n_q, d_v)
        Rows without any visible key are 0.
    lse : ndarray of float64, shape (..., n_q)
        Natural log of the row sums of ``exp(H)``; ``-inf`` for rows without any visible key.

    Notes
    -----
    Time O(n_q n_kv (d + d_v)), memory O(n_q n_kv).

    Examples
    --------
    Two equal keys share the weight evenly; the first row sees the first key only.

    >>> from convbasis import reference
    >>> out, lse = reference.attention([[0.0], [0.0]], [[1.0], [1.0]], [[2.0], [4.0]],
    ...                                is_causal=True)
    >>> out.tolist()
    [[2.0], [3.0]]
    """
    value = np.asarray(value, dtype=np.float64)
    weights, lse = attention_weights(
        query, key, mask=mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
    )
    if value.shape[-2] != weights.shape[-1]:
        raise ValueError(
            f"[attention] value has {value.shape[-2]} rows; expected "
            f"{weights.shape[-1]} to match key; got shape {value.shape}"
        )
    if enable_gqa:
        value = share_heads(value, weights.shape[-3])
    return weights @ value, lse
