"""The stages of conv_attention with CalibrateOptions: fit, attend, judge, mend, hand over."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from . import _core, _validate
from ._judge import tolerance_missed
from ._judged_blocks import BLOCK, WHOLE_BLOCKS, Judge, Verdict
from ._layout import AttentionInputs
from ._run import exactly, result_arrays
from ._settings import ConvSettings
from .calibrate import CalibrateOptions
from .calibrated_report import CalibratedReport
from .report import Stopwatch, ToleranceMissed

#: Shorter sequences are computed exactly: a basis would save nothing.
SHORTEST = 2048


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
    lead = batch, heads
    if n < SHORTEST or 0 in lead:
        exactly(inputs, np.ones(lead, bool), target, lse, wanted.threads, clock)
        verdict, account = Verdict.of_none(lead, -(-n // BLOCK)), None
    else:
        verdict, account = approximate(inputs, wanted, options, target, lse, clock, return_report)
    if not return_report:
        return target, lse, None
    return target, lse, report_of(inputs, wanted, options, account, verdict, clock)


def approximate(
    inputs: AttentionInputs,
    wanted: ConvSettings,
    options: CalibrateOptions,
    target: np.ndarray,
    lse: np.ndarray | None,
    clock: Stopwatch,
    judged: bool,
) -> tuple[Verdict, dict[str, np.ndarray]]:
    """Fills `target` and `lse`; what was found of each head."""
    tol = None if wanted.on_miss == "keep" else wanted.tol
    with clock("calibrate"):
        problem = _core.SelfAttention(
            inputs.query, inputs.key, inputs.value, inputs.scale, wanted.threads
        )
        calibration = problem.calibrate(options.as_tuple(), wanted.tol or 0.0, wanted.threads)
        account = calibration.account()
    tried = np.ones(target.shape[:2], bool)
    if tol is not None:
        tried = np.isfinite(account["sample_error"])
    if wanted.on_miss == "error" and not tried.all():
        raise missed(inputs, wanted, account["sample_error"], ~tried)
    some = np.flatnonzero(tried)
    with clock("attend"):
        rows = problem.approximate(calibration, target, lse, some, wanted.threads)
    verdict = Verdict.of_none(tried.shape, -(-target.shape[2] // BLOCK))
    verdict.kept[tried] = True
    if some.size and (wanted.tol is not None or judged):
        with clock("estimate"):
            judge = Judge(problem, target, *rows, options.seed, wanted.threads)
            verdict = judge.verdict(some, tol)
    given_up = ~verdict.kept
    if wanted.on_miss == "error" and given_up.any():
        raise missed(inputs, wanted, verdict.before, np.asarray(given_up.any(-1)))
    if given_up.any():
        with clock("exact"):
            problem.exact_blocks(given_up, target, lse, wanted.threads)
    return verdict, account


def missed(
    inputs: AttentionInputs, wanted: ConvSettings, error: np.ndarray, heads: np.ndarray
) -> ToleranceMissed:
    """The exception for ``on_miss="error"``; the `error` of a hopeless head is infinite."""
    errors = inputs.restore(error)

    def told(head: tuple[int, ...]) -> str:
        return f"{errors[head]:.3g}" if np.isfinite(errors[head]) else "no approximation pays"

    return tolerance_missed(wanted.function, inputs.restore(heads), wanted.tol, told)


def report_of(
    inputs: AttentionInputs,
    wanted: ConvSettings,
    options: CalibrateOptions,
    account: dict[str, np.ndarray] | None,
    verdict: Verdict,
    clock: Stopwatch,
) -> CalibratedReport:
    """The report, in the caller's leading dimensions."""
    kept = verdict.kept
    exact = np.asarray(kept[..., WHOLE_BLOCKS:].sum(axis=-1) == 0)
    if account is None:
        exact = np.ones(kept.shape[:2], bool)
    none = np.zeros(exact.shape, np.int64)
    if account is None:
        account = {
            "window": none,
            "heavy_keys": none,
            "lags": none,
            "retrieved": np.zeros(kept.shape, np.int64),
            "has_far": none.astype(bool),
            "sample_error": np.full(exact.shape, np.nan),
        }
    retrieved = account["retrieved"].sum(-1) / max(kept.shape[-1], 1)
    restore = inputs.restore
    return CalibratedReport(
        method="exact" if exact.all() and exact.size else "calibrated",
        error_estimate=restore(np.where(exact, 0.0, verdict.error)),
        error_interval=restore(np.where(exact[..., None], 0.0, verdict.interval)),
        sample_error=restore(account["sample_error"]),
        heads_exact=int(exact.sum()),
        exact_mask=restore(exact),
        blocks_exact=restore(np.where(exact, kept.shape[-1], (~kept).sum(-1))),
        num_blocks=kept.shape[-1],
        exact_share=restore(exact_share(inputs.query.shape[2], options, account, verdict, exact)),
        window=restore(np.where(exact, 0, account["window"])),
        heavy_keys=restore(np.where(exact, 0, account["heavy_keys"])),
        lags=restore(np.where(exact, 0, account["lags"])),
        retrieval_blocks=restore(np.where(exact, 0.0, retrieved)),
        has_far=restore(account["has_far"] & ~exact),
        judged_rows=restore(verdict.rows),
        tol=wanted.tol,
        on_miss=wanted.on_miss,
        seconds=clock.stages(),
    )


def exact_share(
    n: int,
    options: CalibrateOptions,
    account: dict[str, np.ndarray],
    verdict: Verdict,
    exact: np.ndarray,
) -> np.ndarray:
    """Logits computed, sample and judged rows and all, by those of exact attention.

    A head computed exactly costs the attempt too; none was made where not even the first block is
    `kept`.
    """
    whole = n * (n + 1) / 2
    if n < SHORTEST:
        return np.ones(exact.shape)
    kept = verdict.kept
    tried = kept[..., 0]
    first = np.arange(kept.shape[-1]) * BLOCK
    rows = np.minimum(first + BLOCK, n) - first
    own = rows * (rows + 1) / 2
    everything = rows * first + own
    near = (account["window"] + account["heavy_keys"] + account["lags"])[..., None]
    taken = near + account["retrieved"] * BLOCK + min(options.sample_keys, n)
    some = np.minimum(rows * taken + own, everything)
    some = np.where(first < WHOLE_BLOCKS * BLOCK, everything, some)
    attended = np.where(tried, some.sum(-1), 0.0)
    mended = np.where(kept & ~exact[..., None], 0.0, everything).sum(-1)
    fitted = (min(options.sample_rows, n // 32) + n / BLOCK) * n / 2
    looked = fitted + verdict.rows * n / 2
    return np.asarray((attended + mended + looked) / whole)
