"""How far the strips are from exact attention, measured on exactly computed sample rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import _core
from ._layout import AttentionInputs
from ._plan import Plan, triangles
from .estimate import relative_error, stratified_rows, theorem_bound
from .report import Report, Stopwatch, ToleranceMissed

LISTED_HEADS = 8  # heads that a message names before it says how many more there are


@dataclass(frozen=True)
class Verdict:
    """Arrays are (batch, heads), and describe the strips whether or not they were used."""

    sample_rows: int
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


def judge(inputs: AttentionInputs, output: np.ndarray, threads: int) -> Verdict:
    """Compare `output` with exact attention on the sample rows. O(m n d) a head."""
    rows = sampled_rows(inputs)
    exact = np.zeros((*rows.shape, output.shape[3]), output.dtype)
    if exact.size:
        _core.attention_rows(inputs.query, inputs.key, inputs.value, rows, exact, None,
                             inputs.scale, inputs.is_causal, threads)
    exact = exact.astype(np.float64)
    gap = np.take_along_axis(output, rows[..., None], axis=2) - exact
    peak = np.abs(exact).max(axis=(2, 3), initial=0.0, keepdims=True)  # squares must not overflow
    peak[peak == 0.0] = 1.0
    errors = np.square(gap / peak).sum(-1)
    weights = np.square(exact / peak).sum(-1)
    return Verdict(rows.shape[2], *relative_error(errors, weights, inputs.query.shape[2]))


def deviation(inputs: AttentionInputs, plan: Plan, certify: bool, threads: int) -> np.ndarray:
    """Largest |H~ - H| a head, of all rows or of the sample rows; NaN without strips."""
    rows = None if certify else sampled_rows(inputs)
    largest = np.zeros(inputs.heads)
    for part, ((query, key), strips) in enumerate(zip(triangles(inputs), plan.strips, strict=True)):
        here = rows if rows is None or part == 0 else inputs.query.shape[2] - 1 - rows
        found = _core.logit_deviation(query, key, *strips, here, inputs.scale, threads)
        largest = np.maximum(largest, found)
    return np.where(plan.by_strips, largest, np.nan)


def tolerance_missed(
    function: str, inputs: AttentionInputs, verdict: Verdict, missed: np.ndarray, tol: float
) -> ToleranceMissed:
    """The exception for ``on_miss="error"``."""
    estimates = np.asarray(inputs.restore(verdict.error))
    heads = np.argwhere(np.atleast_1d(inputs.restore(missed))).tolist()
    named = [f"head {tuple(head)}: {np.atleast_1d(estimates)[tuple(head)]:.3g}"
             for head in heads[:LISTED_HEADS]]
    more = f" and {len(heads) - LISTED_HEADS} more" if len(heads) > LISTED_HEADS else ""
    return ToleranceMissed(
        f"[{function}] tol is missed by {len(heads)} of {missed.size} heads; expected a relative "
        f"error of at most {tol:g} (upper end of its interval); got estimates of "
        f"{', '.join(named)}{more}"
    )


def account(
    inputs: AttentionInputs, plan: Plan, verdict: Verdict, logit_deviation: np.ndarray,
    exact: np.ndarray, forward: dict, *, certify: bool, tol: float | None, on_miss: str,
    clock: Stopwatch,
) -> Report:
    """The Report, in the caller's leading dimensions."""
    largest = np.maximum(inputs.value.max(axis=(2, 3), initial=0.0),
                         -inputs.value.min(axis=(2, 3), initial=0.0)).astype(np.float64)
    largest = np.repeat(largest, inputs.heads[1] // max(largest.shape[1], 1), axis=1)
    restore = inputs.restore
    return Report(
        method="exact" if exact.all() and exact.size else "conv_basis",
        num_bases=restore(plan.num_bases),
        complete=restore(plan.complete),
        logit_deviation=restore(logit_deviation),
        error_bound=restore(np.where(exact, 0.0, theorem_bound(logit_deviation, largest))),
        error_estimate=restore(np.where(exact, 0.0, verdict.error)),
        error_interval=restore(np.where(exact[..., None], 0.0, verdict.interval)),
        strips_error=restore(np.where(plan.by_strips, verdict.error, np.nan)),
        heads_exact=int(exact.sum()),
        exact_mask=restore(exact),
        rows_exact=restore(np.where(exact, 0, forward.get("rows_exact", 0))),
        rounding_bound=restore(np.where(exact, 0.0, forward.get("rounding_bound", 0.0))),
        certified=certify,
        sample_rows=verdict.sample_rows,
        tol=tol,
        on_miss=on_miss,
        seconds=clock.stages(),
        block_lengths=tuple(int(length) for length in forward.get("block_lengths", ())),
    )
