"""Attention through a conv basis of the logits, evaluated densely."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .attention import masked_softmax, visible
from .conv import Basis, basis_to_dense


def conv_logits(
    lower: Basis, upper: Basis | None = None
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Logits that a basis stands for, and which of them are visible.

    Parameters
    ----------
    lower : Basis
        Basis of the lower triangle, diagonal included.
    upper : Basis, optional
        Basis of the upper triangle, reversed in both axes (a lower triangle again): the basis of
        the reversed query and key rows. Its lag 0 is the diagonal, which `lower` gives already,
        so it is not used.

    Returns
    -------
    logits : ndarray of float64, shape (n, num_columns)
    mask : ndarray of bool, shape (n, num_columns)
        The lower triangle without `upper`, everything with it.

    Raises
    ------
    ValueError
        If `upper` is given and the matrices are not square and of one size.
    """
    n, num_columns = lower.num_rows, lower.num_columns
    below = visible(n, num_columns, is_causal=True)
    logits = basis_to_dense(lower)
    if upper is None:
        return logits, below
    shape = (upper.num_rows, upper.num_columns)
    if shape != (n, num_columns) or n != num_columns:
        raise ValueError(
            "[conv_logits] upper does not belong to lower; expected two square "
            f"matrices of one size; got {(n, num_columns)} and {shape}"
        )
    above = basis_to_dense(upper)[::-1, ::-1]
    return np.where(below, logits, above), np.ones_like(below)


def conv_attention(
    lower: Basis, value: ArrayLike, *, upper: Basis | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Softmax attention with the logits of a basis, without any rounding worth the name.

    Causal when `upper` is not given. Otherwise ``A = L + U``, and numerators and row sums of both
    halves are added before the division. Columns before the first start have the logit 0, hence
    the weight 1.

    Parameters
    ----------
    lower : Basis
    value : array_like, shape (num_columns, d_v)
    upper : Basis, optional
        See `conv_logits`.

    Returns
    -------
    out : ndarray of float64, shape (n, d_v)
    lse : ndarray of float64, shape (n,)

    Notes
    -----
    Time O(n^2 d_v), memory O(n^2). Source: Conv-Basis, inference algorithm (Algorithm 1).

    Examples
    --------
    >>> from convbasis import reference
    >>> basis = reference.Basis([0], [[0.0, 0.0]], 2)
    >>> reference.conv_attention(basis, [[2.0], [4.0]])[0].tolist()
    [[2.0], [3.0]]
    """
    value = np.asarray(value, dtype=np.float64)
    logits, mask = conv_logits(lower, upper)
    if value.ndim != 2 or len(value) != logits.shape[1]:
        raise ValueError(
            "[conv_attention] value does not match the basis; expected shape "
            f"({logits.shape[1]}, d_v); got {value.shape}"
        )
    weights, lse = masked_softmax(logits, mask)
    return weights @ value, lse
