"""The two operators that torch sees: attention, and its backward pass.

Operators take tensors and plain numbers only. `conv_attention` in attention.py, which checks the
tensors, is the way to call them. Results have strides that are known beforehand, so that compilers
can plan with them: those of the first operator are contiguous in the caller's layout, gradients
are contiguous in "bhsd".
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import library

from .. import _gradients, _layout, _validate
from .._device_arrays import is_on_device
from .._run import attend, results
from .._settings import conv_settings
from ..recover import RecoverOptions
from . import _on_gpu
from ._tensors import NAME, array_of, compute_dtype, lead_of, swapped

#: What the backward pass has to know of the forward pass.
SHARED = (
    "bool is_causal, float? scale, bool enable_gqa, int? num_bases, int window, float delta, "
    "float epsilon, str search, str gradient, str layout, int? num_threads"
)
SHARED_NAMES = [declaration.split()[-1] for declaration in SHARED.split(",")]


def forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    num_bases: int | None,
    window: int,
    delta: float,
    epsilon: float,
    search: str,
    gradient: str,
    layout: str,
    num_threads: int | None,
    tol: float | None,
    on_miss: str,
    check_finite: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output, and which heads were computed exactly. `gradient` is for the backward pass."""
    options = RecoverOptions(num_bases, window, delta, epsilon, search)
    if is_on_device(query):
        return _on_gpu.forward(
            (query, key, value),
            is_causal=is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
            options=options,
            layout=layout,
            tol=tol,
            on_miss=on_miss,
        )
    arrays = arrays_of(query, key, value, layout)
    inputs = _layout.attention_inputs(NAME, *arrays, None, 0.0, is_causal, scale, enable_gqa)
    out = torch.empty((*query.shape[:-1], value.shape[-1]), dtype=compute_dtype(query.dtype))
    target = swapped(out, layout).numpy()
    wanted = conv_settings(
        inputs,
        *arrays,
        scale=scale,
        basis=None,
        options=options,
        tol=tol,
        on_miss=on_miss,
        check_finite=check_finite,
        out=target,
        return_lse=False,
        return_report=False,
        certify=False,
        num_threads=threads(num_threads),
    )
    done = attend(inputs, wanted, target)
    results(inputs, done.target, target, None)
    exact_mask = torch.from_numpy(~done.by_strips).reshape(inputs.lead)
    return out.to(query.dtype), exact_mask


def forward_shapes(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, layout: str, **settings: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tensors like those of `forward`, without entries."""
    out = query.new_empty((*query.shape[:-1], value.shape[-1]))
    return out, query.new_empty(lead_of(query, layout), dtype=torch.bool)


def backward(
    grad_output: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    exact_mask: torch.Tensor,
    *,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    num_bases: int | None,
    window: int,
    delta: float,
    epsilon: float,
    search: str,
    gradient: str,
    layout: str,
    num_threads: int | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, key and value, for the output of `forward` with that `exact_mask`."""
    tensors = query, key, value
    options = RecoverOptions(num_bases, window, delta, epsilon, search)
    if is_on_device(query):
        return _on_gpu.backward(
            grad_output,
            tensors,
            exact_mask,
            is_causal=is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
            options=options,
            gradient=gradient,
            layout=layout,
        )
    arrays = arrays_of(*tensors, layout)
    inputs = _layout.attention_inputs(NAME, *arrays, None, 0.0, is_causal, scale, enable_gqa)
    gradients = _gradients.replay(
        inputs,
        options,
        ~exact_mask.numpy().reshape(inputs.heads),
        _layout.operand(array_of(grad_output, layout)),
        gradient,
        _validate.threads(NAME, threads(num_threads)),
    )
    dq, dk, dv = (
        tensor_like(tensor, array, layout) for tensor, array in zip(tensors, gradients, strict=True)
    )
    return dq, dk, dv


def backward_shapes(
    grad_output: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    exact_mask: torch.Tensor,
    *,
    layout: str,
    **settings: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tensors like those of `backward`, without entries."""
    dq, dk, dv = (
        swapped(tensor.new_empty(swapped(tensor, layout).shape), layout)
        for tensor in (query, key, value)
    )
    return dq, dk, dv


def arrays_of(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three inputs as "bhsd" arrays."""
    return array_of(query, layout), array_of(key, layout), array_of(value, layout)


def tensor_like(tensor: torch.Tensor, array: np.ndarray, layout: str) -> torch.Tensor:
    """The core's `array` with the shape, dtype and layout of `tensor`."""
    found = torch.from_numpy(np.ascontiguousarray(array))
    return swapped(found.reshape(swapped(tensor, layout).shape).to(tensor.dtype), layout)


def threads(num_threads: int | None) -> int:
    """The number of threads asked for; None is the number that torch itself uses."""
    return torch.get_num_threads() if num_threads is None else num_threads


def keep_for_backward(
    ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any
) -> None:
    """Inputs and the choice of heads. Strips would take O(k n) a head: they are found again."""
    ctx.save_for_backward(*inputs, output[1])
    ctx.settings = {name: keyword_only_inputs[name] for name in SHARED_NAMES}


def differentiate(ctx: Any, grad_output: torch.Tensor, grad_exact_mask: None) -> Any:
    """The backward pass as autograd calls it."""
    return conv_attention_backward(grad_output, *ctx.saved_tensors, **ctx.settings)


conv_attention = library.custom_op(
    "convbasis::conv_attention",
    forward,
    mutates_args=(),
    device_types=("cpu", "cuda"),
    schema=f"(Tensor query, Tensor key, Tensor value, *, {SHARED}, float? tol, str on_miss, "
    "bool check_finite) -> (Tensor, Tensor)",
)
conv_attention_backward = library.custom_op(
    "convbasis::conv_attention_backward",
    backward,
    mutates_args=(),
    device_types=("cpu", "cuda"),
    schema="(Tensor grad_output, Tensor query, Tensor key, Tensor value, Tensor exact_mask, *, "
    f"{SHARED}) -> (Tensor, Tensor, Tensor)",
)
conv_attention.register_fake(forward_shapes)
conv_attention_backward.register_fake(backward_shapes)
conv_attention.register_autograd(differentiate, setup_context=keep_for_backward)
