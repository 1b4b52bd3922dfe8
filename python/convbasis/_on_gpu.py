"""conv_matmul, recover_basis and conv_attention of arrays on a GPU; nothing waits for it."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _basis_rules, _core, _gpu_calls, _layout, _validate
from ._device_arrays import DeviceArray, collapsed
from ._validate import wrong
from .gpu_basis import GpuBasis


def gpu_basis(function: str, basis: object) -> GpuBasis:
    """`basis`, whose kernels have to be on a GPU too."""
    if not isinstance(basis, GpuBasis):
        raise wrong(
            function,
            "basis",
            "is not on a GPU, but another array is",
            "a GpuBasis (recover_basis makes one)",
            type(basis).__name__,
            TypeError,
        )
    return basis


def in_compute_dtype(function: str, name: str, array: DeviceArray, basis: GpuBasis) -> None:
    if _gpu_calls.compute_dtype(array) != basis.dtype:
        raise wrong(
            function,
            name,
            "differs in dtype from basis",
            f"{basis.dtype} to compute in",
            array.dtype,
            TypeError,
        )


def as_matrix(array: DeviceArray) -> DeviceArray:
    """A vector as a matrix of one column."""
    return array.with_axes((*array.shape, 1), (*array.strides, 1))


def conv_matmul(basis: object, x: Any, *, transpose: object, out: Any, num_threads: object) -> Any:
    name = "conv_matmul"
    matrices = gpu_basis(name, basis)
    given, kernels = _gpu_calls.usable(name, [("x", x), ("basis", matrices.kernels)])
    in_compute_dtype(name, "x", given, matrices)
    transpose = _validate.flag(name, "transpose", transpose)
    shape = _basis_rules.product_shape(name, matrices, given.shape, transpose)
    _validate.threads(name, num_threads)
    made = _gpu_calls.output(name, out, shape, [("x", given), ("basis", kernels)])
    stream = _gpu_calls.stream_of(name, [given, kernels, made])
    is_vector = given.ndim == len(matrices.lead) + 1
    operand, result = (as_matrix(given), as_matrix(made)) if is_vector else (given, made)
    _core.cuda_conv_matmul(
        matrices.on_device(name),
        collapsed(name, "x", operand),
        collapsed(name, "out", result),
        transpose,
        stream,
    )
    return _gpu_calls.delivered(made)


def recover_basis(
    query: Any,
    key: Any,
    *,
    starts: Any,
    scale: object,
    enable_gqa: object,
    num_threads: object,
) -> GpuBasis:
    name = "recover_basis"
    if starts is None:
        raise wrong(
            name,
            "starts",
            "is not given, and strips are not looked for on a GPU",
            "where the strips begin, an array on the host",
            "None",
            NotImplementedError,
        )
    q, k = _gpu_calls.usable(name, [("query", query), ("key", key)])
    _gpu_calls.same_dtype(name, [("query", q), ("key", k)])
    enable_gqa = _validate.flag(name, "enable_gqa", enable_gqa)
    _validate.attention_shapes(name, q, k, None, enable_gqa)
    factor = _validate.scale_or_default(name, scale, q)
    _validate.threads(name, num_threads)
    n = q.shape[-2]
    begin = _basis_rules.integers("starts", starts)
    columns = min(n, k.shape[-2])
    shape = (*q.shape[:-2], begin.shape[-1] if begin.ndim else 0, n)
    kernels = _gpu_calls.empty(name, q, shape, _gpu_calls.compute_dtype(q))
    counts = np.asarray((begin < n).sum(axis=-1))
    _basis_rules.check_strips(begin, counts, kernels, columns)
    seen = k.with_axes((*k.shape[:-2], columns, k.shape[-1]), k.strides)
    _core.cuda_recover_kernels(
        collapsed(name, "query", q),
        collapsed(name, "key", seen),
        _layout.collapse(begin, 1),
        _layout.collapse(counts, 0),
        collapsed(name, "kernels", kernels),
        factor,
        _gpu_calls.stream_of(name, [q, k, kernels]),
    )
    formed = _gpu_calls.delivered(kernels)
    return GpuBasis(begin, counts, formed, num_columns=columns, scale=factor)


def conv_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: object,
    dropout_p: object,
    is_causal: object,
    *,
    scale: object,
    enable_gqa: object,
    basis: object,
    refused: dict[str, Any],
    check_finite: object,
    out: Any,
    return_lse: object,
    num_threads: object,
) -> Any:
    """`refused` holds the arguments that a GPU cannot honour, by name."""
    name = "conv_attention"
    arrays = [("query", query), ("key", key), ("value", value)]
    q, k, v = _gpu_calls.usable(name, arrays)
    _gpu_calls.same_dtype(name, [("query", q), ("key", k), ("value", v)])
    enable_gqa = _validate.flag(name, "enable_gqa", enable_gqa)
    _validate.attention_shapes(name, q, k, v, enable_gqa)
    _validate.no_mask_or_dropout(name, attn_mask, dropout_p)
    if not _validate.flag(name, "is_causal", is_causal):
        refused = {"is_causal": is_causal, **refused}
    for argument, asked in refused.items():
        raise wrong(
            name,
            argument,
            "cannot be honoured on a GPU",
            "is_causal=True and a basis, and nothing that judges it",
            repr(asked),
            NotImplementedError,
        )
    if basis is None:
        raise wrong(
            name,
            "basis",
            "is not given, and strips are not looked for on a GPU",
            "recover_basis(query, key, starts=...)",
            "None",
            NotImplementedError,
        )
    logits = gpu_basis(name, basis)
    _basis_rules.belongs(name, "basis", logits, q, k.shape[-2])
    _basis_rules.scale_of(name, (logits,), _validate.scale_or_default(name, scale, q), scale)
    _validate.flag(name, "check_finite", check_finite)
    return_lse = _validate.flag(name, "return_lse", return_lse)
    _validate.threads(name, num_threads)
    shape = (*q.shape[:-1], v.shape[-1])
    (kernels,) = _gpu_calls.usable(name, [("basis", logits.kernels)])
    inputs = [("query", q), ("key", k), ("value", v), ("basis", kernels)]
    _gpu_calls.alike(name, inputs)
    made = _gpu_calls.output(name, out, shape, inputs)
    lse = _gpu_calls.empty(name, v, shape[:-1], logits.dtype) if return_lse else None
    seen = v.with_axes((*v.shape[:-2], logits.num_columns, v.shape[-1]), v.strides)
    _core.cuda_conv_attention(
        logits.on_device(name),
        collapsed(name, "value", seen),
        collapsed(name, "out", made),
        None if lse is None else collapsed(name, "lse", lse, 1),
        _gpu_calls.stream_of(name, [q, k, v, kernels, made]),
    )
    result = _gpu_calls.delivered(made)
    return result if lse is None else (result, _gpu_calls.delivered(lse))
