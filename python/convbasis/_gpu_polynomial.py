"""Polynomial attention of arrays on a GPU; it waits once, for the range of the logits."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _core, _gpu_calls, _polynomial_cost, _validate
from ._device_arrays import DeviceArray, collapsed
from ._gpu_attention import checked, handed_over, refused, results
from ._gpu_exact import attend_exactly
from ._layout import AttentionInputs
from ._polynomial_cost import Costs
from ._polynomial_plan import Chooser, HeadPlan, PolynomialPlan

#: Nanoseconds of a multiply-add in float32, in half precision by torch, and in float64; and of the
#: launches of a call. Estimates for an H100, by its rates, that no run has confirmed.
SINGLE, HALF, DOUBLE, LAUNCHES = 6e-5, 6e-6, 1.2e-4, 6e4

#: Channels of a product of a backward pass, and nanoseconds of its launches.
SLAB, SLAB_LAUNCHES = 64, 1.5e4

#: Cost of exact_attention_backward in calls of exact_attention: entries are formed four times.
EXACT_BACKWARD = 5.0


def polynomial_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: object,
    dropout_p: object,
    is_causal: object,
    *,
    scale: object,
    enable_gqa: object,
    degree: int | None,
    tol: float | None,
    on_miss: str,
    out: Any,
    return_lse: object,
    return_report: object,
) -> Any:
    """Settings are checked, arrays are not."""
    name = "polynomial_attention"
    named = [("query", query), ("key", key), ("value", value)]
    (q, k, v), factor = checked(name, named, attn_mask, dropout_p, scale, enable_gqa)
    causal = _validate.flag(name, "is_causal", is_causal)
    if on_miss == "error":
        raise refused(name, "on_miss", "'exact' or 'keep'", on_miss)
    if _validate.flag(name, "return_report", return_report):
        raise refused(name, "return_report", "False, as nothing is sampled there", return_report)
    made, lse = results(name, [("query", q), ("key", k), ("value", v)], out, return_lse)
    plan = gpu_plan(name, q, k, v, factor, causal, degree, tol, on_miss)
    _core.cuda_polynomial_attention(
        collapsed(name, "query", q),
        collapsed(name, "key", k),
        collapsed(name, "value", v),
        collapsed(name, "out", made),
        None if lse is None else collapsed(name, "lse", lse, 1),
        plan.native(),
        factor,
        causal,
        np.flatnonzero(plan.by_polynomial),
        _gpu_calls.stream_of(name, [q, k, v, made]),
    )
    exact = np.flatnonzero(~plan.by_polynomial)
    attend_exactly(name, q, k, v, made, lse, factor, causal, exact)
    return handed_over(made, lse)


def gpu_plan(
    name: str,
    q: DeviceArray,
    k: DeviceArray,
    v: DeviceArray,
    scale: float,
    is_causal: bool,
    degree: int | None,
    tol: float | None,
    on_miss: str,
    *,
    backward: bool = False,
) -> PolynomialPlan:
    """The polynomial of each head after `on_miss`; waits for the stream."""
    inputs = shapes_of(name, q, k, v, scale, is_causal)
    stream = _gpu_calls.stream_of(name, [q, k, v])
    query, key = (collapsed(name, part, array) for part, array in (("query", q), ("key", k)))
    centre, radius = _core.cuda_logit_range(query, key, scale, is_causal, stream)
    chooser = Chooser(inputs, tol, backward, gpu_costs(inputs, q, backward))
    heads = [head_plan(chooser, r, degree, on_miss) for r in radius]
    exists = np.array([head.coefficients is not None for head in heads], dtype=bool)
    kept = exists & ~np.array([head.missed and on_miss == "exact" for head in heads], dtype=bool)
    centres = centre.reshape(inputs.key.shape[0], inputs.key.shape[1], inputs.key.shape[3])
    return PolynomialPlan(heads, centres, kept.reshape(inputs.heads), radius.reshape(inputs.heads))


def head_plan(chooser: Chooser, radius: float, degree: int | None, on_miss: str) -> HeadPlan:
    """The polynomial of a head, without rows and columns beside it."""
    head = None
    if degree is None and chooser.tol is not None:
        head = chooser.without_columns(np.array([radius]), np.ones(1))
    if head is None and degree is None and on_miss == "exact":
        head = chooser.missed(radius)
    return head or chooser.of_radius(radius, degree)


def shapes_of(
    name: str, q: DeviceArray, k: DeviceArray, v: DeviceArray, scale: float, is_causal: bool
) -> AttentionInputs:
    """What costs depend on; the arrays of it hold no numbers."""
    compute = _gpu_calls.compute_dtype(q)
    query, key, value = (
        np.broadcast_to(np.zeros((), compute), collapsed(name, part, array)[1])
        for part, array in (("query", q), ("key", k), ("value", v))
    )
    return AttentionInputs(query, key, value, q.shape[:-2], compute, is_causal, scale)


def gpu_costs(inputs: AttentionInputs, query: DeviceArray, backward: bool = False) -> Costs:
    rate = DOUBLE if inputs.compute == np.float64 else SINGLE
    by_tensor_cores = not backward and query.package == "torch" and query.itemsize == 2
    costs = Costs(inputs, backward, rates=(HALF if by_tensor_cores else rate, rate))
    launches = LAUNCHES
    if backward:
        costs.exact *= EXACT_BACKWARD / _polynomial_cost.EXACT_BACKWARD
        channels = costs.head_dim * (costs.value_dim + 1)
        launches = 2 * (LAUNCHES + SLAB_LAUNCHES * (channels // SLAB + 1))
    costs.beside = launches / max(inputs.heads[0] * inputs.heads[1], 1)
    return costs
