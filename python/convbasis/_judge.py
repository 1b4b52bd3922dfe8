"""How far the strips are from exact attention, measured on exactly computed sample rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _core
from ._layout import AttentionInputs
from ._plan import Plan, triangles
from ._settings import ConvSettings
from .estimate import (
    heaviest_rows,
    relative_error,
    represented,
    strata,
    stratified_rows,
    theorem_bound,
    unseen_share,
)
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

    def told(self, inputs: AttentionInputs) -> Callable[[tuple[int, ...]], str]:
        """Estimate and upper end of a head, named as the caller does."""
        error, end = inputs.restore(self.error), inputs.restore(self.interval[..., 1])
        return lambda head: f"{error[head]:.3g} (up to {end[head]:.3g})"


@dataclass(frozen=True)
class Sample:
    """Rows of exact attention to compare with. O(m n d) a head.

    They differ between heads, so that heads have no blind spot in common, and are the same in
    every call of that size.
    """

    rows: np.ndarray  # (batch, heads, m)
    counts: np.ndarray  # (batch, heads, m): how many rows each stands for
    exact: np.ndarray  # (batch, heads, m, d_v)
    norms: np.ndarray | None = None  # (batch, heads, n): of the finished output

    @classmethod
    def drawn(cls, inputs: AttentionInputs, threads: int) -> Sample:
        """One row of every stratum."""
        borders = strata(inputs.query.shape[2])
        rows = stratified_rows(borders, inputs.heads)
        counts = np.broadcast_to(np.diff(borders), rows.shape)
        return cls(rows, counts, exact_rows(inputs, rows, threads))

    def with_heavy_rows(self, inputs: AttentionInputs, output: np.ndarray, threads: int) -> Sample:
        """The same and the heaviest rows of the finished `output`, which are not left to chance."""
        norms = row_norms(output, threads)
        heavy = heaviest_rows(norms)
        rows = np.concatenate([self.rows, heavy], axis=2)
        counts = represented(by_head(self.rows), by_head(heavy), norms.shape[2])
        counts = counts.reshape(rows.shape)
        exact = np.concatenate([self.exact, exact_rows(inputs, heavy, threads)], axis=2)
        return Sample(rows, counts, exact, norms)

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
        return Verdict(*relative_error(errors, weights, self.counts))

    def unseen_share(self) -> np.ndarray:
        """What can hide from the sample, (batch, heads); NaN while there is no output."""
        lead = self.rows.shape[:2]
        if self.norms is None:
            return np.full(lead, np.nan)
        share = unseen_share(by_head(self.norms), by_head(self.rows), by_head(self.counts))
        return share.reshape(lead)


def by_head(array: np.ndarray) -> np.ndarray:
    """(batch, heads, m) as (batch * heads, m)."""
    return array.reshape(array.shape[0] * array.shape[1], array.shape[2])


def exact_rows(inputs: AttentionInputs, rows: np.ndarray, threads: int) -> np.ndarray:
    """Exact attention of the listed `rows`, (batch, heads, m, d_v)."""
    exact = np.zeros((*rows.shape, inputs.value.shape[3]), inputs.compute)
    arrays = inputs.query, inputs.key, inputs.value
    call = (inputs.scale, inputs.is_causal, inputs.mask)
    _core.attention_rows(*arrays, rows, exact, None, *call, None, threads)
    return exact


def row_norms(output: np.ndarray, threads: int) -> np.ndarray:
    """Norms of the rows of each head relative to its largest, (batch, heads, n)."""
    norms = _core.row_norms(output, threads)
    peak = norms.max(axis=2, initial=0.0, keepdims=True)
    norms /= np.where(peak > 0.0, peak, 1.0)
    return norms


def deviation(
    inputs: AttentionInputs, plan: Plan, rows: np.ndarray | None, threads: int
) -> np.ndarray:
    """Largest |H~ - H| a head, of the listed `rows` or of all; NaN without strips."""
    largest = np.zeros(inputs.heads)
    for part, ((query, key), strips) in enumerate(zip(triangles(inputs), plan.strips, strict=True)):
        here = rows if rows is None or part == 0 else inputs.query.shape[2] - 1 - rows
        found = _core.logit_deviation(query, key, *strips, here, inputs.scale, threads)
        largest = np.maximum(largest, found)
    return np.where(plan.formed, largest, np.nan)


def tolerance_missed(
    function: str, missed: np.ndarray, tol: float | None, told: Callable[[tuple[int, ...]], str]
) -> ToleranceMissed:
    """The exception for ``on_miss="error"``; ``told(head)`` says what came of one of them."""
    heads = [tuple(head) for head in np.argwhere(missed).tolist()]
    named = [f"{f'head {h}' if h else 'the head'}: {told(h)}" for h in heads[:LISTED_HEADS]]
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
        unseen_share=restore(np.where(exact, 0.0, sample.unseen_share())),
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
