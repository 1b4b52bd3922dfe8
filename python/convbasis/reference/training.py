"""The training problem of the paper: loss and gradient of one causal attention layer.

Source: Conv-Basis, section on gradient computation.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .attention import attention_weights, masked_softmax
from .backward import Float64, check_gradient, check_shape, logit_gradient, product_gradient
from .conv import Basis
from .conv_attention import conv_logits


def attention_loss(
    A1: ArrayLike,
    A2: ArrayLike,
    A3: ArrayLike,
    E: ArrayLike,
    X: ArrayLike,
    Y: ArrayLike,
    *,
    lower: Basis | None = None,
    gradient: str = "attention",
) -> tuple[float, Float64]:
    """The paper's training problem: one causal attention layer fitted to a target.

    ``L(X) = 1/2 || D(X)^-1 (M o exp(A1 X A2^T)) A3 Y - E ||_F^2`` and ``dL/dX``. In terms of
    attention: queries ``A1 X``, keys ``A2``, values ``A3 Y``, scale 1.

    Parameters
    ----------
    A1 : array_like, shape (n, d)
    A2 : array_like, shape (n, d)
    A3 : array_like, shape (n, d)
    E : array_like, shape (n, d_v)
        The target.
    X : array_like, shape (d, d)
    Y : array_like, shape (d, d_v)
        The paper has ``d_v = d``.
    lower : Basis, optional
        Stands for the logits ``A1 X A2^T``; default those themselves.
    gradient : {"attention", "basis"}
        As in `conv_attention_backward`; without `lower` there is one gradient only.

    Returns
    -------
    loss : float
    grad_X : ndarray of float64, shape (d, d)
        ``A1^T p A2``, where ``c = f h - E``, ``h = A3 Y``, ``q = c h^T`` and
        ``p = f o q - diag(rowsum(f o q)) f``.

    Raises
    ------
    ValueError
        If `E` or `lower` has the wrong shape, or `gradient` is none of the two.

    Notes
    -----
    Time O(n^2 d), memory O(n^2).

    Examples
    --------
    The second row weighs the values 1 : 1 and misses its target by 1.

    >>> from convbasis import reference
    >>> loss, grad_X = reference.attention_loss(
    ...     [[0.0], [1.0]], [[1.0], [3.0]], [[2.0], [4.0]], [[2.0], [2.0]], [[0.0]], [[1.0]])
    >>> loss, grad_X.tolist()
    (0.5, [[1.0]])
    """
    check_gradient("attention_loss", gradient)
    A1, A2, A3, E, X, Y = (np.asarray(array, dtype=np.float64) for array in (A1, A2, A3, E, X, Y))
    if lower is None:
        weights, _ = attention_weights(A1 @ X, A2, is_causal=True, scale=1.0)
    else:
        weights, _ = masked_softmax(*conv_logits(lower))
        check_shape("attention_loss", "lower", weights, (len(A1), len(A2)))
    h = A3 @ Y
    check_shape("attention_loss", "E", E, (len(A1), h.shape[1]))
    c = weights @ h - E
    p = logit_gradient(weights, h, c)
    if lower is not None:
        p = product_gradient(lower, None, p, gradient)
    return float(0.5 * np.sum(c * c)), A1.T @ p @ A2
