"""Gradients of exact attention of arrays on a GPU; nothing waits for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import _core, _gpu_calls, _validate
from ._device_arrays import DeviceArray, Native, collapsed
from ._gpu_attention import checked


@dataclass(frozen=True)
class Operands:
    """What gradients are formed of."""

    arrays: list[DeviceArray]  # query, key, value and grad_output
    scale: float
    is_causal: bool

    def gradients(self, name: str) -> list[DeviceArray]:
        """New arrays for those by query, key and value."""
        return [_gpu_calls.empty(name, like, like.shape, like.dtype) for like in self.arrays[:3]]

    def natives(self, name: str, gradients: list[DeviceArray]) -> list[Native]:
        """All of them as the core takes them."""
        return [collapsed(name, "an array", array) for array in (*self.arrays, *gradients)]

    @staticmethod
    def delivered(gradients: list[DeviceArray]) -> tuple[Any, Any, Any]:
        by_query, by_key, by_value = (_gpu_calls.delivered(array) for array in gradients)
        return by_query, by_key, by_value


def checked_operands(
    name: str,
    named: list[tuple[str, Any]],
    attn_mask: object,
    dropout_p: object,
    is_causal: object,
    scale: object,
    enable_gqa: object,
) -> Operands:
    """Of query, key, value and grad_output."""
    (q, k, v), factor = checked(name, named[:3], attn_mask, dropout_p, scale, enable_gqa)
    (grad,) = _gpu_calls.usable(name, named[3:])
    for agree in (_gpu_calls.alike, _gpu_calls.same_dtype):
        agree(name, [("query", q), ("grad_output", grad)])
    causal = _validate.flag(name, "is_causal", is_causal)
    _validate.output_gradient_shape(name, grad.shape, (*q.shape[:-1], v.shape[-1]))
    return Operands([q, k, v, grad], factor, causal)


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
    named = [("query", query), ("key", key), ("value", value), ("grad_output", grad_output)]
    operands = checked_operands(name, named, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    _validate.flag(name, "check_finite", check_finite)
    _validate.threads(name, num_threads)
    gradients = operands.gradients(name)
    stream = _gpu_calls.stream_of(name, [*operands.arrays, *gradients])
    q, k, v, dy, dq, dk, dv = operands.natives(name, gradients)
    _core.cuda_exact_attention_backward(
        q, k, v, dy, dq, dk, dv, operands.scale, operands.is_causal, None, stream
    )
    return operands.delivered(gradients)
