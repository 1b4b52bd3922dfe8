"""Features of queries and keys whose inner product is a polynomial of the logit.

``(q . k)^p = sum_{|a| = p} (p! / a!) q^a k^a`` over the multi-indices ``a`` of degree ``p``: the
symmetric monomials, ``C(d + g, g)`` of degree at most ``g`` in ``d`` variables.

Source: AS23; Conv-Basis, section on low-rank approximation.
"""

from __future__ import annotations

import math
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import ArrayLike, NDArray


def feature_count(head_dim: int, degree: int) -> int:
    """``C(d + g, g)``, the number of monomials of degree at most ``g`` in ``d`` variables.

    Examples
    --------
    >>> from convbasis import reference
    >>> reference.feature_count(16, 4)
    4845
    """
    return math.comb(head_dim + degree, degree)


def multi_indices(head_dim: int, degree: int) -> NDArray[np.int64]:
    """All exponents ``a`` in ``d`` variables with ``|a| <= g``, by degree.

    Returns
    -------
    ndarray of int64, shape (C(d + g, g), d)
        Row 0 is the constant; within a degree the first variables come first.

    Examples
    --------
    >>> from convbasis import reference
    >>> reference.multi_indices(2, 2).tolist()
    [[0, 0], [1, 0], [0, 1], [2, 0], [1, 1], [0, 2]]
    """
    rows = [
        [variables.count(variable) for variable in range(head_dim)]
        for total in range(degree + 1)
        for variables in combinations_with_replacement(range(head_dim), total)
    ]
    return np.array(rows, dtype=np.int64).reshape(-1, head_dim)


def monomials(x: ArrayLike, degree: int) -> NDArray[np.float64]:
    """``sqrt(p! / a!) x^a`` for every multi-index, ``p = |a|``.

    Parameters
    ----------
    x : array_like, shape (..., d)
    degree : int

    Returns
    -------
    ndarray of float64, shape (..., C(d + g, g))
        Those of degree ``p`` of two vectors have the inner product ``(x . y)^p``.
    """
    x = np.asarray(x, dtype=np.float64)
    indices = multi_indices(x.shape[-1], degree)
    factorials = np.array([math.factorial(p) for p in range(degree + 1)], dtype=np.float64)
    multinomials = factorials[indices.sum(axis=1)] / np.prod(factorials[indices], axis=1)
    powers = np.prod(x[..., None, :] ** indices, axis=-1)
    weighted: NDArray[np.float64] = np.sqrt(multinomials) * powers
    return weighted


def key_features(key: ArrayLike, degree: int) -> NDArray[np.float64]:
    """``phi_k``: the weighted monomials of the keys, without the coefficients.

    Parameters
    ----------
    key : array_like, shape (..., n_kv, d)
    degree : int

    Returns
    -------
    ndarray of float64, shape (..., n_kv, C(d + g, g))
        ``query_features(query, c) @ key_features(key, g).T`` is ``P(Q K^T)``.
    """
    return monomials(key, degree)


def query_features(query: ArrayLike, coefficients: ArrayLike) -> NDArray[np.float64]:
    """``phi_q``: the weighted monomials of the queries, times the coefficients of ``P``.

    The coefficients, whatever their signs, stand on this side alone. So every query may have a
    polynomial of its own, ``P(x - m_i)`` for instance, over the same features of the keys.

    Parameters
    ----------
    query : array_like, shape (..., n_q, d)
        Scaled: ``P`` is evaluated at ``q . k``.
    coefficients : array_like, shape (g + 1,) or (..., n_q, g + 1)
        Constant first.

    Returns
    -------
    ndarray of float64, shape (..., n_q, C(d + g, g))

    Examples
    --------
    ``1 + 2 x - x^2`` at ``x = 1 * 3 + 2 * (-1) = 1``.

    >>> from convbasis import reference
    >>> phi_q = reference.query_features([1.0, 2.0], [1.0, 2.0, -1.0])
    >>> round(float(phi_q @ reference.key_features([3.0, -1.0], 2)), 12)
    2.0
    """
    query = np.asarray(query, dtype=np.float64)
    coefficients = np.asarray(coefficients, dtype=np.float64)
    degree = coefficients.shape[-1] - 1
    total = multi_indices(query.shape[-1], degree).sum(axis=1)
    return coefficients[..., total] * monomials(query, degree)


def shifted_polynomial(coefficients: ArrayLike, shift: ArrayLike) -> NDArray[np.float64]:
    """Coefficients of ``P(x - m)`` by powers of ``x``, for every ``m``.

    Parameters
    ----------
    coefficients : array_like, shape (g + 1,)
    shift : array_like, shape (...)

    Returns
    -------
    ndarray of float64, shape (..., g + 1)

    Examples
    --------
    >>> from convbasis import reference
    >>> reference.shifted_polynomial([0.0, 0.0, 1.0], 3.0).tolist()  # (x - 3)^2
    [9.0, -6.0, 1.0]
    """
    coefficients = np.asarray(coefficients, dtype=np.float64)
    shift = np.asarray(shift, dtype=np.float64)
    result = np.zeros((*shift.shape, len(coefficients)))
    for p, c in enumerate(coefficients):
        for s in range(p + 1):
            result[..., s] += c * math.comb(p, s) * (-shift) ** (p - s)
    return result
