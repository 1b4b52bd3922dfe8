"""Gradients of attention, exact and through a conv basis.

With ``f = D^-1 A`` the weights, ``Y = f V`` the output and ``G = dL/dY``, put
``delta_i = G_i . Y_i``. Then

    ``dV = f^T G``,   ``dS = f o (G V^T) - diag(delta) f``,
    ``dQ = scale * dS K``,   ``dK = scale * dS^T Q``,

where ``dS = dL/dH`` is the gradient of the logits. Its rows sum to 0, as softmax does not change
when a constant is added to a row.

Through a basis there are two gradients, which differ in what happens after ``dS``:

"attention"
    The formulas above with the weights of the basis in place of ``f``. It approximates the
    gradient of attention, and is the derivative of nothing else unless the basis is exact.
"basis"
    The derivative of the approximate output itself. A basis reads the logits of its start columns
    only, ``u_r[t] = scale * q_{s_r + t} . k_{s_r}``, and uses each of them for a whole diagonal
    of its strip. So ``dU_r[t]`` is the sum of ``dS`` along that diagonal, and every other logit
    has the gradient 0, those before the first start included: they are the constant 0.

Source: Conv-Basis, section on gradient computation.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .attention import attention_weights, masked_softmax, scale_or_default, share_heads
from .conv import Basis
from .conv_attention import conv_logits

Float64 = NDArray[np.float64]


def logit_gradient(weights: ArrayLike, value: ArrayLike, grad_output: ArrayLike) -> Float64:
    """``dS = f o (G V^T) - diag(delta) f``: the gradient of the logits.

    Parameters
    ----------
    weights : array_like, shape (..., n_q, n_kv)
        ``f``, 0 where a key is not visible; so is the result.
    value : array_like, shape (..., n_kv, d_v)
    grad_output : array_like, shape (..., n_q, d_v)
        ``G``, the gradient of ``weights @ value``.

    Returns
    -------
    ndarray of float64, shape (..., n_q, n_kv)
        Rows sum to 0.

    Examples
    --------
    >>> from convbasis import reference
    >>> reference.logit_gradient([[0.25, 0.75]], [[4.0], [8.0]], [[1.0]]).tolist()
    [[-0.75, 0.75]]
    """
    weights = np.asarray(weights, dtype=np.float64)
    grad_weights = np.asarray(grad_output) @ np.swapaxes(np.asarray(value), -1, -2)
    delta = (weights * grad_weights).sum(axis=-1, keepdims=True)
    gradient: Float64 = weights * (grad_weights - delta)
    return gradient


def kernel_gradient(basis: Basis, logit_grad: ArrayLike) -> Float64:
    """``dU_r[t] = sum of dS[j + t, j]`` over the columns ``j`` of strip ``r``.

    The adjoint of `basis_to_dense` as a linear map of the kernels.

    Parameters
    ----------
    basis : Basis
        Gives the strips; its kernels are not read.
    logit_grad : array_like, shape (n, num_columns)
        ``dS``; entries above the diagonal are not read.

    Returns
    -------
    ndarray of float64, shape (k, n)

    Examples
    --------
    >>> from convbasis import reference
    >>> basis = reference.Basis([0, 2], [[1.0, 2.0, 3.0], [9.0, 0.0, 0.0]], 3)
    >>> reference.kernel_gradient(basis, [[1, 0, 0], [2, 3, 0], [4, 5, 6]]).tolist()
    [[4.0, 7.0, 4.0], [6.0, 0.0, 0.0]]
    """
    logit_grad = np.asarray(logit_grad, dtype=np.float64)
    n = basis.num_rows
    gradient = np.zeros((basis.num_bases, n))
    for total, start, stop in zip(gradient, basis.starts, basis.stops, strict=True):
        for j in range(start, min(stop, n)):
            total[: n - j] += logit_grad[j:, j]
    return gradient


def onto_start_columns(basis: Basis, logit_grad: Float64) -> Float64:
    """Gradient of the logits that a basis reads: ``dU_r`` in column ``s_r``, 0 elsewhere."""
    gradient = np.zeros_like(logit_grad)
    for start, kernel in zip(basis.starts, kernel_gradient(basis, logit_grad), strict=True):
        gradient[start:, start] = kernel[: basis.num_rows - start]
    return gradient


def product_gradient(
    lower: Basis, upper: Basis | None, logit_grad: Float64, gradient: str
) -> Float64:
    """From ``dS``, the gradient of the entries of ``scale * Q K^T`` that the basis stands for."""
    if gradient == "attention":
        return logit_grad
    total = onto_start_columns(lower, logit_grad)
    if upper is not None:
        above = np.triu(logit_grad, 1)  # the diagonal belongs to lower
        total += onto_start_columns(upper, above[::-1, ::-1])[::-1, ::-1]
    return total


def query_key_gradients(
    product_grad: Float64, query: Float64, key: Float64, scale: float
) -> tuple[Float64, Float64]:
    """``dQ`` and ``dK`` from the gradient of ``scale * Q K^T``."""
    return scale * (product_grad @ key), scale * (np.swapaxes(product_grad, -1, -2) @ query)


def sum_groups(array: Float64, kv_heads: int) -> Float64:
    """The adjoint of `share_heads`: each key head gets the sum over its query heads."""
    *lead, heads, rows, dim = array.shape
    groups = array.reshape(*lead, kv_heads, heads // kv_heads, rows, dim)
    total: Float64 = groups.sum(axis=-3)
    return total


def check_shape(function: str, name: str, array: Float64, expected: tuple[int, ...]) -> None:
    """Raise ValueError unless `array` has exactly the shape that is expected."""
    if array.shape != expected:
        raise ValueError(
            f"[{function}] {name} has the wrong shape; expected {expected}; got {array.shape}"
        )


def check_gradient(function: str, gradient: str) -> None:
    """Raise ValueError unless `gradient` is one of the two through a basis."""
    if gradient not in ("basis", "attention"):
        raise ValueError(
            f"[{function}] gradient is unknown; expected 'basis' or 'attention'; got {gradient!r}"
        )


def attention_backward(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    grad_output: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Float64, Float64, Float64]:
    """Exact gradient of ``sum(grad_output * out)``, ``out`` of `attention`.

    Parameters
    ----------
    query : array_like, shape (..., n_q, d)
    key : array_like, shape (..., n_kv, d)
    value : array_like, shape (..., n_kv, d_v)
    grad_output : array_like, shape (..., n_q, d_v)
    mask, is_causal, scale, enable_gqa
        As in `attention`.

    Returns
    -------
    grad_query, grad_key, grad_value : ndarray of float64
        Of the shapes of `query`, `key` and `value`; with `enable_gqa` the last two are summed
        over the query heads that share a key head. Rows of `query` without any visible key, and
        keys that no query sees, have the gradient 0.

    Notes
    -----
    Time O(n_q n_kv (d + d_v)), memory O(n_q n_kv).

    Examples
    --------
    The second row weighs the values 1 : 1, so that its output moves by half of what they do.

    >>> from convbasis import reference
    >>> dq, dk, dv = reference.attention_backward(
    ...     [[0.0], [0.0]], [[1.0], [3.0]], [[2.0], [4.0]], [[0.0], [1.0]], is_causal=True)
    >>> dq.tolist(), dk.tolist(), dv.tolist()
    ([[0.0], [1.0]], [[0.0], [0.0]], [[0.5], [0.5]])
    """
    query, key, value, grad_output = (
        np.asarray(array, dtype=np.float64) for array in (query, key, value, grad_output)
    )
    weights, _ = attention_weights(
        query, key, mask=mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
    )
    *lead, n_q, n_kv = weights.shape
    shared_key, shared_value = key, value
    if enable_gqa:
        shared_key, shared_value = share_heads(key, lead[-1]), share_heads(value, lead[-1])
    value_dim = value.shape[-1]
    check_shape("attention_backward", "value", shared_value, (*lead, n_kv, value_dim))
    check_shape("attention_backward", "grad_output", grad_output, (*lead, n_q, value_dim))
    grad_query, grad_key = query_key_gradients(
        logit_gradient(weights, shared_value, grad_output),
        query,
        shared_key,
        scale_or_default(scale, query.shape[-1]),
    )
    grad_value = np.swapaxes(weights, -1, -2) @ grad_output
    if enable_gqa:
        grad_key = sum_groups(grad_key, key.shape[-3])
        grad_value = sum_groups(grad_value, value.shape[-3])
    return grad_query, grad_key, grad_value


def conv_attention_backward(
    lower: Basis,
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    grad_output: ArrayLike,
    *,
    upper: Basis | None = None,
    scale: float | None = None,
    gradient: str = "basis",
) -> tuple[Float64, Float64, Float64]:
    """Gradient of ``sum(grad_output * out)``, ``out`` of `conv_attention`, for one head.

    Parameters
    ----------
    lower : Basis
        Of the logits ``scale * Q K^T``. The weights come from its kernels; they are not formed
        again from `query` and `key`.
    query : array_like, shape (n, d)
    key : array_like, shape (num_columns, d)
    value : array_like, shape (num_columns, d_v)
    grad_output : array_like, shape (n, d_v)
    upper : Basis, optional
        See `conv_logits`; its kernels are ``u_r[t] = scale * q_{s_r + t} . k_{s_r}`` of the
        reversed rows, and lag 0 has no gradient as it is not used.
    scale : float, optional
        Default ``1 / sqrt(d)``.
    gradient : {"basis", "attention"}
        "basis": of the kernels as functions of their start columns, with the starts held fixed.
        "attention": the formulas of attention with the weights of the basis. Both give the same
        ``grad_value``.

    Returns
    -------
    grad_query, grad_key, grad_value : ndarray of float64
        Of the shapes of `query`, `key` and `value`.

    Raises
    ------
    ValueError
        If the shapes do not belong to the basis, or `gradient` is none of the two.

    Notes
    -----
    Time O(n^2 (d + d_v)), memory O(n^2). Source: Conv-Basis, section on gradient computation.

    Examples
    --------
    One strip: the diagonal reads ``q_0 . k_0``, the lag 1 reads ``q_1 . k_0``, and ``k_1`` is not
    read at all.

    >>> from convbasis import reference
    >>> basis = reference.Basis([0], [[0.0, 0.0]], 2)
    >>> arrays = [[0.0], [0.0]], [[1.0], [3.0]], [[2.0], [4.0]], [[0.0], [1.0]]
    >>> reference.conv_attention_backward(basis, *arrays)[0].tolist()
    [[0.5], [-0.5]]
    >>> reference.conv_attention_backward(basis, *arrays, gradient="attention")[0].tolist()
    [[0.0], [1.0]]
    """
    check_gradient("conv_attention_backward", gradient)
    query, key, value, grad_output = (
        np.asarray(array, dtype=np.float64) for array in (query, key, value, grad_output)
    )
    weights, _ = masked_softmax(*conv_logits(lower, upper))
    n, num_columns = weights.shape
    head_dim, value_dim = query.shape[-1], value.shape[-1]
    check_shape("conv_attention_backward", "query", query, (n, head_dim))
    check_shape("conv_attention_backward", "key", key, (num_columns, head_dim))
    check_shape("conv_attention_backward", "value", value, (num_columns, value_dim))
    check_shape("conv_attention_backward", "grad_output", grad_output, (n, value_dim))
    logit_grad = logit_gradient(weights, value, grad_output)
    grad_query, grad_key = query_key_gradients(
        product_gradient(lower, upper, logit_grad, gradient),
        query,
        key,
        scale_or_default(scale, head_dim),
    )
    return grad_query, grad_key, weights.T @ grad_output
