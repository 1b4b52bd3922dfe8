"""Gradients of attention of arrays on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import _core, _gpu_calls, _validate
from ._device_arrays import DeviceArray, Native, collapsed
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
    return Operands.delivered(found)


def output_gradient(name: str, grad_output: Any, arrays: list[DeviceArray]) -> DeviceArray:
    """`grad_output`, which fits the output for query, key and value."""
    query, _, value = arrays
    (grad,) = _gpu_calls.usable(name, [("grad_output", grad_output)])
    for agree in (_gpu_calls.alike, _gpu_calls.same_dtype):
        agree(name, [("query", query), ("grad_output", grad)])
    _validate.output_gradient_shape(name, grad.shape, (*query.shape[:-1], value.shape[-1]))
    return grad


@dataclass(frozen=True)
class Operands:
    """What gradients are formed of."""

    arrays: list[DeviceArray]  # query, key, value and grad_output
    scale: float
    is_causal: bool

    def gradients(
        self, name: str, make: Callable[..., DeviceArray] = _gpu_calls.empty
    ) -> list[DeviceArray]:
        """New arrays for those by query, key and value."""
        return [make(name, like, like.shape, like.dtype) for like in self.arrays[:3]]

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
    arrays, factor = checked(name, named[:3], attn_mask, dropout_p, scale, enable_gqa)
    grad = output_gradient(name, named[3][1], arrays)
    causal = _validate.flag(name, "is_causal", is_causal)
    return Operands([*arrays, grad], factor, causal)


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
