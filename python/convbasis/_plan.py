"""Which heads of a conv_attention call go through strips, and which strips."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ._layout import AttentionInputs
from ._settings import ConvSettings
from .basis import ConvBasis, Strips
from .recover import Starts, find_starts, finite_logits, form_strips
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


def make_plan(
    function: str, inputs: AttentionInputs, wanted: ConvSettings, clock: Stopwatch
) -> Plan:
    """Strips as given, or as the logits show them."""
    if wanted.bases is not None:
        return plan_given(wanted.bases, inputs.heads)
    return plan_recovered(function, inputs, wanted, clock)


def plan_given(bases: tuple[ConvBasis, ...], heads: tuple[int, int]) -> Plan:
    """Every head through the given strips, complete or not."""
    strips = tuple(basis.strips() for basis in bases)
    complete = np.logical_and.reduce([np.asarray(basis.complete) for basis in bases])
    every = np.ones(heads, bool)
    return Plan(strips, total_bases(strips), complete.reshape(heads), every, every)


def plan_recovered(
    function: str, inputs: AttentionInputs, wanted: ConvSettings, clock: Stopwatch
) -> Plan:
    """Look for strips; where k is free, heads that show more than pay are left to exact attention.

    Kernels are formed for the other heads only.
    """
    parts = triangles(inputs)
    with clock("recover"):
        found = [
            find_starts(
                query, key, inputs.value.shape[3], inputs.scale, wanted.options, wanted.threads
            )
            for query, key in parts
        ]
    complete = functools.reduce(np.logical_and, [part.complete for part in found])
    by_strips = complete if wanted.options.num_bases is None else np.ones_like(complete)
    with clock("kernels"):
        strips = tuple(
            form_strips(query, key, starts, by_strips, inputs.scale, wanted.threads)
            for (query, key), starts in zip(parts, found, strict=True)
        )
    if wanted.check_finite:
        finite_logits(function, strips, wanted.threads)
    return Plan(strips, total_bases(found), complete, by_strips, by_strips)


def total_bases(parts: Sequence[Strips] | Sequence[Starts]) -> np.ndarray:
    """Strips of each head, (batch, heads), all triangles together."""
    return functools.reduce(np.add, [part.num_bases for part in parts])
