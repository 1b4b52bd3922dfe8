"""How far the strips are from exact attention, measured on exactly computed sample rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _core
from ._layout import AttentionInputs
from ._plan import Plan, triangles
from ._settings import ConvSettings
from .estimate import relative_error, stratified_rows, theorem_bound
from .report import Report, Stopwatch, ToleranceMissed

LISTED_HEADS = 8  # heads that a message names before it says how many more there are


@dataclass(frozen=True)
class Verdict:
    """Arrays are (batch, heads), and describe the strips whether or not they were used."""

    error: np.ndarray
    interval: np.ndarray  # (batch, heads, 2)

    def misses(self, plan: Plan, tol: float | None) -> np.ndarray:
        """Heads whose interval ends above `tol`; what cannot be told counts as a miss."""
        if tol is None:
            return np.zeros_like(plan.by_strips)
        return plan.by_strips & ~(self.interval[..., 1] <= tol)


def sampled_rows(inputs: AttentionInputs) -> np.ndarray:
    """The sample rows, the same for every head so that permuted heads give permuted results."""
    rows = stratified_rows(inputs.query.shape[2])
    return np.ascontiguousarray(np.broadcast_to(rows, (*inputs.heads, rows.size)))


@dataclass(frozen=True)
class Sample:
    """Rows of exact attention to compare with. O(m n d) a head."""

    rows: np.ndarray  # (batch, heads, m)
    exact: np.ndarray  # (batch, heads, m, d_v)
    num_rows: int  # of the whole sequence

    @classmethod
    def drawn(cls, inputs: AttentionInputs, threads: int) -> Sample:
        rows = sampled_rows(inputs)
        exact = np.zeros((*rows.shape, inputs.value.shape[3]), inputs.compute)
        arrays = inputs.query, inputs.key, inputs.value
        _core.attention_rows(*arrays, rows, exact, None, inputs.scale, inputs.is_causal, threads)
        return cls(rows, exact, inputs.query.shape[2])

    def by_strips(self, inputs: AttentionInputs, plan: Plan, threads: int) -> np.ndarray:
        """The sample rows through the strips: a look at the error before all rows are computed."""
        found = np.zeros_like(self.exact)
        _core.conv_attention_rows(
            *plan.lower_upper(), inputs.value, self.rows, found, plan.listed(), threads
        )
        return found

    def of(self, output: np.ndarray) -> np.ndarray:
        """The sample rows of a finished output."""
        return np.take_along_axis(output, self.rows[..., None], axis=2)

    def verdict(self, approximate: np.ndarray) -> Verdict:
        """Relative errors of the `approximate` sample rows, and what they say of all rows."""
        exact = self.exact.astype(np.float64)
        peak = np.abs(exact).max(axis=(2, 3), initial=0.0, keepdims=True)
        peak[peak == 0.0] = 1.0  # scaled by it, squares neither overflow nor vanish
        errors = np.square((approximate - exact) / peak).sum(-1)
        weights = np.square(exact / peak).sum(-1)
        return Verdict(*relative_error(errors, weights, self.num_rows))


def deviation(inputs: AttentionInputs, plan: Plan, certify: bool, threads: int) -> np.ndarray:
    """Largest |H~ - H| a head, of all rows or of the sample rows; NaN without strips."""
    rows = None if certify else sampled_rows(inputs)
    largest = np.zeros(inputs.heads)
    for part, ((query, key), strips) in enumerate(zip(triangles(inputs), plan.strips, strict=True)):
        here = rows if rows is None or part == 0 else inputs.query.shape[2] - 1 - rows
        found = _core.logit_deviation(query, key, *strips, here, inputs.scale, threads)
        largest = np.maximum(largest, found)
    return np.where(plan.formed, largest, np.nan)


def tolerance_missed(
    function: str, inputs: AttentionInputs, verdict: Verdict, missed: np.ndarray, tol: float | None
) -> ToleranceMissed:
    """The exception for ``on_miss="error"``."""
    ends = np.stack([verdict.error, verdict.interval[..., 1]], axis=-1).reshape(*inputs.lead, 2)
    heads = [tuple(head) for head in np.argwhere(missed.reshape(inputs.lead)).tolist()]
    named = []
    for head in heads[:LISTED_HEADS]:
        estimate, end = ends[head]
        name = f"head {head}" if head else "the head"
        named.append(f"{name}: {estimate:.3g} (up to {end:.3g})")
    more = f" and {len(heads) - LISTED_HEADS} more" if len(heads) > LISTED_HEADS else ""
    return ToleranceMissed(
        f"[{function}] tol is missed by {len(heads)} of {missed.size} heads; expected relative "
        f"errors whose intervals end below {tol:g}; got {', '.join(named)}{more}"
    )


def account(
    inputs: AttentionInputs,
    plan: Plan,
    sample: Sample,
    verdict: Verdict,
    strips_error: np.ndarray,
    logit_deviation: np.ndarray,
    forward: Mapping[str, Any],
    wanted: ConvSettings,
    clock: Stopwatch,
) -> Report:
    """The Report, in the caller's leading dimensions."""
    largest = np.maximum(
        inputs.value.max(axis=(2, 3), initial=0.0), -inputs.value.min(axis=(2, 3), initial=0.0)
    ).astype(np.float64)
    largest = np.repeat(largest, inputs.heads[1] // max(largest.shape[1], 1), axis=1)
    restore, exact = inputs.restore, ~plan.by_strips
    return Report(
        method="exact" if exact.all() and exact.size else "conv_basis",
        num_bases=restore(plan.num_bases),
        complete=restore(plan.complete),
        logit_deviation=restore(logit_deviation),
        error_bound=restore(np.where(exact, 0.0, theorem_bound(logit_deviation, largest))),
        error_estimate=restore(np.where(exact, 0.0, verdict.error)),
        error_interval=restore(np.where(exact[..., None], 0.0, verdict.interval)),
        strips_error=restore(np.where(plan.formed, strips_error, np.nan)),
        heads_exact=int(exact.sum()),
        exact_mask=restore(exact),
        rows_exact=restore(np.where(exact, 0, forward.get("rows_exact", 0))),
        rounding_bound=restore(np.where(exact, 0.0, forward.get("rounding_bound", 0.0))),
        certified=wanted.certify,
        sample_rows=sample.rows.shape[2],
        tol=wanted.tol,
        on_miss=wanted.on_miss,
        seconds=clock.stages(),
        block_lengths=tuple(int(length) for length in forward.get("block_lengths", ())),
    )
