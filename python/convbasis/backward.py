"""conv_attention_backward and exact_attention_backward: gradients of attention."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from . import _core, _gpu_backward, _layout, _validate
from ._device_arrays import any_on_device
from ._gpu_attention import judgements
from ._gradients import GRADIENTS, backward_report, differentiate
from ._plan import make_plan
from ._run import attend
from ._settings import conv_settings
from .basis import ConvBasis
from .masks import Mask
from .recover import RecoverOptions
from .report import Stopwatch


def conv_attention_backward(
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
    basis: ConvBasis | tuple[ConvBasis, ConvBasis] | None = None,
    options: RecoverOptions | None = None,
    tol: float | None = None,
    on_miss: str = "exact",
    gradient: str = "basis",
    check_finite: bool = True,
    return_report: bool = False,
    certify: bool = False,
    num_threads: int | None = None,
) -> Any:
    """Gradients of `conv_attention` in almost linear time.

    Heads that `conv_attention` would compute through strips are differentiated through them, the
    others exactly, as by `exact_attention_backward`.

    Parameters
    ----------
    query : ndarray, shape (..., n, d)
    key : ndarray, shape (..., n_kv, d)
    value : ndarray, shape (..., n_kv, d_v)
    grad_output : ndarray, shape (..., n, d_v)
        Gradient of a loss by the output, in the dtype of `query`, any strides.
    gradient : {"basis", "attention"}
        ``"basis"``: the exact derivative of the approximate function. Its logits are the products
        of the query rows with the keys at the strips' starts, so the gradients by all other keys
        are 0; the starts themselves are held fixed. ``"attention"``: the gradient of exact
        attention with the softmax matrix replaced by its approximation, the paper's; it equals the
        gradient of exact attention when the strips do. The two are gradients of different
        functions and differ even then: choose ``"basis"`` to train what is computed, where the
        keys at the starts have to stand for the others (logits made of positions), and
        ``"attention"`` to go on training a model of exact attention. `tol` is about the output and
        says nothing of gradients.
    return_report : bool
        Return also a `BackwardReport`, with bounds of the error (for ``"basis"`` of the gradient
        by value alone).
    certify : bool
        Measure the deviation of every logit for the report, O(n^2 d) time, so that these bounds are
        certificates (rounding apart) and not estimates.
    attn_mask, dropout_p, is_causal, scale, enable_gqa, basis, options, tol, on_miss
        As in `conv_attention`, of whose forward pass this is the backward pass. With a given
        `basis`, its kernels count as those products, whatever they were made from. With `tol` the
        forward pass runs too, because it decides which heads are computed exactly.
    check_finite, num_threads
        As in `conv_attention`. Arrays on a GPU give gradients of the same kind; what judges strips
        is refused there, and nothing checks for NaN.

    Returns
    -------
    grad_query, grad_key, grad_value : ndarray
        C-contiguous, in the shapes and the dtype of the inputs. Those by a key head that query
        heads share are sums over these. A row without visible key, and a key that no row sees, have
        gradient 0.
    report : BackwardReport
        With `return_report` only.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        If an argument breaks a rule or cannot be honoured.
    ToleranceMissed
        With ``on_miss="error"``.

    Notes
    -----
    Time of ``"basis"``: O(n (d + d_v) log L + k n (d + d_v)) a head in blocks of L rows, about
    three times the forward pass. Time of ``"attention"``: d_v + 1 products of the strips with d
    channels, and as many transposed ones. Memory O(k n + n (d + d_v)). Rows whose sums rounding
    spoiled in the forward pass are computed one by one. Results do not depend on the number of
    threads.

    Rounding: rows that the transforms may have changed by more than 1e-4 of their size (float64:
    2.5e-12) are computed one by one; errors are usually a few roundings of the computing type, but
    may come near that budget where logits have a wide range.

    Where the logits deviate by at most dev, ``|dV~ - dV| <= (e - 1) f^T |dY|`` with
    ``e = exp(2 dev)``, and entries of dS, hence of ``"attention"``'s dQ and dK, deviate by at most
    ``(e^2 - 1) f R``, R_i being the range of ``dY_i . V_j`` over the keys j that row i sees.

    Source: Conv-Basis (arXiv 2405.05219), the theorem on training.

    Examples
    --------
    >>> import numpy as np, convbasis as cb
    >>> problem = cb.problems.conv_problem(n=256, head_dim=8, num_bases=2)
    >>> inputs = problem.query, problem.key, problem.value
    >>> settings = dict(is_causal=True, scale=problem.scale)
    >>> grads = cb.conv_attention_backward(
    ...     *inputs, np.ones((256, 8)), gradient="attention",
    ...     options=cb.RecoverOptions(num_bases=2), **settings)
    >>> exact = cb.exact_attention_backward(*inputs, np.ones((256, 8)), **settings)
    >>> all(np.allclose(a, b, atol=1e-10) for a, b in zip(grads, exact))
    True
    """
    name = "conv_attention_backward"
    if any_on_device(query, key, value, grad_output):
        return _gpu_backward.conv_attention_backward(
            query,
            key,
            value,
            grad_output,
            attn_mask,
            dropout_p,
            is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
            basis=basis,
            options=options,
            judging=judgements(tol, on_miss, return_report, certify),
            gradient=gradient,
            check_finite=check_finite,
            num_threads=num_threads,
        )
    inputs = _layout.attention_inputs(
        name, query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa
    )
    grad = _layout.output_gradient(name, grad_output, inputs)
    gradient = _validate.choice(name, "gradient", gradient, GRADIENTS)
    wanted = conv_settings(
        inputs,
        query,
        key,
        value,
        scale=scale,
        basis=basis,
        options=options,
        tol=tol,
        on_miss=on_miss,
        check_finite=check_finite,
        out=None,
        return_lse=False,
        return_report=return_report,
        certify=certify,
        num_threads=num_threads,
        function=name,
    )
    clock = Stopwatch()
    if wanted.check_finite:
        with clock("check"):
            _validate.finite(name, [*inputs.named(), ("grad_output", grad)], wanted.threads)
    inputs = replace(inputs, scale=wanted.scale)
    if wanted.tol is None:
        plan = make_plan(inputs.without_unseen_keys(), wanted, clock)
    else:
        with clock("judge"):
            plan = attend(inputs, replace(wanted, certify=False)).plan
    with clock("differentiate"):
        found = differentiate(inputs, plan, grad, gradient, wanted.threads)
    results = tuple(
        _layout.deliver(array, None, given.shape, inputs.dtype)
        for array, given in zip(found.arrays, (query, key, value), strict=True)
    )
    if not return_report:
        return results
    for stage, seconds in found.seconds.items():
        clock.add(stage, seconds)
    return (*results, backward_report(inputs, plan, grad, gradient, found, wanted, clock))


def exact_attention_backward(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    grad_output: np.ndarray,
    attn_mask: Mask | None = None,
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
        Any n_q and n_kv, causal or not. Arrays on a GPU give gradients of the same kind, without
        a mask; a logit that overflows makes them NaN.
    grad_output : ndarray, shape (..., n_q, d_v)
        Gradient of a loss by the output, in the dtype of `query`, any strides.
    attn_mask : masks.Mask, optional
        As in `exact_attention`.
    dropout_p, is_causal, scale, enable_gqa, check_finite, num_threads
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
    again, tile by tile. Time O(n_q n_kv (d + d_v)), half of it when causal, with a mask in
    proportion to what blocks of it show, some 3 times that of `exact_attention`; memory
    O(n (d + d_v)). Rounding is that of the computing type alone, and results do not depend on the
    number of threads.

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
    if any_on_device(query, key, value, grad_output):
        return _gpu_backward.exact_attention_backward(
            query,
            key,
            value,
            grad_output,
            attn_mask,
            dropout_p,
            is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
            check_finite=check_finite,
            num_threads=num_threads,
        )
    inputs = _layout.attention_inputs(
        name,
        query,
        key,
        value,
        attn_mask,
        dropout_p,
        is_causal,
        scale,
        enable_gqa,
        takes_mask=True,
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
        inputs.mask,
        None,
        threads,
    )
    return (
        _layout.deliver(grad_query, None, query.shape, inputs.dtype),
        _layout.deliver(grad_key, None, key.shape, inputs.dtype),
        _layout.deliver(grad_value, None, value.shape, inputs.dtype),
    )
