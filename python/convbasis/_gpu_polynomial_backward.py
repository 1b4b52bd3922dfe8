"""Gradients of polynomial attention of arrays on a GPU; they wait once, for the logits."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _core, _gpu_calls, _validate
from ._gpu_attention import refused
from ._gpu_backward import Operands, checked_operands
from ._gpu_polynomial import gpu_plan


def polynomial_attention_backward(
    query: Any,
    key: Any,
    value: Any,
    grad_output: Any,
    attn_mask: object,
    dropout_p: object,
    is_causal: object,
    *,
    scale: object,
    enable_gqa: object,
    degree: int | None,
    tol: float | None,
    on_miss: str,
    return_report: object,
) -> tuple[Any, Any, Any]:
    """Settings are checked, arrays are not."""
    name = "polynomial_attention_backward"
    operands = checked_operands(
        name,
        [("query", query), ("key", key), ("value", value), ("grad_output", grad_output)],
        attn_mask,
        dropout_p,
        is_causal,
        scale,
        enable_gqa,
    )
    if on_miss == "error":
        raise refused(name, "on_miss", "'exact' or 'keep'", on_miss)
    if _validate.flag(name, "return_report", return_report):
        raise refused(name, "return_report", "False, as nothing is sampled there", return_report)
    return differentiate(name, operands, degree, tol, on_miss)


def differentiate(
    name: str, operands: Operands, degree: int | None, tol: float | None, on_miss: str
) -> tuple[Any, Any, Any]:
    q, k, v, _ = operands.arrays
    settings = operands.scale, operands.is_causal
    plan = gpu_plan(name, q, k, v, *settings, degree, tol, on_miss, backward=True)
    by_polynomial = np.flatnonzero(plan.by_polynomial)
    exact = np.flatnonzero(~plan.by_polynomial)
    gradients = operands.gradients(name, _gpu_calls.zeros)
    stream = _gpu_calls.stream_of(name, [*operands.arrays, *gradients])
    query, key, value, dy, dq, dk, dv = operands.natives(name, gradients)
    # First, for it overwrites what the other adds to.
    _core.cuda_exact_attention_backward(query, key, value, dy, dq, dk, dv, *settings, exact, stream)
    _core.cuda_polynomial_attention_backward(
        query, key, value, dy, dq, dk, dv, plan.native(), *settings, by_polynomial, stream
    )
    return operands.delivered(gradients)
