"""Which polynomial stands for exp in each head, and which heads are better computed exactly."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np

from . import _core
from ._layout import AttentionInputs
from ._polynomial_cost import Costs
from .masks import Causal

#: Tolerance when neither a degree nor a tolerance is asked for.
DEFAULT_TOL = 1e-3

#: Rows that the range of the logits is sampled at for a report.
SAMPLED_ROWS = 64

NONE = np.empty(0, np.int64)

#: As the core takes it: coefficients, centre, exact rows, exact columns.
NativeHead: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class HeadPlan:
    """The polynomial of one head, and what is taken exactly beside it."""

    radius: float  # no logit that is left to the polynomial is larger
    coefficients: np.ndarray | None = None  # None: everything is exact
    degree: int = -1
    rank: int = 0
    epsilon: float = float("nan")  # relative error of a weight by the polynomial alone
    rounding: float = float("nan")  # and by rounding
    rows: np.ndarray = field(default_factory=lambda: NONE)
    columns: np.ndarray = field(default_factory=lambda: NONE)
    cost: float = float("nan")  # nanoseconds of one thread
    cost_exact: float = float("nan")
    missed: bool = False  # tol is out of reach, or does not pay

    @property
    def error(self) -> float:
        """Largest relative error of a weight."""
        return self.epsilon + self.rounding

    @property
    def columns_exact(self) -> int:
        return self.columns.size


@dataclass(frozen=True)
class PolynomialPlan:
    """All heads of one call."""

    heads: list[HeadPlan]  # flat
    centre: np.ndarray  # (batch, kv_heads, d)
    by_polynomial: np.ndarray  # (batch, heads) bool
    sampled_radius: np.ndarray  # (batch, heads)

    def of(self, name: str) -> np.ndarray:
        """One attribute of every head, (batch, heads)."""
        found = np.array([getattr(head, name) for head in self.heads])
        return found.reshape(self.by_polynomial.shape)

    def native(self) -> list[NativeHead]:
        """What the core takes: coefficients, centre, exact rows and columns of every head."""
        batch, heads = self.by_polynomial.shape
        centre = np.repeat(self.centre, heads // max(self.centre.shape[1], 1), axis=1)
        centre = centre.reshape(batch * heads, centre.shape[2]).astype(np.float64)
        constant = np.ones(1)
        return [
            (
                constant if head.coefficients is None else head.coefficients,
                middle,
                head.rows,
                head.columns,
            )
            for head, middle in zip(self.heads, centre, strict=True)
        ]

    def without_missed(self) -> PolynomialPlan:
        """The same with the heads that miss computed exactly."""
        return replace(self, by_polynomial=self.by_polynomial & ~self.of("missed").astype(bool))


def make_plan(
    inputs: AttentionInputs,
    degree: int | None,
    tol: float | None,
    threads: int,
    *,
    sample: bool = False,
    backward: bool = False,
    may_skip: bool = False,
) -> PolynomialPlan:
    """Bound the logits of every head in O(n d), then choose its polynomial.

    A `backward` pass costs more, and takes no rows and columns exactly. With `may_skip` heads for
    which no polynomial pays get none, and nothing is looked at where none could.
    """
    chooser = Chooser(inputs, tol, backward)
    if may_skip and degree is None and not chooser.radii:
        return all_exact(inputs, chooser)
    sampled_rows = SAMPLED_ROWS if sample else 0
    centre, query_norms, key_norms, radius, sampled = _core.logit_range(
        inputs.query, inputs.key, inputs.scale, inputs.is_causal, sampled_rows, threads
    )
    group = inputs.heads[1] // max(inputs.key.shape[1], 1)
    heads = []
    for b, h in np.ndindex(inputs.heads):
        norms = query_norms[b, h], key_norms[b, h // group]
        head = chooser.cheapest(*norms) if degree is None and tol is not None else None
        if head is None and may_skip and degree is None:
            head = chooser.missed(float(radius[b, h]))
        heads.append(head or chooser.of_radius(float(radius[b, h]), degree))
    exists = np.array([head.coefficients is not None for head in heads], dtype=bool)
    return PolynomialPlan(heads, centre, exists.reshape(inputs.heads), sampled)


def all_exact(inputs: AttentionInputs, chooser: Chooser) -> PolynomialPlan:
    """A plan by which every head misses, of unknown radius."""
    batch, heads = inputs.heads
    head = chooser.missed(float("nan"))
    centre = np.zeros((batch, inputs.key.shape[1], inputs.key.shape[3]))
    none = np.zeros((batch, heads))
    return PolynomialPlan([head] * (batch * heads), centre, none > 0, none)


class Chooser:
    """Polynomials for heads of one size."""

    def __init__(
        self,
        inputs: AttentionInputs,
        tol: float | None,
        backward: bool = False,
        costs: Costs | None = None,
    ) -> None:
        self.tol = tol
        self.unit = float(np.finfo(inputs.compute).eps) / 2
        self.costs = costs or Costs(inputs, backward)
        self.takes_columns = not backward and (inputs.mask is None or inputs.mask[0] != "RowChange")
        self.radii: list[float] = []
        if tol is not None:
            self.radii = radii_of(self.costs.head_dim, tol, self.unit, self.costs.useful_features)

    def cheapest(self, query_norms: np.ndarray, key_norms: np.ndarray) -> HeadPlan | None:
        """The plan that reaches `tol`, with some rows and columns exact; None if none pays."""
        if self.tol is None or not self.radii:
            return None
        plain = self.without_columns(query_norms, key_norms)
        costs = self.costs
        best = costs.exact if plain is None else plain.cost
        if not self.takes_columns or best <= costs.least_split:
            return plain
        found = _core.plan_polynomial(
            query_norms,
            key_norms,
            costs.head_dim,
            costs.value_dim,
            costs.share,
            self.tol,
            self.unit,
            False,
            costs.rates,
            self.radii,
        )
        rows, columns = found["exact_rows"], found["exact_columns"]
        cost = costs.of_split(found["cost_polynomial"], rows.size, columns.size)
        if found["degree"] < 0 or not cost < best:
            return plain
        head = self.of_degree(found["radius"], found["degree"])
        return replace(head, rows=rows, columns=columns, cost=cost)

    def without_columns(self, query_norms: np.ndarray, key_norms: np.ndarray) -> HeadPlan | None:
        """The polynomial that reaches `tol` for all entries; None if it does not pay."""
        radius = float(query_norms.max(initial=0.0) * key_norms.max(initial=0.0))
        reached = np.flatnonzero(np.asarray(self.radii) >= radius)
        head = self.of_degree(radius, int(reached[0])) if reached.size else None
        return head if head is not None and head.cost < head.cost_exact else None

    def missed(self, radius: float) -> HeadPlan:
        """No polynomial at all."""
        return HeadPlan(radius, cost_exact=self.costs.exact, missed=True)

    def of_radius(self, radius: float, degree: int | None) -> HeadPlan:
        """The polynomial of `degree`, or of the least one that reaches `tol`, or the best one.

        Without a degree it is one that misses: it does not pay.
        """
        none = self.missed(radius)
        if not radius <= _core.MOST_RADIUS:
            return none
        missed = degree is None
        if degree is None and self.tol is not None:
            degree = _core.polynomial_degree(self.tol, radius, self.unit, False)
        if degree is None:
            degree = self.best_degree(radius)
        if _core.feature_count(self.costs.head_dim, degree) > self.costs.most_features:
            return none
        head = self.of_degree(radius, degree)
        missed = missed or (self.tol is not None and not head.error <= self.tol)
        return replace(head, missed=missed)

    def of_degree(self, radius: float, degree: int) -> HeadPlan:
        """The polynomial of that degree for all logits up to `radius`."""
        coefficients, epsilon = _core.exp_polynomial(degree, radius)
        rank = _core.feature_count(self.costs.head_dim, degree)
        return HeadPlan(
            radius,
            coefficients,
            degree,
            rank,
            epsilon,
            _core.polynomial_rounding(coefficients, radius, self.unit, 0.0),
            cost=self.costs.of_features(rank),
            cost_exact=self.costs.exact,
        )

    def best_degree(self, radius: float) -> int:
        """The one with the least error of a weight; rounding grows with the degree."""
        best, least = 0, float("inf")
        for degree in range(_core.MOST_DEGREE + 1):
            head = self.of_degree(radius, degree)
            if head.error < least:
                best, least = degree, head.error
            if head.epsilon < head.rounding:
                break
        return best


def radii_of(head_dim: int, tol: float, unit: float, most_features: int) -> list[float]:
    """The largest radius at which each degree reaches `tol`, for up to so many features."""
    useful = itertools.takewhile(
        lambda degree: _core.feature_count(head_dim, degree) <= most_features,
        range(_core.MOST_DEGREE + 1),
    )
    return list(radii_of_degrees(tol, unit)[: sum(1 for _ in useful)])


@functools.lru_cache(maxsize=64)
def radii_of_degrees(tol: float, unit: float) -> tuple[float, ...]:
    """The same of every degree: milliseconds, once for each tolerance."""
    return tuple(_core.degree_radii(1, tol, unit, False, _core.MOST_DEGREE + 1))


def without_unseen_keys(inputs: AttentionInputs) -> AttentionInputs:
    """The same with keys that no query sees out of the way: they widen no range.

    They are cut off, or with a mask become the mean of the others.
    """
    if inputs.attn_mask is None or inputs.mask is None:
        return inputs.without_unseen_keys()
    mask = inputs.attn_mask & Causal() if inputs.is_causal else inputs.attn_mask
    n_q, n_kv = inputs.query.shape[2], inputs.key.shape[2]
    seen = mask._seen_keys(n_q, n_kv)
    if seen.all():
        return inputs
    key = inputs.key.copy()
    with np.errstate(invalid="ignore"):  # of keys that were not checked
        shares = inputs.key[:, :, seen] / inputs.compute.type(max(seen.sum(), 1))
        key[:, :, ~seen] = shares.sum(axis=2, keepdims=True, dtype=np.float64)
    return replace(inputs, key=key)
