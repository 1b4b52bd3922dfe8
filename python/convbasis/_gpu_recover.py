"""recover_basis of arrays on a GPU: the search waits once, forming kernels never does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import _basis_rules, _core, _gpu_calls, _layout, _validate
from ._device_arrays import DeviceArray, collapsed
from ._starts import Starts
from .gpu_basis import GpuBasis

if TYPE_CHECKING:
    from .recover import RecoverOptions


def seen_by(query: DeviceArray, key: DeviceArray) -> DeviceArray:
    """`key`, or value, without the rows past the last query row: no query sees them."""
    columns = min(query.shape[-2], key.shape[-2])
    return key.with_axes((*key.shape[:-2], columns, key.shape[-1]), key.strides)


def find_starts(
    name: str,
    query: DeviceArray,
    key: DeviceArray,
    value_dim: int,
    scale: float,
    options: RecoverOptions,
) -> Starts:
    """Where strips begin, on the host; with a free number of them as in `recover.find_starts`."""
    return Starts(
        *_core.cuda_recover_starts(
            collapsed(name, "query", query),
            collapsed(name, "key", seen_by(query, key)),
            scale,
            *options.within(query.shape[-2]),
            value_dim,
            _gpu_calls.stream_of(name, [query, key]),
        )
    )


def form_basis(
    name: str, query: DeviceArray, key: DeviceArray, found: Starts, scale: float
) -> GpuBasis:
    """The basis with the strips `found`; their kernels are enqueued."""
    n, lead = query.shape[-2], query.shape[:-2]
    shape = (*lead, found.starts.shape[-1], n)
    kernels = _gpu_calls.empty(name, query, shape, _gpu_calls.compute_dtype(query))
    seen = seen_by(query, key)
    _core.cuda_recover_kernels(
        collapsed(name, "query", query),
        collapsed(name, "key", seen),
        found.starts,
        found.num_bases,
        collapsed(name, "kernels", kernels),
        scale,
        _gpu_calls.stream_of(name, [query, key, kernels]),
    )
    return GpuBasis(
        found.starts.reshape(shape[:-1]),
        found.num_bases.reshape(lead),
        _gpu_calls.delivered(kernels),
        num_columns=seen.shape[-2],
        complete=found.complete.reshape(lead),
        scale=scale,
    )


def given_starts(starts: Any, query: DeviceArray, columns: int) -> Starts:
    """Strips as the caller names them, all of them."""
    *lead, n, _ = query.shape
    begin, counts = _basis_rules.given_starts(
        "recover_basis", starts, _gpu_calls.compute_dtype(query), tuple(lead), n, columns
    )
    begin, counts = _layout.collapse(begin, 1), _layout.collapse(counts, 0)
    return Starts(begin, counts, np.ones(counts.shape, bool), False)


def recover_basis(
    query: Any,
    key: Any,
    *,
    starts: Any,
    scale: object,
    enable_gqa: object,
    options: RecoverOptions,
    num_threads: object,
) -> GpuBasis:
    name = "recover_basis"
    q, k = _gpu_calls.usable(name, [("query", query), ("key", key)])
    _gpu_calls.same_dtype(name, [("query", q), ("key", k)])
    enable_gqa = _validate.flag(name, "enable_gqa", enable_gqa)
    _validate.attention_shapes(name, q, k, None, enable_gqa)
    factor = _validate.scale_or_default(name, scale, q)
    _validate.threads(name, num_threads)
    if starts is None:
        found = find_starts(name, q, k, q.shape[-1], factor, options)
    else:
        found = given_starts(starts, q, seen_by(q, k).shape[-2])
    return form_basis(name, q, k, found, factor)
