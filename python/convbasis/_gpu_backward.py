"""Gradients of attention of arrays on a GPU."""

from __future__ import annotations

from typing import Any

from . import _core, _gpu_calls, _validate
from ._device_arrays import DeviceArray, collapsed
from ._gpu_attention import checked, strip_settings
from ._gpu_gradients import differentiate
from ._gradients import GRADIENTS


def conv_attention_backward(
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
    basis: object,
    options: object,
    judging: dict[str, Any],
    gradient: object,
    check_finite: object,
    num_threads: object,
) -> tuple[Any, Any, Any]:
    """`judging` holds the arguments that a GPU cannot honour, by name."""
    name = "conv_attention_backward"
    named = [("query", query), ("key", key), ("value", value)]
    arrays, factor = checked(name, named, attn_mask, dropout_p, scale, enable_gqa)
    grad = output_gradient(name, grad_output, arrays)
    wanted = strip_settings(
        name, arrays, factor, is_causal, scale=scale, basis=basis, options=options, judging=judging
    )
    gradient = _validate.choice(name, "gradient", gradient, GRADIENTS)
    _validate.flag(name, "check_finite", check_finite)
    _validate.threads(name, num_threads)
    found = differentiate(
        name, [*arrays, grad], wanted.plan(arrays), wanted.scale, wanted.is_causal, gradient
    )
    grads = (_gpu_calls.delivered(array) for array in found)
    return next(grads), next(grads), next(grads)


def output_gradient(name: str, grad_output: Any, arrays: list[DeviceArray]) -> DeviceArray:
    """`grad_output`, which fits the output for query, key and value."""
    query, _, value = arrays
    (grad,) = _gpu_calls.usable(name, [("grad_output", grad_output)])
    for agree in (_gpu_calls.alike, _gpu_calls.same_dtype):
        agree(name, [("query", query), ("grad_output", grad)])
    _validate.output_gradient_shape(name, grad.shape, (*query.shape[:-1], value.shape[-1]))
    return grad


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
    grad = output_gradient(name, grad_output, [q, k, v])
    causal = _validate.flag(name, "is_causal", is_causal)
    _validate.flag(name, "check_finite", check_finite)
    _validate.threads(name, num_threads)
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
