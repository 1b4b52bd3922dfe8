"""conv_attention and exact_attention of arrays on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _basis_rules, _core, _gpu_calls, _settings, _validate
from ._device_arrays import DeviceArray, collapsed
from ._gpu_exact import attend_exactly
from ._gpu_recover import find_starts, form_basis, seen_by
from ._on_gpu import gpu_basis
from ._validate import wrong
from .calibrate import CalibrateOptions
from .gpu_basis import GpuBasis
from .recover import RecoverOptions, recover_options


def attend(
    name: str,
    q: DeviceArray,
    k: DeviceArray,
    v: DeviceArray,
    made: DeviceArray,
    lse: DeviceArray | None,
    scale: float,
    options: RecoverOptions,
) -> np.ndarray:
    """Causal attention through strips that are looked for; which heads went so, (batch, heads).

    Where their number is free, heads that show more than pay are computed exactly, as on the CPU.
    """
    found = find_starts(name, q, k, v.shape[-1], scale, options)
    by_strips = found.complete if options.num_bases is None else np.ones_like(found.complete)
    if by_strips.any():
        basis = form_basis(name, q, k, found.only(by_strips, q.shape[-2]), scale)
        through_strips(name, basis, q, v, made, lse)
    attend_exactly(name, q, k, v, made, lse, scale, True, np.flatnonzero(~by_strips))
    return by_strips


def through_strips(
    name: str,
    basis: GpuBasis,
    q: DeviceArray,
    v: DeviceArray,
    made: DeviceArray,
    lse: DeviceArray | None,
) -> None:
    """Heads without strips get what `attend_exactly` writes over."""
    (kernels,) = _gpu_calls.usable(name, [("basis", basis.kernels)])
    _gpu_calls.alike(name, [("query", q), ("basis", kernels)])
    _core.cuda_conv_attention(
        basis.on_device(name),
        collapsed(name, "value", seen_by(q, v)),
        collapsed(name, "out", made),
        None if lse is None else collapsed(name, "lse", lse, 1),
        _gpu_calls.stream_of(name, [q, v, kernels, made]),
    )


def checked(
    name: str,
    named: list[tuple[str, Any]],
    attn_mask: object,
    dropout_p: object,
    scale: object,
    enable_gqa: object,
) -> tuple[list[DeviceArray], float]:
    """Query, key and value, and the scale."""
    arrays = _gpu_calls.usable(name, named)
    _gpu_calls.same_dtype(name, [(of, array) for (of, _), array in zip(named, arrays, strict=True)])
    query, key, value = arrays
    enable_gqa = _validate.flag(name, "enable_gqa", enable_gqa)
    _validate.attention_shapes(name, query, key, value, enable_gqa)
    if attn_mask is not None:
        raise refused(name, "attn_mask", "None: is_causal=True masks the future", attn_mask)
    _validate.no_dropout(name, dropout_p)
    return arrays, _validate.scale_or_default(name, scale, query)


def refused(name: str, argument: str, expected: str, got: object) -> Exception:
    """The exception for what a GPU does not compute."""
    fault = "cannot be honoured on a GPU"
    return wrong(name, argument, fault, expected, repr(got), NotImplementedError)


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
    options: object,
    judging: dict[str, Any],
    check_finite: object,
    out: Any,
    return_lse: object,
    num_threads: object,
) -> Any:
    """`judging` holds the arguments that a GPU cannot honour, by name."""
    name = "conv_attention"
    named = [("query", query), ("key", key), ("value", value)]
    (q, k, v), factor = checked(name, named, attn_mask, dropout_p, scale, enable_gqa)
    if not _validate.flag(name, "is_causal", is_causal):
        raise refused(name, "is_causal", "True (exact_attention takes both)", is_causal)
    for argument, asked in judging.items():
        raise refused(name, argument, "nothing that judges the strips", asked)
    _settings.one_of_two(name, basis, options)
    if isinstance(options, CalibrateOptions):
        raise refused(name, "options", "RecoverOptions or None", options)
    searched = recover_options(name, options)
    inputs = [("query", q), ("key", k), ("value", v)]
    if basis is not None:
        logits = gpu_basis(name, basis)
        _basis_rules.belongs(name, "basis", logits, q, k.shape[-2])
        _basis_rules.scale_of(name, (logits,), factor, scale)
        inputs.append(("basis", _gpu_calls.usable(name, [("basis", logits.kernels)])[0]))
        _gpu_calls.alike(name, inputs)
    _validate.flag(name, "check_finite", check_finite)
    made, lse = results(name, inputs, out, return_lse)
    _validate.threads(name, num_threads)
    if basis is None:
        attend(name, q, k, v, made, lse, factor, searched)
    else:
        through_strips(name, logits, q, v, made, lse)
    return handed_over(made, lse)


def exact_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: object,
    dropout_p: object,
    is_causal: object,
    *,
    scale: object,
    enable_gqa: object,
    check_finite: object,
    out: Any,
    return_lse: object,
    num_threads: object,
) -> Any:
    name = "exact_attention"
    named = [("query", query), ("key", key), ("value", value)]
    (q, k, v), factor = checked(name, named, attn_mask, dropout_p, scale, enable_gqa)
    causal = _validate.flag(name, "is_causal", is_causal)
    _validate.flag(name, "check_finite", check_finite)
    made, lse = results(name, [("query", q), ("key", k), ("value", v)], out, return_lse)
    _validate.threads(name, num_threads)
    attend_exactly(name, q, k, v, made, lse, factor, causal)
    return handed_over(made, lse)


def results(
    name: str, inputs: list[tuple[str, DeviceArray]], out: Any, return_lse: object
) -> tuple[DeviceArray, DeviceArray | None]:
    """Where the output goes, and the lse if it is wanted."""
    query, value = inputs[0][1], inputs[2][1]
    made = _gpu_calls.output(name, out, (*query.shape[:-1], value.shape[-1]), inputs)
    if not _validate.flag(name, "return_lse", return_lse):
        return made, None
    dtype = _gpu_calls.compute_dtype(query)
    return made, _gpu_calls.empty(name, query, query.shape[:-1], dtype)


def handed_over(made: DeviceArray, lse: DeviceArray | None) -> Any:
    result = _gpu_calls.delivered(made)
    return result if lse is None else (result, _gpu_calls.delivered(lse))
