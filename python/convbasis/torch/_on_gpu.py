"""The two operators on tensors on a GPU, on torch's current stream."""

from __future__ import annotations

import numpy as np
import torch

from .. import _gpu_attention, _settings
from .._device_arrays import DeviceArray, device_array
from .._gpu_gradients import differentiate
from .._gpu_plan import recovered
from ..recover import RecoverOptions
from ._tensors import NAME, lead_of, swapped

NAMES = ("query", "key", "value")


def forward(
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    *,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    options: RecoverOptions,
    layout: str,
    tol: float | None,
    on_miss: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output, and which heads were computed exactly. Waits for the search, once a triangle."""
    (q, k, v), factor = inputs_of(tensors, scale, enable_gqa, layout)
    _settings.rows_fit(NAME, is_causal, q.shape[-2], k.shape[-2])
    if tol is not None or on_miss != "exact":
        asked = f"tol={tol!r}, on_miss={on_miss!r}"
        raise _gpu_attention.refused(NAME, "tol", "None, nothing that judges the strips", asked)
    query, _, value = tensors
    out = query.new_empty((*query.shape[:-1], value.shape[-1]))
    made = device_array(NAME, "the result", swapped(out, layout))
    plan = recovered(NAME, [q, k, v], factor, is_causal, options)
    _gpu_attention.attend(NAME, q, k, v, made, None, plan, factor, is_causal)
    exact_mask = torch.from_numpy(~plan.by_strips).reshape(lead_of(query, layout))
    return out, exact_mask.to(query.device, non_blocking=True)


def backward(
    grad_output: torch.Tensor,
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    exact_mask: torch.Tensor,
    *,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    options: RecoverOptions,
    gradient: str,
    layout: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, key and value, for the output of `forward` with that `exact_mask`."""
    arrays, factor = inputs_of(tensors, scale, enable_gqa, layout)
    grad = device_array(NAME, "grad_output", swapped(grad_output.detach(), layout))

    def by_strips() -> np.ndarray:
        flags: np.ndarray = ~exact_mask.cpu().numpy()
        return flags

    plan = recovered(NAME, arrays, factor, is_causal, options, by_strips)
    found = differentiate(NAME, [*arrays, grad], plan, factor, is_causal, gradient)
    dq, dk, dv = (swapped(array.owner, layout) for array in found)
    return dq, dk, dv


def inputs_of(
    tensors: tuple[torch.Tensor, ...], scale: float | None, enable_gqa: bool, layout: str
) -> tuple[list[DeviceArray], float]:
    """Query, key and value where they lie, checked, and the scale."""
    views = [swapped(tensor.detach(), layout) for tensor in tensors]
    named = list(zip(NAMES, views, strict=True))
    return _gpu_attention.checked(NAME, named, None, 0.0, scale, enable_gqa)
