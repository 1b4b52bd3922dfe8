"""The stages of conv_attention with CalibrateOptions: fit, attend, judge, mend, hand over."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from . import _core, _validate
from ._layout import AttentionInputs
from ._run import exactly, result_arrays
from ._settings import ConvSettings
from .calibrate import CalibrateOptions
from .calibrated_report import CalibratedReport
from .estimate import relative_error
from .report import Stopwatch, ToleranceMissed

#: Queries, and keys, of a block in the core.
BLOCK = 64

#: Query blocks at the start that the core takes exactly.
WHOLE_BLOCKS = 4

#: Shorter sequences are computed exactly: a basis would save nothing.
SHORTEST = 2048

#: Rows of each head that are judged: one of so many, at most as many.
ROWS_PER_JUDGED, MOST_JUDGED = 32, 128

#: Share of the judged rows that is drawn evenly; the others where errors are to be expected.
EVEN_SHARE = 0.4

#: Power to which the ends of an interval are raised, relative to the estimate. Errors of few rows
#: drawn unevenly have longer tails than those that `relative_error` was made for: with it, 96.7
#: to 98.8 of 100 heads of a small language model had their error inside, at 2,048 to 8,192 rows.
WIDENING = 1.75

#: A head that misses is given so many chances to come within the tolerance by more exact blocks,
#: aiming a little lower than needed.
ROUNDS, AIM = 5, 0.95


@dataclass(frozen=True)
class Judged:
    """Rows of finished output beside exact attention. Arrays are (batch, heads, ...)."""

    rows: np.ndarray  # (..., m), a row may be drawn twice
    counts: np.ndarray  # (..., m): how many rows each stands for
    errors: np.ndarray  # (..., m): squared errors
    weight: np.ndarray  # (...): squared norm of all rows of the output, in the same unit
    expected: np.ndarray  # (..., n): errors up to a factor, as far as shares tell

    def error(self, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Relative error of all rows, and its interval, when blocks not `kept` are exact."""
        stays = np.take_along_axis(kept, self.rows // BLOCK, axis=-1)
        norms = self.weight[..., None] / (self.counts * self.counts.shape[-1])
        estimate, interval = relative_error(np.where(stays, self.errors, 0.0), norms, self.counts)
        middle = np.where(estimate > 0.0, estimate, 1.0)[..., None]
        return estimate, middle * (interval / middle) ** WIDENING

    def blocks_kept(self, tol: float) -> np.ndarray:
        """Blocks that need not be exact for intervals to end below `tol`, (..., blocks).

        Errors of blocks are those expected times one factor a head, that of the judged rows. So
        which rows were judged says nothing about which blocks are kept, and their errors remain
        a fair sample.
        """
        edges = np.arange(0, self.expected.shape[-1], BLOCK)
        expected = np.add.reduceat(self.expected, edges, axis=-1)
        order = np.argsort(expected, axis=-1, kind="stable")
        rising = np.cumsum(np.take_along_axis(expected, order, axis=-1), axis=-1)
        kept = np.ones(expected.shape, bool)
        most = rising[..., -1:]
        for _ in range(ROUNDS):
            np.put_along_axis(kept, order, rising <= most, axis=-1)
            end = self.error(kept)[1][..., 1:]
            if (end <= tol).all():
                break
            with np.errstate(divide="ignore", invalid="ignore"):
                shrink = np.where(end <= tol, 1.0, (AIM * tol / end) ** 2)
            most = most * shrink
        kept[~(end[..., 0] <= tol)] = False
        kept[..., :WHOLE_BLOCKS] = True  # exact anyhow
        return kept


def attend_calibrated(
    inputs: AttentionInputs,
    wanted: ConvSettings,
    options: CalibrateOptions,
    out: np.ndarray | None,
    *,
    return_lse: bool,
    return_report: bool,
) -> tuple[np.ndarray, np.ndarray | None, CalibratedReport | None]:
    """Output and lse in the core's layout, and the report if wanted."""
    clock = Stopwatch()
    if wanted.check_finite:
        with clock("check"):
            _validate.finite(wanted.function, inputs.named(), wanted.threads)
    inputs = replace(inputs.without_unseen_keys(), scale=wanted.scale)
    batch, heads, n, _ = inputs.query.shape
    target, lse = result_arrays(inputs, out, return_lse, direct=wanted.on_miss != "error")
    tol = None if wanted.on_miss == "keep" else wanted.tol

    exact = np.full((batch, heads), n < SHORTEST)
    account = None
    if not exact.all():
        arrays = inputs.query, inputs.key, inputs.value
        with clock("calibrate"):
            calibration = _core.calibrate(
                *arrays,
                inputs.scale,
                options.as_tuple(),
                wanted.tol or 0.0,
                wanted.threads,
            )
            account = calibration.account()
        if tol is not None:
            exact = ~np.isfinite(account["sample_error"])
        if wanted.on_miss == "error" and exact.any():
            raise missed(wanted, account["sample_error"], exact)
        share = np.zeros((batch, heads, n), inputs.compute)
        with clock("attend"):
            _core.calibrated_attention(
                *arrays,
                calibration,
                target,
                lse,
                share,
                inputs.scale,
                np.flatnonzero(~exact),
                wanted.threads,
            )
    exactly(inputs, exact, target, lse, wanted.threads, clock)

    num_blocks = -(-n // BLOCK)
    kept = np.broadcast_to(~exact[..., None], (batch, heads, num_blocks)).copy()
    error, interval = np.zeros((batch, heads)), np.zeros((batch, heads, 2))
    if not exact.all() and (wanted.tol is not None or return_report):
        with clock("estimate"):
            judged = judge(inputs, target, share, exact, options.seed, wanted.threads)
        if tol is not None:
            kept &= judged.blocks_kept(tol)
            if wanted.on_miss == "error" and not kept.all():
                raise missed(wanted, judged.error(~exact[..., None] | kept)[0], ~kept.all(-1))
            with clock("exact"):
                chosen = ~kept & ~exact[..., None]
                if chosen.any():
                    _core.exact_blocks(*arrays, chosen, target, lse, inputs.scale, wanted.threads)
        error, interval = judged.error(kept)
    if not return_report:
        return target, lse, None
    report = report_of(inputs, wanted, options, account, kept, error, interval, clock)
    return target, lse, report


def judge(
    inputs: AttentionInputs,
    output: np.ndarray,
    share: np.ndarray,
    exact: np.ndarray,
    seed: int,
    threads: int,
) -> Judged:
    """Draw rows of heads not `exact`, more of them where keys that are not exact weigh more."""
    batch, heads, n = share.shape
    expected = np.square(np.nan_to_num(share.astype(np.float64), nan=1.0))
    expected[..., : WHOLE_BLOCKS * BLOCK] = 0.0
    even = np.zeros(n)
    even[WHOLE_BLOCKS * BLOCK :] = 1.0 / (n - WHOLE_BLOCKS * BLOCK)
    total = expected.sum(-1, keepdims=True)
    uneven = np.where(total > 0.0, expected / np.where(total > 0.0, total, 1.0), even)
    chance = EVEN_SHARE * even + (1.0 - EVEN_SHARE) * uneven
    count = judged_rows(n)
    offsets = np.random.default_rng(seed).random((batch, heads, 1))
    places = (np.arange(count) + offsets) / count
    rows = np.empty((batch, heads, count), np.int64)
    for head in np.ndindex(batch, heads):
        running = np.cumsum(chance[head])
        rows[head] = np.searchsorted(running, places[head] * running[-1], side="right")
    rows = np.minimum(rows, n - 1)
    rows[exact] = 0  # nothing to judge, and the least work
    chosen = np.take_along_axis(chance, rows, axis=-1)
    counts = 1.0 / (count * np.where(exact[..., None], 1.0, chosen))

    right = np.zeros((*rows.shape, output.shape[3]), inputs.compute)
    arrays = inputs.query, inputs.key, inputs.value
    call = (inputs.scale, inputs.is_causal, inputs.mask)
    _core.attention_rows(*arrays, rows, right, None, *call, threads)
    norms = _core.row_norms(output, threads)
    unit = norms.max(axis=2, initial=0.0, keepdims=True)
    unit[unit == 0.0] = 1.0
    found = np.take_along_axis(output, rows[..., None], axis=2)
    errors = np.square((found - right.astype(np.float64)) / unit[..., None]).sum(-1)
    return Judged(rows, counts, errors, np.square(norms / unit).sum(-1), expected)


def judged_rows(n: int) -> int:
    return min(n // ROWS_PER_JUDGED, MOST_JUDGED)


def missed(wanted: ConvSettings, error: np.ndarray, heads: np.ndarray) -> ToleranceMissed:
    """The exception for ``on_miss="error"``; the error of a hopeless head is infinite."""
    worst = float(error[heads].max())
    got = f"estimates up to {worst:.3g}" if np.isfinite(worst) else "a head that no basis pays for"
    return ToleranceMissed(
        f"[{wanted.function}] tol is missed by {int(heads.sum())} of {heads.size} heads; expected "
        f"relative errors whose intervals end below {wanted.tol:g}; got {got}"
    )


def report_of(
    inputs: AttentionInputs,
    wanted: ConvSettings,
    options: CalibrateOptions,
    account: dict[str, np.ndarray] | None,
    kept: np.ndarray,
    error: np.ndarray,
    interval: np.ndarray,
    clock: Stopwatch,
) -> CalibratedReport:
    """The report, in the caller's leading dimensions."""
    exact = np.asarray(kept[..., WHOLE_BLOCKS:].sum(axis=-1) == 0)
    if account is None:
        exact = np.ones(kept.shape[:2], bool)
    none = np.zeros(exact.shape, np.int64)
    if account is None:
        account = {
            "window": none,
            "heavy_keys": none,
            "retrieved": none,
            "has_far": none.astype(bool),
            "sample_error": np.full(exact.shape, np.nan),
        }
    restore = inputs.restore
    return CalibratedReport(
        method="exact" if exact.all() and exact.size else "calibrated",
        error_estimate=restore(np.where(exact, 0.0, error)),
        error_interval=restore(np.where(exact[..., None], 0.0, interval)),
        sample_error=restore(account["sample_error"]),
        heads_exact=int(exact.sum()),
        exact_mask=restore(exact),
        blocks_exact=restore(np.where(exact, kept.shape[-1], (~kept).sum(-1))),
        num_blocks=kept.shape[-1],
        exact_share=restore(exact_share(inputs.query.shape[2], options, account, kept, exact)),
        window=restore(np.where(exact, 0, account["window"])),
        heavy_keys=restore(np.where(exact, 0, account["heavy_keys"])),
        retrieval_blocks=restore(np.where(exact, 0, account["retrieved"])),
        has_far=restore(account["has_far"] & ~exact),
        judged_rows=judged_rows(inputs.query.shape[2]) if kept[..., :1].any() else 0,
        tol=wanted.tol,
        on_miss=wanted.on_miss,
        seconds=clock.stages(),
    )


def exact_share(
    n: int,
    options: CalibrateOptions,
    account: dict[str, np.ndarray],
    kept: np.ndarray,
    exact: np.ndarray,
) -> np.ndarray:
    """Logits computed, sample and judged rows and all, by those of exact attention.

    A head computed exactly costs the attempt too; none was made where not even the first block is
    `kept`.
    """
    whole = n * (n + 1) / 2
    if n < SHORTEST:
        return np.ones(exact.shape)
    tried = kept[..., 0]
    first = np.arange(kept.shape[-1]) * BLOCK
    rows = np.minimum(first + BLOCK, n) - first
    own = rows * (rows + 1) / 2
    everything = rows * first + own
    near = account["window"][..., None] + account["heavy_keys"][..., None]
    taken = near + account["retrieved"][..., None] * BLOCK + min(options.sample_keys, n)
    some = np.minimum(rows * taken + own, everything)
    some = np.where(first < WHOLE_BLOCKS * BLOCK, everything, some)
    attended = np.where(tried, some.sum(-1), 0.0)
    mended = np.where(kept & ~exact[..., None], 0.0, everything).sum(-1)
    fitted = (min(options.sample_rows, n // 32) + n / BLOCK) * n / 2
    looked = fitted + np.where(tried, judged_rows(n) * n / 2, 0.0)
    return np.asarray((attended + mended + looked) / whole)
