"""Gradients of exact attention of arrays on a GPU; nothing waits for it."""

from __future__ import annotations

from typing import Any

from . import _core, _gpu_calls, _validate
from ._device_arrays import collapsed
from ._validate import wrong


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
    given = {"query": query, "key": key, "value": value, "grad_output": grad_output}
    named = list(zip(given, _gpu_calls.usable(name, list(given.items())), strict=True))
    q, k, v, grad = (array for _, array in named)
    _gpu_calls.same_dtype(name, named)
    enable_gqa = _validate.flag(name, "enable_gqa", enable_gqa)
    _validate.attention_shapes(name, q, k, v, enable_gqa)
    if attn_mask is not None:
        raise wrong(
            name,
            "attn_mask",
            "cannot be honoured on a GPU",
            "None (is_causal=True masks the future)",
            type(attn_mask).__name__,
            NotImplementedError,
        )
    _validate.no_dropout(name, dropout_p)
    causal = _validate.flag(name, "is_causal", is_causal)
    factor = _validate.scale_or_default(name, scale, q)
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
    return grad_query.owner, grad_key.owner, grad_value.owner
