"""Which heads of a conv_attention call go through strips, and which strips."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from . import _validate
from ._layout import AttentionInputs
from ._settings import ConvSettings
from ._starts import Starts
from .basis import ConvBasis, Strips
from .recover import RecoverOptions, find_starts, form_strips
from .report import Stopwatch


@dataclass(frozen=True)
class Plan:
    """Strips of the lower triangle, and of the reversed upper one when not causal."""

    strips: tuple[Strips, ...]
    num_bases: np.ndarray  # (batch, heads): strips found, both triangles together
    complete: np.ndarray  # (batch, heads) bool: the data shows no more than that
    formed: np.ndarray  # (batch, heads) bool: strips with kernels
    by_strips: np.ndarray  # (batch, heads) bool: computed through them; the others exactly

    def lower_upper(self) -> tuple[Strips, Strips | None]:
        return self.strips[0], self.strips[1] if len(self.strips) > 1 else None

    def listed(self) -> np.ndarray | None:
        """Flat numbers of the heads that go through strips, None for all."""
        return None if self.by_strips.all() else np.flatnonzero(self.by_strips)

    def without(self, missed: np.ndarray) -> Plan:
        """The same with the `missed` heads computed exactly."""
        return replace(self, by_strips=self.by_strips & ~missed)


def triangles(inputs: AttentionInputs) -> list[tuple[np.ndarray, np.ndarray]]:
    """Query and key of each triangle of the logits; the upper one is lower on reversed rows."""
    lower = (inputs.query, inputs.key)
    if inputs.is_causal:
        return [lower]
    return [lower, (inputs.query[:, :, ::-1], inputs.key[:, :, ::-1])]


def make_plan(inputs: AttentionInputs, wanted: ConvSettings, clock: Stopwatch) -> Plan:
    """Strips as given, or as the logits show them."""
    if wanted.bases is not None:
        return plan_given(wanted.bases, inputs.heads)
    return plan_recovered(inputs, wanted, clock)


def plan_given(bases: tuple[ConvBasis, ...], heads: tuple[int, int]) -> Plan:
    """Every head through the given strips, complete or not."""
    strips = tuple(basis.strips() for basis in bases)
    complete = np.logical_and.reduce([np.asarray(basis.complete) for basis in bases])
    every = np.ones(heads, bool)
    return Plan(strips, total_bases(strips), complete.reshape(heads), every, every)


def plan_recovered(inputs: AttentionInputs, wanted: ConvSettings, clock: Stopwatch) -> Plan:
    """Look for strips; where k is free, heads that show more than pay are left to exact attention.

    Kernels are formed for the other heads only.
    """
    with clock("recover"):
        found = starts_of(inputs, wanted.options, wanted.threads)
    complete = functools.reduce(np.logical_and, [part.complete for part in found])
    by_strips = complete if wanted.options.num_bases is None else np.ones_like(complete)
    if wanted.check_finite and not found[0].seen_finite:
        with clock("check"):
            _validate.finite(wanted.function, inputs.named(), wanted.threads)
    checked_by = wanted.function if wanted.check_finite else None
    with clock("kernels"):
        return plan_of(inputs, found, by_strips, wanted.threads, checked_by)


def plan_again(
    inputs: AttentionInputs, options: RecoverOptions, by_strips: np.ndarray, threads: int
) -> Plan:
    """The plan of an earlier call with these inputs and options, which ended with `by_strips`.

    Where k is free, the cost model limits it, and may have changed since. These heads were within
    the limit, so their strips are then found without one.
    """
    found = starts_of(inputs, options, threads)
    complete = functools.reduce(np.logical_and, [part.complete for part in found])
    if options.num_bases is None and not complete[by_strips].all():
        unlimited = options.unlimited(inputs.query.shape[2], inputs.key.shape[2])
        found = starts_of(inputs, unlimited, threads)
    return plan_of(inputs, found, by_strips, threads)


def starts_of(inputs: AttentionInputs, options: RecoverOptions, threads: int) -> list[Starts]:
    """Where strips begin, in each triangle."""
    value_dim = inputs.value.shape[3]
    return [
        find_starts(query, key, value_dim, inputs.scale, options, threads)
        for query, key in triangles(inputs)
    ]


def plan_of(
    inputs: AttentionInputs,
    found: list[Starts],
    by_strips: np.ndarray,
    threads: int,
    checked_by: str | None = None,
) -> Plan:
    """Form the kernels of the heads `by_strips`."""
    strips = tuple(
        form_strips(query, key, starts, by_strips, inputs.scale, threads, checked_by)
        for (query, key), starts in zip(triangles(inputs), found, strict=True)
    )
    complete = functools.reduce(np.logical_and, [part.complete for part in found])
    return Plan(strips, total_bases(found), complete, by_strips, by_strips)


def total_bases(parts: Sequence[Strips] | Sequence[Starts]) -> np.ndarray:
    """Strips of each head, (batch, heads), all triangles together."""
    return functools.reduce(np.add, [part.num_bases for part in parts])
