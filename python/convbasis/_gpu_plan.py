"""Which heads of a call on a GPU go through strips, and which strips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from . import _gpu_calls
from ._device_arrays import DeviceArray, Native
from ._gpu_recover import find_starts, form_basis, seen_by
from ._starts import Starts
from .gpu_basis import GpuBasis
from .recover import RecoverOptions

#: A basis as the core takes it.
NativeBasis: TypeAlias = tuple[np.ndarray, np.ndarray, Native, int]


@dataclass(frozen=True)
class GpuPlan:
    """Strips of the lower triangle, and of the reversed upper one when not causal."""

    bases: tuple[GpuBasis, ...]  # one a triangle; none where no head goes through strips
    by_strips: np.ndarray  # (batch, heads) bool: computed through them; the others exactly

    def listed(self) -> np.ndarray | None:
        """Flat numbers of the heads that go through strips, None for all."""
        return None if self.by_strips.all() else np.flatnonzero(self.by_strips)

    def others(self) -> np.ndarray:
        """Flat numbers of those that do not."""
        return np.flatnonzero(~self.by_strips)

    def lower_upper(self, function: str) -> tuple[NativeBasis, NativeBasis | None]:
        """As the core takes them; their kernels live as long as the plan."""
        lower, *upper = (basis.on_device(function) for basis in self.bases)
        return lower, upper[0] if upper else None

    def kernels(self, function: str) -> list[DeviceArray]:
        named = [("basis", basis.kernels) for basis in self.bases]
        return _gpu_calls.usable(function, named) if named else []


def given(bases: tuple[GpuBasis, ...]) -> GpuPlan:
    """Every head through the given strips, complete or not."""
    return GpuPlan(bases, np.ones(bases[0].lead, bool))


def recovered(
    function: str,
    arrays: list[DeviceArray],
    scale: float,
    is_causal: bool,
    options: RecoverOptions,
    by_strips: Callable[[], np.ndarray] | None = None,
) -> GpuPlan:
    """Strips of query, key and value that are looked for: waits once for each triangle.

    Where their number is free, heads that show more than pay are left to exact attention, as on the
    CPU. `by_strips` brings the choice of an earlier call instead; it is called when the search has
    waited already.
    """
    query, key, value = arrays
    halves = triangles(query, seen_by(query, key), is_causal)

    def search(options: RecoverOptions) -> list[Starts]:
        return [find_starts(function, q, k, value.shape[-1], scale, options) for q, k in halves]

    found = search(options)
    complete = np.logical_and.reduce([part.complete for part in found])
    if by_strips is not None:
        chosen = by_strips().reshape(complete.shape)
        if options.num_bases is None and not complete[chosen].all():
            # The cost model has changed since; these heads were within its limit then.
            found = search(options.unlimited(query.shape[-2], seen_by(query, key).shape[-2]))
    elif options.num_bases is None:
        chosen = complete
    else:
        chosen = np.ones_like(complete)
    if not chosen.any():
        return GpuPlan((), chosen)
    bases = tuple(
        form_basis(function, q, k, part.only(chosen, query.shape[-2]), scale)
        for (q, k), part in zip(halves, found, strict=True)
    )
    return GpuPlan(bases, chosen)


def triangles(
    query: DeviceArray, key: DeviceArray, is_causal: bool
) -> list[tuple[DeviceArray, DeviceArray]]:
    """Query and key of each triangle of the logits; the upper one is lower on reversed rows."""
    lower = [(query, key)]
    return lower if is_causal else [*lower, (reversed_rows(query), reversed_rows(key))]


def reversed_rows(array: DeviceArray) -> DeviceArray:
    """The same rows in place, the last one first."""
    rows, step = array.shape[-2], array.strides[-2]
    strides = (*array.strides[:-2], -step, array.strides[-1])
    last = array.address + max(rows - 1, 0) * step * array.itemsize
    return replace(array, address=last, strides=strides)
