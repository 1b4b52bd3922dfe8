"""Gradients of conv_attention on a GPU: of heads through strips, and of those computed exactly."""

from __future__ import annotations

from . import _core, _gpu_calls
from ._device_arrays import DeviceArray, collapsed
from ._gpu_plan import GpuPlan
from ._gpu_recover import seen_by


def differentiate(
    name: str,
    arrays: list[DeviceArray],
    plan: GpuPlan,
    scale: float,
    is_causal: bool,
    gradient: str,
) -> list[DeviceArray]:
    """Gradients by query, key and value of the forward pass with this plan.

    `arrays` are these three and grad_output. Keys that no query sees get 0.
    """
    query, key, value, grad_output = arrays
    gradients = [
        _gpu_calls.zeros(name, array, array.shape, array.dtype) for array in (query, key, value)
    ]
    operands = [query, seen_by(query, key), seen_by(query, value), grad_output]
    targets = [gradients[0], *(seen_by(query, array) for array in gradients[1:])]
    q, k, v, dy, dq, dk, dv = (
        collapsed(name, "an array", array) for array in (*operands, *targets)
    )
    used = [*operands, *targets, *plan.kernels(name)]
    stream = _gpu_calls.stream_of(name, used)
    exact = plan.others()
    # First, for it overwrites what the other adds to.
    _core.cuda_exact_attention_backward(q, k, v, dy, dq, dk, dv, scale, is_causal, exact, stream)
    if plan.bases:
        through_entries, strips = gradient == "attention", plan.lower_upper(name)
        _core.cuda_conv_attention_backward(
            *strips, q, k, v, dy, dq, dk, dv, scale, through_entries, plan.listed(), stream
        )
    return gradients
