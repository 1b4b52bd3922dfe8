"""Exact attention of arrays on a GPU: of tensors by torch, of others by this package's kernel."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from . import _core, _gpu_calls
from ._device_arrays import DeviceArray, collapsed


def attend_exactly(
    name: str,
    q: DeviceArray,
    k: DeviceArray,
    v: DeviceArray,
    made: DeviceArray,
    lse: DeviceArray | None,
    scale: float,
    is_causal: bool,
    heads: np.ndarray | None = None,
) -> None:
    """Softmax attention of the flat `heads`, None for all, into `made`."""
    if heads is not None and heads.size == 0:
        return
    if heads is not None and heads.size == np.prod(q.shape[:-2]):
        heads = None
    if q.package == "torch" and lse is None:
        collapsed(name, "out", made)  # raises where torch would fill a copy of `out`
        by_torch(q.owner, k.owner, v.owner, made.owner, scale, is_causal, heads)
        return
    _core.cuda_exact_attention(
        collapsed(name, "query", q),
        collapsed(name, "key", k),
        collapsed(name, "value", v),
        collapsed(name, "out", made),
        None if lse is None else collapsed(name, "lse", lse, 1),
        scale,
        is_causal,
        heads,
        _gpu_calls.stream_of(name, [q, k, v, made]),
    )


def by_torch(
    query: Any,
    key: Any,
    value: Any,
    out: Any,
    scale: float,
    is_causal: bool,
    heads: np.ndarray | None,
) -> None:
    """The same through scaled_dot_product_attention, which is the fastest on tensors."""
    torch: Any = sys.modules["torch"]
    q, k, v, to = (
        tensor.reshape(-1, *tensor.shape[-3:]) if tensor.ndim > 2 else tensor[None, None]
        for tensor in (query, key, value, out)
    )
    group = q.shape[1] // k.shape[1]
    if heads is not None:
        numbers = torch.from_numpy(heads).to(q.device, non_blocking=True)
        batch, head = numbers // q.shape[1], numbers % q.shape[1]
        q = q[batch, head][None]
        k, v = (tensor[batch, head // group][None] for tensor in (k, v))
    elif group > 1:
        k, v = (tensor.repeat_interleave(group, dim=1) for tensor in (k, v))
    # Autocast would compute in another type than the caller's.
    with torch.autocast(q.device.type, enabled=False), torch.no_grad():
        found = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=is_causal, scale=scale
        )
    if heads is None:
        to.copy_(found)
    else:
        to[batch, head] = found[0]
