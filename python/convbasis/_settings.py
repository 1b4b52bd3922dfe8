"""What conv_attention takes beyond the arguments that all attention functions share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _basis_rules, _validate
from ._layout import AttentionInputs
from .basis import ConvBasis
from .calibrate import CalibrateOptions
from .recover import RecoverOptions, recover_options


@dataclass(frozen=True)
class ConvSettings:
    """Checked settings of one call."""

    function: str  # named in messages
    bases: tuple[ConvBasis, ...] | None  # one a triangle; None = recover them
    scale: float  # as asked for, else that of the bases, else 1 / sqrt(d)
    options: RecoverOptions
    calibrate: CalibrateOptions | None  # in place of the options before
    tol: float | None
    on_miss: str
    check_finite: bool
    certify: bool
    threads: int


def conv_settings(
    inputs: AttentionInputs,
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    *,
    scale: object,
    basis: object,
    options: object,
    tol: object,
    on_miss: object,
    check_finite: object,
    out: object,
    return_lse: object,
    return_report: object,
    certify: object,
    num_threads: object,
    function: str = "conv_attention",
    may_calibrate: bool = False,
) -> ConvSettings:
    """Check in argument order; the arrays are the caller's own, for shapes and overlap."""
    rows_fit(function, inputs.is_causal, inputs.query.shape[2], inputs.key.shape[2])
    bases = given_basis(function, basis, query, key, inputs.is_causal)
    common = (
        inputs.scale
        if bases is None
        else _basis_rules.scale_of(function, bases, inputs.scale, scale)
    )
    one_of_two(function, basis, options)
    calibrate = None
    if may_calibrate and isinstance(options, CalibrateOptions):
        can_calibrate(function, inputs, certify)
        calibrate, options = options, None
    accepted = "RecoverOptions, CalibrateOptions" if may_calibrate else "RecoverOptions"
    options = recover_options(function, options, f"{accepted} or None")
    tol = _validate.tolerance(function, tol)
    on_miss = _validate.choice(function, "on_miss", on_miss, ("exact", "error", "keep"))
    if on_miss != "exact" and tol is None:
        raise _validate.wrong(
            function, "on_miss", "is set, but nothing is judged", "a tol with it", "tol=None"
        )
    check_finite = _validate.flag(function, "check_finite", check_finite)
    _validate.output(
        function,
        out,
        inputs.out_shape,
        inputs.dtype,
        [("query", query), ("key", key), ("value", value)],
    )
    _validate.flag(function, "return_lse", return_lse)
    return_report = _validate.flag(function, "return_report", return_report)
    certify = _validate.flag(function, "certify", certify)
    if certify and not return_report:
        raise _validate.wrong(
            function,
            "certify",
            "is set, but no report would tell the bound",
            "return_report=True with it",
            "return_report=False",
        )
    threads = _validate.threads(function, num_threads)
    return ConvSettings(
        function, bases, common, options, calibrate, tol, on_miss, check_finite, certify, threads
    )


def rows_fit(function: str, is_causal: bool, queries: int, keys: int) -> None:
    """Raise when the upper triangle would not be a triangle."""
    if not is_causal and keys != queries:
        raise _validate.wrong(
            function,
            "key",
            "differs in length from query without is_causal",
            f"{queries} rows (exact_attention takes any number)",
            keys,
            NotImplementedError,
        )


def one_of_two(function: str, basis: object, options: object) -> None:
    """Raise when strips are both given and to be looked for."""
    if basis is not None and options is not None:
        raise _validate.wrong(
            function, "options", "is given together with basis", "one of the two", "both"
        )


def can_calibrate(function: str, inputs: AttentionInputs, certify: object) -> None:
    """Raise for what a calibrated basis cannot do."""
    if not inputs.is_causal:
        raise _validate.wrong(
            function,
            "options",
            "is CalibrateOptions without is_causal",
            "is_causal=True with it",
            "is_causal=False",
            NotImplementedError,
        )
    if inputs.key.shape[2] < inputs.query.shape[2]:
        raise _validate.wrong(
            function,
            "options",
            "is CalibrateOptions with fewer keys than queries",
            f"at least {inputs.query.shape[2]} keys",
            inputs.key.shape[2],
            NotImplementedError,
        )
    if certify:
        raise _validate.wrong(
            function,
            "certify",
            "is set with CalibrateOptions, whose logits are not bounded",
            "certify=False, or RecoverOptions",
            "certify=True",
            NotImplementedError,
        )


def given_basis(
    function: str, basis: object, query: Any, key: Any, is_causal: bool
) -> tuple[ConvBasis, ...] | None:
    """The caller's basis, one ConvBasis a triangle; None when it is to be recovered."""
    if basis is None:
        return None
    bases = (basis,) if isinstance(basis, ConvBasis) else basis
    expected = "a ConvBasis" if is_causal else "(lower, upper), two ConvBasis"
    if not isinstance(bases, (tuple, list)) or not all(isinstance(b, ConvBasis) for b in bases):
        raise _validate.wrong(
            function,
            "basis",
            "has the wrong type",
            f"{expected}, or None",
            type(basis).__name__,
            TypeError,
        )
    if len(bases) != (1 if is_causal else 2):
        raise _validate.wrong(
            function,
            "basis",
            f"does not fit is_causal={is_causal}",
            expected,
            f"{len(bases)} ConvBasis",
        )
    for one in bases:
        _basis_rules.belongs(function, "basis", one, query, key.shape[-2])
    return tuple(bases)
