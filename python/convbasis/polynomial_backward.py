"""polynomial_attention_backward: gradients through a polynomial in place of the exponential."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _core, _gpu_polynomial_backward, _layout, _validate
from ._device_arrays import any_on_device
from ._polynomial_plan import PolynomialPlan, without_unseen_keys
from .masks import Mask
from .polynomial import PolynomialSettings, choose, overflow_named, polynomial_settings
from .polynomial_report import PolynomialBackwardReport
from .report import Stopwatch

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def polynomial_attention_backward(
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
    degree: int | None = None,
    tol: float | None = None,
    on_miss: str = "exact",
    check_finite: bool = True,
    return_report: bool = False,
    num_threads: int | None = None,
) -> Any:
    """Gradients of attention in linear time, the softmax matrix by a polynomial.

    With f the matrix of `polynomial_attention` and ``dS = f * (dY V^T - rowsum(dY * Y))``:
    ``dV = f^T dY``, ``dQ = scale dS K``, ``dK = scale dS^T Q``. That is the gradient of exact
    attention with weights that err by at most `tol`, not the derivative of the polynomial.

    Parameters
    ----------
    query : ndarray, shape (..., n_q, d)
    key : ndarray, shape (..., n_kv, d)
    value : ndarray, shape (..., n_kv, d_v)
    grad_output : ndarray, shape (..., n_q, d_v)
        Gradient of a loss by the output, in the dtype of `query`, any strides.
    attn_mask, dropout_p, is_causal, scale, enable_gqa, degree, tol
        As in `polynomial_attention`; the degree may be another than there, because no rows and
        columns are taken exactly. Under a `masks.RowChange`, and a `masks.RowWindow` whose ends do
        not rise from row to row, everything is computed exactly.
    on_miss : {"exact", "error", "keep"}
        As in `polynomial_attention`; features pay later than there, as the products have some
        ``2 d (d_v + 1)`` channels.
    return_report : bool
        Return also a `PolynomialBackwardReport`, which tells what was computed exactly, and why.
    check_finite, num_threads
        As in `conv_attention`.

    Returns
    -------
    grad_query, grad_key, grad_value : ndarray
        C-contiguous, in the shapes and the dtype of the inputs. Those by a key head that query
        heads share are sums over these. A row without visible key, and a key that no row sees, have
        gradient 0.
    report : PolynomialBackwardReport
        With `return_report` only.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        If an argument breaks a rule or cannot be honoured.
    ToleranceMissed
        With ``on_miss="error"``.

    Notes
    -----
    Time O((n_q + n_kv) r d d_v) for r features, memory O(n (d + d_v)). Results do not depend on
    the number of threads.

    Arrays on a GPU are taken as `polynomial_attention` takes them; what exact gradients cost
    there is an estimate too.

    Source: Conv-Basis (arXiv 2405.05219), the theorem on training, with another fast product.

    Examples
    --------
    >>> import numpy as np, convbasis as cb
    >>> rng = np.random.default_rng(0)
    >>> q, k, v, dy = 0.5 * rng.uniform(-1, 1, (4, 256, 2))
    >>> grads = cb.polynomial_attention_backward(q, k, v, dy, is_causal=True, degree=6)
    >>> exact = cb.exact_attention_backward(q, k, v, dy, is_causal=True)
    >>> all(np.allclose(a, b, atol=1e-6) for a, b in zip(grads, exact))
    True
    """
    name = "polynomial_attention_backward"
    if any_on_device(query, key, value, grad_output):
        settings = polynomial_settings(name, degree, tol, on_miss, check_finite, num_threads)
        return _gpu_polynomial_backward.polynomial_attention_backward(
            query,
            key,
            value,
            grad_output,
            attn_mask,
            dropout_p,
            is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
            degree=settings.degree,
            tol=settings.tol,
            on_miss=settings.on_miss,
            return_report=return_report,
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
    wanted = polynomial_settings(name, degree, tol, on_miss, check_finite, num_threads)
    return_report = _validate.flag(name, "return_report", return_report)
    clock = Stopwatch()
    if wanted.check_finite:
        with clock("check"):
            _validate.finite(name, [*inputs.named(), ("grad_output", grad)], wanted.threads)
    seen = without_unseen_keys(inputs)
    with clock("plan"):
        plan = choose(seen, wanted, sample=return_report, backward=True)
    with clock("differentiate"), overflow_named(name, inputs):
        arrays, spoiled = differentiate(inputs, seen, plan, grad, wanted.threads)
    grads = tuple(
        _layout.deliver(array, None, given.shape, inputs.dtype)
        for array, given in zip(arrays, (query, key, value), strict=True)
    )
    return (*grads, account(seen, plan, spoiled, wanted, clock)) if return_report else grads


def differentiate(
    inputs: _layout.AttentionInputs,
    seen: _layout.AttentionInputs,
    plan: PolynomialPlan,
    grad: np.ndarray,
    threads: int,
) -> tuple[Arrays, np.ndarray]:
    """Gradients by query, key and value in the core's layout; keys that nobody sees get 0.

    And which heads had a row whose weights sum to 0 or less.
    """
    by_polynomial = plan.by_polynomial & windows_rise(seen)
    grad_query, grad_key, grad_value = (
        np.zeros(array.shape, inputs.compute) for _, array in inputs.named()
    )
    keys = slice(seen.key.shape[2])
    operands = (seen.query, seen.key, seen.value, grad)
    targets = (grad_query, grad_key[:, :, keys], grad_value[:, :, keys])
    call = (seen.scale, seen.is_causal, seen.mask)
    # First, for it overwrites what the other adds to.
    exact = np.flatnonzero(~by_polynomial)
    _core.exact_attention_backward(*operands, *targets, *call, exact, threads)
    done = _core.polynomial_attention_backward(
        *operands, *targets, plan.native(), *call, np.flatnonzero(by_polynomial), threads
    )
    return (grad_query, grad_key, grad_value), done["rows_exact"] > 0


def account(
    inputs: _layout.AttentionInputs,
    plan: PolynomialPlan,
    spoiled: np.ndarray,
    wanted: PolynomialSettings,
    clock: Stopwatch,
) -> PolynomialBackwardReport:
    """The report, in the caller's leading dimensions."""
    because = np.full(inputs.heads, "", dtype="<U8")
    because[spoiled] = "row sums"
    if not windows_rise(inputs):
        because[...] = "mask"
    because[~plan.by_polynomial] = "tol"
    without = plan.of("degree") < 0
    beyond = ~(plan.of("radius") <= _core.MOST_RADIUS)
    because[without & ~beyond] = "memory"
    because[without & beyond] = "logits"
    exact = because != ""
    restore = inputs.restore
    return PolynomialBackwardReport(
        method="exact" if exact.all() and exact.size else "polynomial",
        heads_exact=int(exact.sum()),
        exact_mask=restore(exact),
        exact_because=restore(because),
        radius=restore(plan.of("radius")),
        degree=restore(plan.of("degree")),
        rank=restore(plan.of("rank")),
        epsilon=restore(plan.of("epsilon")),
        rounding=restore(plan.of("rounding")),
        cost_polynomial=restore(plan.of("cost")),
        cost_exact=restore(plan.of("cost_exact")),
        tol=wanted.tol,
        on_miss=wanted.on_miss,
        seconds=clock.stages(),
    )


def windows_rise(inputs: _layout.AttentionInputs) -> bool:
    """Whether the mask can be transposed: its windows begin and end ever later."""
    if inputs.mask is None or inputs.mask[0] not in ("RowChange", "RowWindow"):
        return True
    if inputs.mask[0] == "RowChange":
        return False
    start, stop = np.asarray(inputs.mask[1]), np.asarray(inputs.mask[2])
    sees_any = start < stop
    ends = start[sees_any], stop[sees_any]
    return bool(all((np.diff(end) >= 0).all() for end in ends))
