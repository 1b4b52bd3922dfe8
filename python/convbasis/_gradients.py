"""The stages of a backward pass through strips: recover them again, differentiate, hand over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from . import _core
from ._layout import AttentionInputs
from ._plan import Plan, plan_again
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
    _core.exact_attention_backward(*operands, *targets, seen.scale, seen.is_causal, exact, threads)
    lower_upper, through_entries = plan.lower_upper(), gradient == "attention"
    found = _core.conv_attention_backward(
        *lower_upper, *operands, *targets, seen.scale, through_entries, plan.listed(), threads
    )
    return Gradients((grad_query, grad_key, grad_value), found["rows_exact"], found["seconds"])


def backward_report(
    inputs: AttentionInputs, plan: Plan, gradient: str, found: Gradients, clock: Stopwatch
) -> BackwardReport:
    """The account of a call, in the caller's shapes."""
    return BackwardReport(
        gradient=gradient,
        num_bases=inputs.restore(plan.num_bases),
        heads_exact=int((~plan.by_strips).sum()),
        exact_mask=inputs.restore(~plan.by_strips),
        rows_exact=inputs.restore(found.rows_exact),
        seconds=clock.stages(),
    )
