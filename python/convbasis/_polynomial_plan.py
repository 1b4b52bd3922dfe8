"""Which polynomial stands for exp in each head, and which heads are better computed exactly."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from . import _core
from ._layout import AttentionInputs
from .cost_model import cost_model

#: Tolerance when neither a degree nor a tolerance is asked for.
DEFAULT_TOL = 1e-3

#: Logits beyond this are left to exact attention: no polynomial of use reaches so far.
MOST_RADIUS = 40.0

#: Highest degree that is looked at.
MOST_DEGREE = 40

#: Most numbers of a state (features times values), which bounds the memory of a call.
MOST_NUMBERS = 1 << 26

#: Rows that the range of the logits is sampled at for a report.
SAMPLED_ROWS = 64


@dataclass(frozen=True)
class HeadPolynomial:
    """The polynomial of one head, and what it costs; `coefficients` is None without one."""

    radius: float  # no logit that it stands for is larger
    coefficients: np.ndarray | None = None
    degree: int = -1
    rank: int = 0
    epsilon: float = float("nan")  # relative error of a weight by the polynomial alone
    rounding: float = float("nan")  # and by rounding
    cost: float = float("inf")  # nanoseconds of one thread
    cost_exact: float = 0.0

    @property
    def error(self) -> float:
        """Largest relative error of a weight."""
        return self.epsilon + self.rounding


@dataclass(frozen=True)
class PolynomialPlan:
    """Arrays and lists go over (batch, heads)."""

    heads: list[HeadPolynomial]
    centre: np.ndarray  # (batch, kv_heads, d)
    by_polynomial: np.ndarray  # (batch, heads) bool
    missed: np.ndarray  # (batch, heads) bool: tol is out of reach, or does not pay
    sampled_radius: np.ndarray | None  # (batch, heads)

    def of(self, name: str) -> np.ndarray:
        """One attribute of every head, (batch, heads)."""
        found = np.array([getattr(head, name) for head in self.heads])
        return found.reshape(self.by_polynomial.shape)

    def native(self) -> list[tuple[np.ndarray, ...]]:
        """What the core takes: coefficients, centre, exact rows and columns of every head."""
        batch, heads = self.by_polynomial.shape
        centre = np.repeat(self.centre, heads // max(self.centre.shape[1], 1), axis=1)
        centre = centre.reshape(batch * heads, -1).astype(np.float64)
        none = np.empty(0, np.int64)
        constant = np.ones(1)
        return [
            (constant if head.coefficients is None else head.coefficients, middle, none, none)
            for head, middle in zip(self.heads, centre, strict=True)
        ]

    def without(self, heads: np.ndarray) -> PolynomialPlan:
        """The same with `heads` computed exactly."""
        return replace(self, by_polynomial=self.by_polynomial & ~heads)


def make_plan(
    inputs: AttentionInputs,
    degree: int | None,
    tol: float | None,
    threads: int,
    *,
    sample: bool,
) -> PolynomialPlan:
    """Bound the logits of every head in O(n d), then choose its polynomial."""
    sampled_rows = SAMPLED_ROWS if sample else 0
    norms = _core.logit_norms(
        inputs.query, inputs.key, inputs.scale, inputs.is_causal, sampled_rows, threads
    )
    known: dict[float, HeadPolynomial] = {}
    heads = []
    for radius in norms["radius"].ravel().tolist():
        if radius not in known:
            known[radius] = head_polynomial(inputs, radius, degree, tol)
        heads.append(known[radius])
    exists = [head.coefficients is not None for head in heads]
    pays = [degree is not None or head.cost < head.cost_exact for head in heads]
    accurate = [tol is None or head.error <= tol for head in heads]
    by_polynomial = np.array(exists).reshape(inputs.heads)
    missed = ~(by_polynomial & np.reshape(pays, inputs.heads) & np.reshape(accurate, inputs.heads))
    return PolynomialPlan(
        heads, norms["centre"], by_polynomial, missed, norms.get("sampled_radius")
    )


def head_polynomial(
    inputs: AttentionInputs, radius: float, degree: int | None, tol: float | None
) -> HeadPolynomial:
    """The polynomial of `degree`, or of the least one that reaches `tol`, or else the best one."""
    n_q, n_kv = inputs.query.shape[2], inputs.key.shape[2]
    channels = inputs.query.shape[3] + inputs.value.shape[3]
    model = cost_model(inputs.compute)
    share = 0.5 if inputs.is_causal else 1.0
    cost_exact = share * n_q * n_kv * channels * model.exact
    none = HeadPolynomial(radius, cost_exact=cost_exact)
    if not radius <= MOST_RADIUS:
        return none
    if degree is None:
        unit = float(np.finfo(inputs.compute).eps) / 2
        degree = _core.polynomial_degree(tol, radius, unit, mean_is_zero(inputs))
    if degree is None:
        degree = best_degree(inputs, radius)
    found = of_degree(inputs, radius, degree)
    width = inputs.value.shape[3] + 1
    if found["rank"] * width > MOST_NUMBERS:
        return none
    # Exact attention has its exponentials in the rate; products with features have them not.
    cost = (n_q + n_kv) * float(found["rank"]) * (width + 1) * model.direct
    return HeadPolynomial(radius, cost=cost, cost_exact=cost_exact, **found)


def of_degree(inputs: AttentionInputs, radius: float, degree: int) -> dict[str, Any]:
    """What the polynomial of that degree is like."""
    unit = float(np.finfo(inputs.compute).eps) / 2
    coefficients, epsilon = _core.exp_polynomial(degree, radius)
    least_mean = max(1.0 - epsilon, 0.0) if mean_is_zero(inputs) else 0.0
    return {
        "coefficients": coefficients,
        "degree": degree,
        "rank": _core.feature_count(inputs.query.shape[3], degree),
        "epsilon": epsilon,
        "rounding": _core.polynomial_rounding(coefficients, radius, unit, least_mean),
    }


def best_degree(inputs: AttentionInputs, radius: float) -> int:
    """Of the degrees up to where rounding takes over, the one with the least error of a weight."""
    best, least = 0, float("inf")
    for degree in range(MOST_DEGREE + 1):
        found = of_degree(inputs, radius, degree)
        error = found["epsilon"] + found["rounding"]
        if error < least:
            best, least = degree, error
        if found["epsilon"] < found["rounding"]:
            break
    return best


def mean_is_zero(inputs: AttentionInputs) -> bool:
    """Whether every row sees all keys, whose mean has been subtracted."""
    return not inputs.is_causal and inputs.mask is None
