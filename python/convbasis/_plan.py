"""Which heads of a conv_attention call go through strips, and which strips."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import _basis_rules, _validate
from ._layout import AttentionInputs
from .basis import ConvBasis, Strips
from .recover import RecoverOptions, find_starts, finite_logits, form_strips
from .report import Stopwatch


@dataclass(frozen=True)
class Plan:
    """Strips of the lower triangle, and of the reversed upper one when not causal."""

    strips: tuple[Strips, ...]
    num_bases: np.ndarray  # (batch, heads): strips found, both triangles together
    complete: np.ndarray  # (batch, heads) bool: the data shows no more than that
    by_strips: np.ndarray  # (batch, heads) bool: the others are to be computed exactly


def triangles(inputs: AttentionInputs) -> list[tuple[np.ndarray, np.ndarray]]:
    """Query and key of each triangle of the logits; the upper one is lower on reversed rows."""
    lower = (inputs.query, inputs.key)
    if inputs.is_causal:
        return [lower]
    return [lower, (inputs.query[:, :, ::-1], inputs.key[:, :, ::-1])]


def given_basis(
    function: str, basis: object, query: np.ndarray, key: np.ndarray, is_causal: bool
) -> tuple[ConvBasis, ...] | None:
    """The caller's basis, one ConvBasis a triangle; None when it is to be recovered."""
    if basis is None:
        return None
    bases = (basis,) if isinstance(basis, ConvBasis) else basis
    expected = "a ConvBasis" if is_causal else "(lower, upper), two ConvBasis"
    if not isinstance(bases, (tuple, list)) or not all(isinstance(b, ConvBasis) for b in bases):
        raise _validate.wrong(function, "basis", "has the wrong type", f"{expected}, or None",
                              type(basis).__name__, TypeError)
    if len(bases) != (1 if is_causal else 2):
        raise _validate.wrong(function, "basis", f"does not fit is_causal={is_causal}", expected,
                              f"{len(bases)} ConvBasis")
    for one in bases:
        _basis_rules.belongs(function, "basis", one, query, key.shape[-2])
    return tuple(bases)


def plan_given(bases: tuple[ConvBasis, ...], heads: tuple[int, int]) -> Plan:
    """Every head through the given strips, complete or not."""
    strips = tuple(basis.strips() for basis in bases)
    complete = np.logical_and.reduce([np.asarray(basis.complete) for basis in bases])
    return Plan(strips, sum(part.num_bases for part in strips), complete.reshape(heads),
                np.ones(heads, bool))


def plan_recovered(
    function: str, inputs: AttentionInputs, options: RecoverOptions, check_finite: bool,
    threads: int, clock: Stopwatch,
) -> Plan:
    """Look for strips; where k is free, heads that show more than pay are left to exact attention.

    Kernels are formed for the other heads only.
    """
    parts = triangles(inputs)
    with clock("recover"):
        found = [find_starts(query, key, inputs.scale, options, threads) for query, key in parts]
    complete = np.logical_and.reduce([part.complete for part in found])
    by_strips = complete if options.num_bases is None else np.ones_like(complete)
    with clock("kernels"):
        strips = tuple(form_strips(query, key, starts, by_strips, inputs.scale, threads)
                       for (query, key), starts in zip(parts, found, strict=True))
    if check_finite:
        for part in strips:
            finite_logits(function, part.kernels, threads)
    return Plan(strips, sum(part.num_bases for part in found), complete, by_strips)
