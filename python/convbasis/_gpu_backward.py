"""Gradients of exact attention of arrays on a GPU; nothing waits for it."""

from __future__ import annotations

from typing import Any

from . import _core, _gpu_calls, _validate
from ._device_arrays import collapsed
from ._gpu_attention import checked


def exact_attention_backward(
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
    check_finite: object,
    num_threads: object,
) -> tuple[Any, Any, Any]:
    name = "exact_attention_backward"
    named = [("query", query), ("key", key), ("value", value)]
    (q, k, v), factor = checked(name, named, attn_mask, dropout_p, scale, enable_gqa)
    (grad,) = _gpu_calls.usable(name, [("grad_output", grad_output)])
    for agree in (_gpu_calls.alike, _gpu_calls.same_dtype):
        agree(name, [("query", q), ("grad_output", grad)])
    causal = _validate.flag(name, "is_causal", is_causal)
    _validate.flag(name, "check_finite", check_finite)
    _validate.threads(name, num_threads)
    _validate.output_gradient_shape(name, grad.shape, (*q.shape[:-1], v.shape[-1]))
    grad_query, grad_key, grad_value = (
        _gpu_calls.empty(name, array, array.shape, array.dtype) for array in (q, k, v)
    )
    _core.cuda_exact_attention_backward(
        collapsed(name, "query", q),
        collapsed(name, "key", k),
        collapsed(name, "value", v),
        collapsed(name, "grad_output", grad),
        collapsed(name, "grad_query", grad_query),
        collapsed(name, "grad_key", grad_key),
        collapsed(name, "grad_value", grad_value),
        factor,
        causal,
        None,
        _gpu_calls.stream_of(name, [q, k, v, grad, grad_query, grad_key, grad_value]),
    )
    grads = (_gpu_calls.delivered(array) for array in (grad_query, grad_key, grad_value))
    return next(grads), next(grads), next(grads)
