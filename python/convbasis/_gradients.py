"""The stages of a backward pass through strips: recover them again, differentiate, hand over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from . import _core
from ._judge import deviation
from ._layout import AttentionInputs
from ._plan import Plan, plan_again
from ._settings import ConvSettings
from .estimate import strata, stratified_rows
from .recover import RecoverOptions
from .report import BackwardReport, Stopwatch

GRADIENTS = ("basis", "attention")

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Gradients:
    """Gradients by query, key and value in the core's layout, and what the core says of them."""

    arrays: Arrays
    rows_exact: np.ndarray  # (batch, heads)
    seconds: Mapping[str, float]


def replay(
    inputs: AttentionInputs,
    options: RecoverOptions,
    by_strips: np.ndarray,
    grad_output: np.ndarray,
    gradient: str,
    threads: int,
) -> Arrays:
    """The backward pass of a forward pass that has run with these `options`.

    Its strips are found again, which is cheap and gives the same ones, so that a caller need not
    keep O(k n) numbers a head: `by_strips` says which heads went through them.
    """
    plan = plan_again(inputs.without_unseen_keys(), options, by_strips, threads)
    return differentiate(inputs, plan, grad_output, gradient, threads).arrays


def differentiate(
    inputs: AttentionInputs, plan: Plan, grad_output: np.ndarray, gradient: str, threads: int
) -> Gradients:
    """Gradients of heads through strips and of those computed exactly, by the plan's choice.

    `grad_output` is (batch, heads, n, d_v). Keys that no query sees get 0.
    """
    arrays = tuple(np.zeros(array.shape, inputs.compute) for _, array in inputs.named())
    grad_query, grad_key, grad_value = arrays
    seen = inputs.without_unseen_keys()
    keys = slice(seen.key.shape[2])
    operands = (seen.query, seen.key, seen.value, grad_output)
    targets = (grad_query, grad_key[:, :, keys], grad_value[:, :, keys])
    exact = np.flatnonzero(~plan.by_strips)
    # First, for it overwrites what the other adds to.
    call = (seen.scale, seen.is_causal, seen.mask)
    _core.exact_attention_backward(*operands, *targets, *call, exact, threads)
    lower_upper, through_entries = plan.lower_upper(), gradient == "attention"
    found = _core.conv_attention_backward(
        *lower_upper, *operands, *targets, seen.scale, through_entries, plan.listed(), threads
    )
    return Gradients((grad_query, grad_key, grad_value), found["rows_exact"], found["seconds"])


def backward_report(
    inputs: AttentionInputs,
    plan: Plan,
    grad_output: np.ndarray,
    gradient: str,
    found: Gradients,
    wanted: ConvSettings,
    clock: Stopwatch,
) -> BackwardReport:
    """The account of a call, in the caller's shapes."""
    exact, restore = ~plan.by_strips, inputs.restore
    with clock("bound"):
        rows = (
            None if wanted.certify else stratified_rows(strata(inputs.query.shape[2]), exact.shape)
        )
        largest = deviation(inputs.without_unseen_keys(), plan, rows, wanted.threads)
        bounds = error_bounds(inputs, grad_output, np.where(exact, 0.0, largest))
    if gradient == "basis":  # another function's gradient by query and key
        bounds[~exact, :2] = np.nan
    return BackwardReport(
        gradient=gradient,
        num_bases=restore(plan.num_bases),
        heads_exact=int(exact.sum()),
        exact_mask=restore(exact),
        logit_deviation=restore(largest),
        error_bound=restore(bounds),
        certified=wanted.certify,
        rows_exact=restore(found.rows_exact),
        seconds=clock.stages(),
    )


def error_bounds(
    inputs: AttentionInputs, grad_output: np.ndarray, largest: np.ndarray
) -> np.ndarray:
    """What logits that deviate by `largest` may do to each gradient, (batch, heads, 3). O(n d).

    Bounds of the sum of |entries|, by query, key and value: rows of f sum to 1, so that a bound of
    each entry of dS, ``(exp(4 dev) - 1) f R`` with R_i the range of ``dY_i . V_j``, needs no f.
    """
    group = inputs.query.shape[1] // max(inputs.key.shape[1], 1)

    def of_head(key_head: np.ndarray) -> np.ndarray:
        return np.repeat(key_head, group, axis=1)

    largest_key = of_head(np.abs(inputs.key).sum(-1, dtype=np.float64).max(-1, initial=0.0))
    # hypot neither overflows nor vanishes where squares do.
    values = np.hypot.reduce(inputs.value.astype(np.float64), axis=-1).max(-1, initial=0.0)
    sizes = np.hypot.reduce(grad_output.astype(np.float64), axis=-1)
    ranges = 2.0 * sizes * of_head(values)[..., None]
    queries = np.abs(inputs.query).sum(-1, dtype=np.float64)
    scale = abs(inputs.scale)
    by_query = grown(4.0 * largest, scale * ranges.sum(-1) * largest_key)
    by_key = grown(4.0 * largest, scale * (ranges * queries).sum(-1))
    by_value = grown(2.0 * largest, np.abs(grad_output).sum((-2, -1), dtype=np.float64))
    return np.stack([by_query, by_key, by_value], axis=-1)


def grown(exponent: np.ndarray, size: np.ndarray) -> np.ndarray:
    """``(exp(exponent) - 1) size``, infinite where that overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.where(size == 0.0, 0.0, np.expm1(exponent) * size)
