"""The backward pass of conv_attention on a GPU: strips are found again, heads differentiated."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from .. import _core, _gpu_calls
from .._device_arrays import DeviceArray, Native, collapsed, device_array
from .._gpu_recover import find_starts, form_basis, seen_by
from .._starts import Starts
from ..recover import RecoverOptions
from ._tensors import NAME


def replay(
    arrays: list[DeviceArray],
    gradients: list[DeviceArray],
    by_strips: Callable[[], np.ndarray],
    scale: float,
    options: RecoverOptions,
    gradient: str,
) -> None:
    """Writes the gradients by query, key and value of an earlier forward pass; they hold 0.

    `arrays` are query, key, value and grad_output. `by_strips` brings one bool a head from the GPU:
    it is called when the search for strips has waited already.
    """
    query, key, value, grad_output = arrays
    found = find_starts(NAME, query, key, value.shape[-1], scale, options)
    chosen = by_strips().reshape(found.complete.shape)
    if options.num_bases is None and not found.complete[chosen].all():
        # The cost model has changed since; these heads were within its limit then.
        options = options.unlimited(query.shape[-2], seen_by(query, key).shape[-2])
        found = find_starts(NAME, query, key, value.shape[-1], scale, options)
    operands = [query, seen_by(query, key), seen_by(query, value), grad_output]
    targets = [gradients[0], *(seen_by(query, array) for array in gradients[1:])]
    # First, for it overwrites what the other adds to.
    exactly(operands, targets, np.flatnonzero(~chosen), scale)
    if chosen.all():
        through_strips(operands, targets, found, scale, gradient)
    elif chosen.any():
        some_through_strips(operands, targets, found, chosen, scale, gradient)


def exactly(
    operands: list[DeviceArray], targets: list[DeviceArray], heads: np.ndarray, scale: float
) -> None:
    """Gradients of exact attention of the flat `heads`."""
    q, k, v, dy, dq, dk, dv = natives(operands, targets)
    stream = _gpu_calls.stream_of(NAME, [*operands, *targets])
    _core.cuda_exact_attention_backward(q, k, v, dy, dq, dk, dv, scale, True, heads, stream)


def natives(operands: list[DeviceArray], targets: list[DeviceArray]) -> list[Native]:
    """All of them as the core takes them."""
    return [collapsed(NAME, "an array", array) for array in (*operands, *targets)]


def through_strips(
    operands: list[DeviceArray],
    targets: list[DeviceArray],
    found: Starts,
    scale: float,
    gradient: str,
) -> None:
    """Gradients of all heads; those by key and value are added."""
    basis = form_basis(NAME, operands[0], operands[1], found, scale)
    lower = basis.on_device(NAME)  # its kernels live as long as `basis`
    q, k, v, dy, dq, dk, dv = natives(operands, targets)
    is_entries = gradient == "attention"
    stream = _gpu_calls.stream_of(NAME, [*operands, *targets])
    _core.cuda_conv_attention_backward(lower, q, k, v, dy, dq, dk, dv, scale, is_entries, stream)


def some_through_strips(
    operands: list[DeviceArray],
    targets: list[DeviceArray],
    found: Starts,
    chosen: np.ndarray,
    scale: float,
    gradient: str,
) -> None:
    """The same of the `chosen` heads: nothing comes back through the others."""
    query, key, value, grad_output = operands
    grad_query = targets[0].owner
    flags = torch.from_numpy(chosen.reshape(query.shape[:-2]))
    kept = flags.to(grad_query.device, non_blocking=True)[..., None, None]
    through = device_array(NAME, "grad_output", torch.where(kept, grad_output.owner, 0.0))
    own = device_array(NAME, "the result", torch.empty_like(grad_query))
    through_strips(
        [query, key, value, through],
        [own, *targets[1:]],
        found.only(chosen, query.shape[-2]),
        scale,
        gradient,
    )
    grad_query.copy_(torch.where(kept, own.owner, grad_query))
