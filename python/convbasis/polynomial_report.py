"""What a call of `polynomial_attention` did and how far its output can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .report import Account


@dataclass(frozen=True, eq=False, repr=False)
class PolynomialReport(Account):
    """The account of one `polynomial_attention` call. Arrays as in `Report`.

    Attributes
    ----------
    method : str
        ``"polynomial"``, or ``"exact"`` when every head was computed exactly.
    heads_exact : int
    exact_mask : array of bool
        As in `Report`.
    radius : array of float
        Certified: no logit that is left to the polynomial is larger, the mean key subtracted.
    sampled_radius : array of float
        The largest logit of 64 evenly spaced rows, those that are taken exactly included: without
        such rows and columns, how far the bound is from the truth.
    degree, rank : array of int
        Of the polynomial that was looked at last, and its features, ``C(d + degree, degree)``;
        -1 and 0 where the logits are beyond any polynomial, or features take too much memory.
    epsilon : array of float
        Certified relative error of any weight by the polynomial.
    rounding : array of float
        What rounding adds to it.
    error_bound : array of float
        Of ``max|Y - Y~|``: ``2 t / (1 - t) max|V|`` with ``t = epsilon + rounding``, and what the
        output loses as float16 or bfloat16; infinite from t = 1 on, 0 for heads computed exactly.
    error_estimate, error_interval, unseen_share
        As in `Report`.
    rows_exact, columns_exact : array of int
        Rows computed by exact attention, because they hold large logits or because their weights
        summed to 0 or less, and keys with exact weights.
    cost_polynomial, cost_exact : array of float
        Nanoseconds of one thread that the two ways were expected to take.
    sample_rows, tol, on_miss, seconds, backend
        As in `Report`.
    """

    method: str
    heads_exact: int
    exact_mask: Any
    radius: Any
    sampled_radius: Any
    degree: Any
    rank: Any
    epsilon: Any
    rounding: Any
    error_bound: Any
    error_estimate: Any
    error_interval: Any
    unseen_share: Any
    rows_exact: Any
    columns_exact: Any
    cost_polynomial: Any
    cost_exact: Any
    sample_rows: int
    tol: float | None
    on_miss: str
    seconds: Mapping[str, float] = field(default_factory=dict)
    backend: str = "cpu"

    def __repr__(self) -> str:
        worst = np.max(self.error_interval, initial=0.0)
        return (
            f"<PolynomialReport {self.method}: {self.heads_exact} of {np.size(self.exact_mask)} "
            f"heads exact, estimated error at most {worst:.2g}, "
            f"{self.seconds.get('total', 0.0):.3g} s>"
        )

    def to_markdown(self) -> str:
        """A line on the whole and a table with one row a head."""
        lines = [
            f"{self.method} on {self.backend}, {self.seconds.get('total', 0.0):.3g} s; "
            f"{self.heads_exact} of {np.size(self.exact_mask)} heads exact; tol {self.tol}, "
            f"on_miss {self.on_miss!r}.",
            "",
            "| head | computed | max logit (sampled) | degree | features | error of a weight "
            "| bound | estimate (95 %) | rows exact | columns exact |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for head in np.ndindex(np.shape(self.exact_mask)):

            def of(name: str, head: tuple[int, ...] = head) -> Any:
                return np.asarray(getattr(self, name))[head]

            low, high = of("error_interval")
            polynomial = [
                str(of("degree")),
                str(of("rank")),
                f"{of('epsilon') + of('rounding'):.2e}",
            ]
            cells = [
                ", ".join(map(str, head)) or "-",
                "exactly" if of("exact_mask") else "by polynomial",
                f"{of('radius'):.3g} ({of('sampled_radius'):.3g})",
                *(["-"] * 3 if of("exact_mask") else polynomial),
                f"{of('error_bound'):.2e}",
                f"{of('error_estimate'):.2e} ({low:.2e} to {high:.2e})",
                str(of("rows_exact")),
                str(of("columns_exact")),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False, repr=False)
class PolynomialBackwardReport(Account):
    """The account of one `polynomial_attention_backward` call. Arrays as in `Report`.

    Attributes
    ----------
    method : str
        ``"polynomial"``, or ``"exact"`` when every head was computed exactly.
    heads_exact : int
    exact_mask : array of bool
        As in `Report`.
    exact_because : array of str
        Why a head was computed exactly, empty for the others: ``"logits"`` beyond any polynomial,
        ``"memory"`` that features take, ``"tol"`` out of reach or cheaper exactly, ``"mask"`` whose
        windows do not rise, ``"row sums"`` of weights that are not positive.
    radius, degree, rank, epsilon, rounding
        As in `PolynomialReport`.
    cost_polynomial, cost_exact : array of float
        Nanoseconds of one thread that the two ways were expected to take.
    tol, on_miss, seconds, backend
        As in `Report`.
    """

    method: str
    heads_exact: int
    exact_mask: Any
    exact_because: Any
    radius: Any
    degree: Any
    rank: Any
    epsilon: Any
    rounding: Any
    cost_polynomial: Any
    cost_exact: Any
    tol: float | None
    on_miss: str
    seconds: Mapping[str, float] = field(default_factory=dict)
    backend: str = "cpu"

    def __repr__(self) -> str:
        return (
            f"<PolynomialBackwardReport {self.method}: {self.heads_exact} of "
            f"{np.size(self.exact_mask)} heads exact, {self.seconds.get('total', 0.0):.3g} s>"
        )

    def to_markdown(self) -> str:
        """A line on the whole and a table with one row a head."""
        lines = [
            f"{self.method} on {self.backend}, {self.seconds.get('total', 0.0):.3g} s; "
            f"{self.heads_exact} of {np.size(self.exact_mask)} heads exact; tol {self.tol}, "
            f"on_miss {self.on_miss!r}.",
            "",
            "| head | computed | max logit | degree | features | error of a weight |",
            "|---|---|---|---|---|---|",
        ]
        for head in np.ndindex(np.shape(self.exact_mask)):

            def of(name: str, head: tuple[int, ...] = head) -> Any:
                return np.asarray(getattr(self, name))[head]

            because = f"exactly: {of('exact_because')}"
            cells = [
                ", ".join(map(str, head)) or "-",
                because if of("exact_mask") else "by polynomial",
                f"{of('radius'):.3g}",
                str(of("degree")),
                str(of("rank")),
                f"{of('epsilon') + of('rounding'):.2e}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)
