"""exact_attention_backward: gradients of attention."""

from __future__ import annotations

import numpy as np

from . import _core, _layout, _validate


def exact_attention_backward(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    grad_output: np.ndarray,
    attn_mask: None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    check_finite: bool = True,
    num_threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of `exact_attention` in tiles: nothing approximated, nothing n x n.

    Parameters
    ----------
    query : ndarray, shape (..., n_q, d)
    key : ndarray, shape (..., n_kv, d)
    value : ndarray, shape (..., n_kv, d_v)
        Any n_q and n_kv, causal or not.
    grad_output : ndarray, shape (..., n_q, d_v)
        Gradient of a loss by the output, in the dtype of `query`, any strides.
    attn_mask, dropout_p, is_causal, scale, enable_gqa, check_finite, num_threads
        As in `conv_attention`.

    Returns
    -------
    grad_query, grad_key, grad_value : ndarray
        Gradients of the loss, C-contiguous, in the shapes and the dtype of the inputs. Those by a
        key head that query heads share are sums over these. A row without visible key, and a key
        that no row sees, have gradient 0.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        If an argument breaks a rule or cannot be honoured.

    Notes
    -----
    With f the softmax and ``dS = f * (dY V^T - rowsum(dY * Y))``: ``dV = f^T dY``,
    ``dQ = scale dS K``, ``dK = scale dS^T Q``. Nothing of the forward pass is kept: f is computed
    again, tile by tile. Time O(n_q n_kv (d + d_v)), half of it when causal, some 3 times that of
    `exact_attention`; memory O(n (d + d_v)). Rounding is that of the computing type alone, and
    results do not depend on the number of threads.

    Examples
    --------
    >>> import numpy as np, convbasis as cb
    >>> ones = np.ones((2, 1))
    >>> grad_query, grad_key, grad_value = cb.exact_attention_backward(
    ...     ones, ones, np.array([[2.0], [4.0]]), ones, is_causal=True)
    >>> grad_value  # the first value counts for both rows, the second for half of one
    array([[1.5],
           [0.5]])
    >>> grad_key
    array([[-0.5],
           [ 0.5]])
    """
    name = "exact_attention_backward"
    inputs = _layout.attention_inputs(
        name, query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa
    )
    grad = _layout.output_gradient(name, grad_output, inputs)
    check_finite = _validate.flag(name, "check_finite", check_finite)
    threads = _validate.threads(name, num_threads)
    if check_finite:
        _validate.finite(name, [*inputs.named(), ("grad_output", grad)], threads)

    grad_query, grad_key, grad_value = (
        np.empty(array.shape, inputs.compute) for _, array in inputs.named()
    )
    _core.exact_attention_backward(
        inputs.query,
        inputs.key,
        inputs.value,
        grad,
        grad_query,
        grad_key,
        grad_value,
        inputs.scale,
        inputs.is_causal,
        None,
        threads,
    )
    return (
        _layout.deliver(grad_query, None, query.shape, inputs.dtype),
        _layout.deliver(grad_key, None, key.shape, inputs.dtype),
        _layout.deliver(grad_value, None, value.shape, inputs.dtype),
    )
