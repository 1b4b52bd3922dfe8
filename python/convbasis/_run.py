"""The stages of an attention call: find strips, attend, judge, fall back, hand over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from . import _core, _layout, _validate
from ._judge import Sample, Verdict, account, deviation, tolerance_missed
from ._plan import Plan, make_plan
from ._settings import ConvSettings
from .report import Report, Stopwatch


@dataclass(frozen=True)
class Outcome:
    """What a conv_attention call has computed, in the core's layout."""

    target: np.ndarray  # (batch, heads, n, d_v)
    lse: np.ndarray | None  # (batch, heads, n)
    plan: Plan  # how each head was computed in the end
    report: Report | None

    @property
    def by_strips(self) -> np.ndarray:
        """(batch, heads) bool: through strips; the others exactly."""
        return self.plan.by_strips


def attend(
    inputs: _layout.AttentionInputs,
    wanted: ConvSettings,
    out: np.ndarray | None = None,
    *,
    return_lse: bool = False,
    return_report: bool = False,
) -> Outcome:
    """conv_attention from its checked arguments on.

    With a tolerance, heads are judged twice: by the strips alone before anything else is computed,
    which spares the heads that miss, and by the finished output, rounding and its heaviest rows
    included.
    """
    clock = Stopwatch()
    if wanted.check_finite:
        with clock("check"):
            check_finite(inputs, wanted)
    inputs = inputs.without_unseen_keys()
    if inputs.scale != wanted.scale:
        inputs = replace(inputs, scale=wanted.scale)
    plan = make_plan(inputs, wanted, clock)

    sample, early = None, None
    if wanted.tol is not None or return_report:
        with clock("estimate"):
            sample = Sample.drawn(inputs, wanted.threads)
    if sample is not None and wanted.tol is not None and wanted.on_miss != "keep":
        with clock("estimate"):
            early = sample.verdict(sample.by_strips(inputs, plan, wanted.threads))
        plan = plan.without(misses(inputs, plan, early, wanted))

    target, lse = result_arrays(inputs, out, return_lse, direct=wanted.on_miss != "error")
    forward = through_strips(inputs, plan, target, lse, wanted.threads, clock)
    exactly(inputs, ~plan.by_strips, target, lse, wanted.threads, clock)
    if sample is None:
        return Outcome(target, lse, plan, None)

    with clock("estimate"):
        sample = sample.with_heavy_rows(inputs, target, wanted.threads)
        verdict = sample.verdict(sample.of(target))
    strips_error = verdict.error
    if early is not None:
        strips_error = np.where(plan.by_strips, verdict.error, early.error)
    missed = misses(inputs, plan, verdict, wanted)
    if wanted.on_miss == "exact":
        exactly(inputs, missed, target, lse, wanted.threads, clock)
        plan = plan.without(missed)
    if not return_report:
        return Outcome(target, lse, plan, None)
    with clock("estimate"):
        rows = None if wanted.certify else sample.rows
        logits = deviation(inputs, plan, rows, wanted.threads)
    report = account(inputs, plan, sample, verdict, strips_error, logits, forward, wanted, clock)
    return Outcome(target, lse, plan, report)


def check_finite(inputs: _layout.AttentionInputs, wanted: ConvSettings) -> None:
    """Raise for NaN or infinity, but leave query and key to the search for strips.

    It looks at all of their entries, or else `plan_recovered` does; keys that no query sees are
    not searched.
    """
    searched = wanted.bases is None and inputs.without_unseen_keys() is inputs
    left = [inputs.value] if searched else [array for _, array in inputs.named()]
    if _core.first_not_finite(left, wanted.threads) < len(left):
        _validate.finite(wanted.function, inputs.named(), wanted.threads)


def misses(
    inputs: _layout.AttentionInputs, plan: Plan, verdict: Verdict, wanted: ConvSettings
) -> np.ndarray:
    """Heads that miss the tolerance; with ``on_miss="error"`` any of them raises."""
    missed = verdict.misses(plan, wanted.tol)
    if wanted.on_miss == "error" and missed.any():
        raise tolerance_missed(
            wanted.function, inputs.restore(missed), wanted.tol, verdict.told(inputs)
        )
    return missed


def through_strips(
    inputs: _layout.AttentionInputs,
    plan: Plan,
    target: np.ndarray,
    lse: np.ndarray | None,
    threads: int,
    clock: Stopwatch,
) -> Mapping[str, Any]:
    """Compute the heads that have strips; what the core says about it."""
    if not plan.by_strips.any():
        return {}
    with clock("attend"):
        forward = _core.conv_attention(
            *plan.lower_upper(), inputs.value, target, lse, plan.listed(), threads
        )
    for stage, seconds in forward["seconds"].items():
        clock.add(stage, seconds)
    return forward


def exactly(
    inputs: _layout.AttentionInputs,
    chosen: np.ndarray,
    target: np.ndarray,
    lse: np.ndarray | None,
    threads: int,
    clock: Stopwatch,
) -> None:
    """Compute the `chosen` heads by exact attention."""
    if not chosen.any():
        return
    with clock("exact"):
        _core.exact_attention(
            inputs.query,
            inputs.key,
            inputs.value,
            target,
            lse,
            inputs.scale,
            inputs.is_causal,
            inputs.mask,
            np.flatnonzero(chosen),
            threads,
        )


def result_arrays(
    inputs: _layout.AttentionInputs,
    out: np.ndarray | None,
    return_lse: bool,
    *,
    direct: bool = True,
) -> tuple[np.ndarray, np.ndarray | None]:
    """What the core writes: the output, in `out` itself where it can be, and the lse if wanted."""
    shape = (*inputs.query.shape[:3], inputs.value.shape[3])
    target = _layout.buffer(out, shape, inputs.compute, direct=direct)
    return target, np.empty(shape[:3], inputs.compute) if return_lse else None


def results(
    inputs: _layout.AttentionInputs,
    target: np.ndarray,
    out: np.ndarray | None,
    lse: np.ndarray | None,
    report: object = None,
) -> Any:
    """The output, and a tuple of all that was asked for when there is more."""
    output = _layout.deliver(target, out, inputs.out_shape, inputs.dtype)
    extra = [inputs.restore(lse)] if lse is not None else []
    extra += [report] if report is not None else []
    return (output, *extra) if extra else output
