"""Attention with a polynomial in place of the exponential, evaluated densely.

Source: AS23; Conv-Basis, section on low-rank approximation; for entries that are taken exactly,
*Support Basis*, arXiv:2510.01643.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.polynomial import Polynomial
from numpy.typing import ArrayLike, NDArray

from .attention import attention_logits, scale_or_default, share_heads, visible
from .features import key_features, query_features, shifted_polynomial
from .polynomial import exp_polynomial, polynomial_error


class PolynomialAttention(NamedTuple):
    """What `polynomial_attention` returns."""

    out: NDArray[np.float64]  #: (..., n_q, d_v)
    lse: NDArray[np.float64]  #: (..., n_q), log of the row sums; -inf for rows that see nothing
    radius: float  #: R: all logits given to P lie in [-R, R]
    epsilon: float  #: largest relative error of P there, hence of any weight


def polynomial_bound(epsilon: float, value: ArrayLike) -> float:
    """``2 eps / (1 - eps) max |V|``: bound of the output error when weights err by ``eps``.

    The error of a row is ``sum_j e_j w_j (v_j - y) / sum_j (1 + e_j) w_j`` with ``|e_j| <= eps``.

    Parameters
    ----------
    epsilon : float
        Relative error of every weight before the division.
    value : array_like

    Returns
    -------
    float
        Infinity from ``epsilon = 1`` on.

    Examples
    --------
    >>> from convbasis import reference
    >>> reference.polynomial_bound(0.5, [[3.0]])
    6.0
    """
    if epsilon >= 1.0:
        return float("inf")
    return float(2.0 * epsilon / (1.0 - epsilon) * np.max(np.abs(value), initial=0.0))


def mean_key(key: ArrayLike, exact_columns: ArrayLike | None = None) -> NDArray[np.float64]:
    """The mean of the keys, shape (..., 1, d), without those of `exact_columns`.

    Softmax does not change when one vector is subtracted from all keys: a logit then loses
    ``scale * q_i . mean``, the same for the whole row.
    """
    key = np.asarray(key, dtype=np.float64)
    counted = np.ones(key.shape[-2], dtype=bool)
    if exact_columns is not None:
        counted = ~np.asarray(exact_columns, dtype=bool)
    kept = key[..., counted, :]
    mean: NDArray[np.float64] = kept.sum(axis=-2, keepdims=True) / max(kept.shape[-2], 1)
    return mean


def row_middles(logits: ArrayLike, mask: ArrayLike) -> tuple[NDArray[np.float64], float]:
    """The middle of the range of every row's visible logits, and half the widest range.

    Parameters
    ----------
    logits : array_like, shape (..., n_q, n_kv)
    mask : array_like of bool, broadcastable to `logits`

    Returns
    -------
    middles : ndarray of float64, shape (..., n_q)
        0 for rows that see nothing.
    radius : float

    Examples
    --------
    >>> from convbasis import reference
    >>> middles, radius = reference.row_middles([[1.0, 3.0], [5.0, 5.0]], True)
    >>> middles.tolist(), radius
    ([2.0, 5.0], 1.0)
    """
    logits = np.asarray(logits, dtype=np.float64)
    low = np.min(np.where(mask, logits, np.inf), axis=-1, initial=np.inf)
    high = np.max(np.where(mask, logits, -np.inf), axis=-1, initial=-np.inf)
    sees_nothing = low > high
    low, high = np.where(sees_nothing, 0.0, low), np.where(sees_nothing, 0.0, high)
    return (low + high) / 2, float(np.max((high - low) / 2, initial=0.0))


def large_entries(
    query: ArrayLike, key: ArrayLike, radius: float, *, scale: float | None = None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Queries and keys to take exactly so that all other logits are at most `radius` in size.

    By ``|scale q . k| <= |scale| ||q|| ||k||``: queries longer than ``a`` and keys longer than
    ``radius / (|scale| a)`` are taken, with the ``a`` for which they hold the fewest entries of
    the matrix. No logit is formed: O((n_q + n_kv) (d + log)).

    Parameters
    ----------
    query : array_like, shape (n_q, d)
    key : array_like, shape (n_kv, d)
        Centred, for the method to gain by it.
    radius : float
    scale : float, optional
        Default ``1 / sqrt(d)``.

    Returns
    -------
    exact_rows : ndarray of bool, shape (n_q,)
    exact_columns : ndarray of bool, shape (n_kv,)

    Examples
    --------
    >>> from convbasis import reference
    >>> rows, columns = reference.large_entries([[1.0], [1.0]], [[1.0], [9.0]], 2.0)
    >>> rows.tolist(), columns.tolist()
    ([False, False], [False, True])
    """
    query, key = np.asarray(query, dtype=np.float64), np.asarray(key, dtype=np.float64)
    rows = abs(scale_or_default(scale, query.shape[-1])) * np.linalg.norm(query, axis=-1)
    columns = np.linalg.norm(key, axis=-1)
    n_q, n_kv = len(rows), len(columns)
    limits = np.sort(np.r_[0.0, rows])  # a limit between two lengths does no better
    kept_rows = np.searchsorted(np.sort(rows), limits, side="right")
    most = np.divide(radius, limits, out=np.full(n_q + 1, np.inf), where=limits > 0.0)
    kept_columns = np.searchsorted(np.sort(columns), most, side="right")
    best = int(np.argmax(kept_rows * kept_columns)) if n_q and n_kv else 0
    return rows > limits[best], columns > most[best]


def polynomial_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    degree: int | None = None,
    coefficients: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    centre_keys: bool = True,
    shift_rows: bool = True,
    exact_rows: ArrayLike | None = None,
    exact_columns: ArrayLike | None = None,
    through: str = "features",
) -> PolynomialAttention:
    """Attention with the weights ``P(H)`` in place of ``exp(H)``.

    Parameters
    ----------
    query, key, value, mask, is_causal, scale, enable_gqa
        As in `attention`.
    degree : int, optional
        Takes the polynomial of least relative error of this degree on ``[-R, R]``, the range of
        the logits after the two reductions below.
    coefficients : array_like, shape (g + 1,), optional
        A polynomial to use instead, constant first; it stands for ``exp`` near 0.
    centre_keys : bool
        Subtract the mean key, to narrow the range.
    shift_rows : bool
        Subtract from every row the middle of the range of its visible logits.
    exact_rows : array_like of bool, shape (n_q,), optional
    exact_columns : array_like of bool, shape (n_kv,), optional
        Rows and columns whose weights are ``exp(H)`` itself; they do not count for the range.
    through : {"features", "logits"}
        How ``P(H)`` is formed: ``phi_q(Q) phi_k(K)^T``, or entry by entry. Equal but for rounding.

    Returns
    -------
    PolynomialAttention
        ``out``, ``lse``, ``radius`` and ``epsilon``; the output errs by at most
        ``polynomial_bound(epsilon, value)`` and `lse` by ``-log(1 - epsilon)``.

    Raises
    ------
    ValueError
        If not exactly one of `degree` and `coefficients` is given, `through` is unknown, shapes
        do not match, the range goes beyond 300 in size, or the weights of a row sum to 0 or less,
        which takes ``epsilon >= 1``.

    Notes
    -----
    Time O(n_q n_kv C(d + g, g)), memory O(n_q n_kv); the range is that of the dense logits.

    Examples
    --------
    Logits 0 and 1, weights 1 : e.

    >>> from convbasis import reference
    >>> result = reference.polynomial_attention([[1.0]], [[0.0], [1.0]], [[0.0], [1.0]], degree=3)
    >>> round(float(result.out[0, 0]), 3), result.radius
    (0.731, 0.5)
    """
    if (degree is None) == (coefficients is None):
        raise ValueError(
            "[polynomial_attention] degree and coefficients leave the polynomial open; expected "
            f"exactly one of them; got {'none' if degree is None else 'both'}"
        )
    if through not in ("features", "logits"):
        raise ValueError(
            "[polynomial_attention] through is unknown; expected 'features' or 'logits'; "
            f"got {through!r}"
        )
    query, key, value = (np.asarray(array, dtype=np.float64) for array in (query, key, value))
    scale = scale_or_default(scale, query.shape[-1])
    if enable_gqa:
        key, value = share_heads(key, query.shape[-3]), share_heads(value, query.shape[-3])
    mean = mean_key(key, exact_columns) if centre_keys else np.zeros(key.shape[-1])[None, :]
    key = key - mean
    logits = attention_logits(query, key, scale=scale)
    seen = np.broadcast_to(visible(*logits.shape[-2:], is_causal=is_causal), logits.shape)
    if mask is not None:
        seen = seen & np.asarray(mask, dtype=bool)
    exact = exact_entries(logits.shape[-2:], exact_rows, exact_columns)

    middles, radius = row_middles(logits, seen & ~exact)
    if not shift_rows:
        middles = np.zeros_like(middles)
        radius = float(np.max(np.abs(logits), where=seen & ~exact, initial=0.0))
    if degree is not None:
        coefficients = exp_polynomial(degree, -radius, radius)
    coefficients = np.asarray(coefficients, dtype=np.float64)
    shifted = logits - middles[..., None]
    if through == "features":
        phi_q = query_features(scale * query, shifted_polynomial(coefficients, middles))
        weights = phi_q @ np.swapaxes(key_features(key, len(coefficients) - 1), -1, -2)
    else:
        weights = Polynomial(coefficients)(shifted)

    # Exact logits may be of any size; one factor a row keeps their exponentials finite.
    peak = np.max(shifted, axis=-1, where=seen & exact, initial=0.0)[..., None]
    exponentials = np.exp(np.where(seen & exact, shifted - peak, 0.0))
    weights = np.where(exact, exponentials, np.exp(-peak) * weights) * seen
    out, log_total = divided(weights, seen, value)
    taken_off = middles + peak[..., 0] + (scale * query @ np.swapaxes(mean, -1, -2))[..., 0]
    epsilon = polynomial_error(coefficients, -radius, radius)
    return PolynomialAttention(out, log_total + taken_off, radius, epsilon)


def exact_entries(
    shape: tuple[int, ...], exact_rows: ArrayLike | None, exact_columns: ArrayLike | None
) -> NDArray[np.bool_]:
    """True in the given rows and columns of a matrix."""
    exact = np.zeros(shape, dtype=bool)
    if exact_rows is not None:
        exact |= np.asarray(exact_rows, dtype=bool)[:, None]
    if exact_columns is not None:
        exact |= np.asarray(exact_columns, dtype=bool)[None, :]
    return exact


def divided(
    weights: NDArray[np.float64], seen: NDArray[np.bool_], value: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``D^-1 A V`` and the log of ``D``; 0 and -inf for rows that see nothing."""
    total = weights.sum(axis=-1)
    sees_something = seen.any(axis=-1)
    if np.any(sees_something & ~(total > 0.0)):
        raise ValueError(
            "[polynomial_attention] weights of a row do not sum to a positive number; expected a "
            f"polynomial with a relative error below 1; got a sum of {np.min(total):.3g}"
        )
    safe_total = np.where(sees_something, total, 1.0)
    log_total = np.where(sees_something, np.log(safe_total), -np.inf)
    return (weights / safe_total[..., None]) @ value, log_total
