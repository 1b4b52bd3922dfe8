"""conv_attention and exact_attention of arrays on a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import _basis_rules, _core, _gpu_calls, _settings, _validate
from ._device_arrays import DeviceArray, collapsed
from ._gpu_exact import attend_exactly
from ._gpu_plan import GpuPlan, given, recovered
from ._gpu_recover import seen_by
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
    plan: GpuPlan,
    scale: float,
    is_causal: bool,
) -> None:
    """Attention of the plan's heads through its strips, of the others exactly."""
    if plan.bases:
        _core.cuda_conv_attention(
            *plan.lower_upper(name),
            collapsed(name, "value", seen_by(q, v)),
            collapsed(name, "out", made),
            None if lse is None else collapsed(name, "lse", lse, 1),
            plan.listed(),
            _gpu_calls.stream_of(name, [q, v, made, *plan.kernels(name)]),
        )
    attend_exactly(name, q, k, v, made, lse, scale, is_causal, plan.others())


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


def judgements(
    tol: object, on_miss: object, return_report: object, certify: object
) -> dict[str, Any]:
    """What a call asks for that a GPU cannot honour, by name."""
    asked = {
        "tol": tol,
        "on_miss": on_miss if on_miss != "exact" else None,
        "return_report": return_report or None,
        "certify": certify or None,
    }
    return {argument: value for argument, value in asked.items() if value is not None}


@dataclass(frozen=True)
class StripSettings:
    """Checked settings of a call."""

    function: str  # named in messages
    inputs: list[tuple[str, DeviceArray]]  # by name: query, key and value, and given kernels
    bases: tuple[GpuBasis, ...] | None  # one a triangle; None = look for strips
    scale: float
    is_causal: bool
    options: RecoverOptions

    def plan(self, arrays: list[DeviceArray]) -> GpuPlan:
        """Strips as given, or as the logits of query, key and value show them."""
        if self.bases is not None:
            return given(self.bases)
        return recovered(self.function, arrays, self.scale, self.is_causal, self.options)


def strip_settings(
    name: str,
    arrays: list[DeviceArray],
    factor: float,
    is_causal: object,
    *,
    scale: object,
    basis: Any,
    options: object,
    judging: dict[str, Any],
) -> StripSettings:
    """`judging` holds the arguments that a GPU cannot honour, by name; `factor` is the scale."""
    query, key, value = arrays
    causal = _validate.flag(name, "is_causal", is_causal)
    _settings.rows_fit(name, causal, query.shape[-2], key.shape[-2])
    for argument, asked in judging.items():
        raise refused(name, argument, "nothing that judges the strips", asked)
    _settings.one_of_two(name, basis, options)
    if isinstance(options, CalibrateOptions):
        raise refused(name, "options", "RecoverOptions or None", options)
    searched = recover_options(name, options)
    inputs = [("query", query), ("key", key), ("value", value)]
    parts = _settings.given_basis(name, basis, query, key, causal)
    if parts is None:
        return StripSettings(name, inputs, None, factor, causal, searched)
    bases = tuple(gpu_basis(name, part) for part in parts)
    factor = _basis_rules.scale_of(name, bases, factor, scale)
    for kernels in _gpu_calls.usable(name, [("basis", part.kernels) for part in bases]):
        inputs.append(("basis", kernels))
    _gpu_calls.alike(name, inputs)
    return StripSettings(name, inputs, bases, factor, causal, searched)


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
    wanted = strip_settings(
        name,
        [q, k, v],
        factor,
        is_causal,
        scale=scale,
        basis=basis,
        options=options,
        judging=judging,
    )
    _validate.flag(name, "check_finite", check_finite)
    made, lse = results(name, wanted.inputs, out, return_lse)
    _validate.threads(name, num_threads)
    plan = wanted.plan([q, k, v])
    attend(name, q, k, v, made, lse, plan, wanted.scale, wanted.is_causal)
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
