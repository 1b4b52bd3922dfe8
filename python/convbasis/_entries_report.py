"""What `bounded_entries` finds."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from .report import plain


@dataclass(frozen=True, eq=False, repr=False)
class BoundedEntries:
    """The findings of `bounded_entries`; ``str()`` gives one sentence a head.

    Arrays have the leading dimensions of `query`, one entry a head; for a single head they are
    scalars. Those by relative error have an axis more, along `epsilons`.

    Attributes
    ----------
    num_queries, num_keys, head_dim, value_dim : int
    epsilons : tuple of float
        Relative errors of the weights, rounding in the computing type included.
    entry_bound : array of float
        The paper's B, ``sqrt(|scale| d) max(|Q|, |K|)``: the largest entry once Q and K are
        scaled so that logits are ``q . k / d``.
    balanced_entry_bound : array of float
        The same after moving a factor from the larger of Q and K to the smaller.
    threshold : float
        ``sqrt(log n)``, n the number of keys. Asymptotically, entries below it allow almost linear
        time, and entries of its size or more do not, unless SETH fails.
    bounded : array of bool
        Whether `balanced_entry_bound` is below `threshold`.
    radius : array of float
        R, certified: no logit is larger in size once the mean key is subtracted from all keys.
        The largest norm of a query times that of a centred key, rounding counted.
    sampled_radius : array of float
        Largest centred logit of some rows computed in full: the least that `radius` could be.
    degrees, ranks : array of int, shape (..., len(epsilons))
        Least degree g of a polynomial on ``[-R, R]``, and its ``C(d + g, g)`` features; -1 if
        there is none in this type.
    exact_shares : array of float, shape (..., len(epsilons))
        Share of all entries in the rows and columns that are best taken exactly, beside a
        polynomial for the rest; 1 if no polynomial pays.
    polynomial_seconds : array of float, shape (..., len(epsilons))
        Estimate of one thread's time for that choice.
    exact_seconds : array of float
        The same for exact attention.
    """

    num_queries: int
    num_keys: int
    head_dim: int
    value_dim: int
    epsilons: tuple[float, ...]
    entry_bound: Any
    balanced_entry_bound: Any
    threshold: float
    bounded: Any
    radius: Any
    sampled_radius: Any
    degrees: Any
    ranks: Any
    exact_shares: Any
    polynomial_seconds: Any
    exact_seconds: Any

    @property
    def cheaper(self) -> Any:
        """Whether a polynomial is estimated to be cheaper than exact attention, (..., epsilons)."""
        return self.polynomial_seconds < np.asarray(self.exact_seconds)[..., None]

    def __repr__(self) -> str:
        heads = np.size(self.bounded)
        return (
            f"<BoundedEntries: {np.count_nonzero(self.bounded)} of {heads} heads bounded, "
            f"R at most {np.max(self.radius, initial=0.0):.3g}>"
        )

    def __str__(self) -> str:
        heads = np.ndindex(np.shape(self.radius))
        return "\n".join(self._sentence(head) for head in heads)

    def _sentence(self, head: tuple[int, ...]) -> str:
        bound = np.asarray(self.balanced_entry_bound)[head]
        side = "below" if np.asarray(self.bounded)[head] else "on the wrong side of"
        e = min(range(len(self.epsilons)), key=lambda i: abs(math.log(self.epsilons[i] / 0.01)))
        at = (*head, e)
        rank = np.asarray(self.ranks)[at]
        needs = f"a relative error of {self.epsilons[e]:g} takes "
        if rank < 0:
            needs = f"no polynomial has a relative error of {self.epsilons[e]:g} on all of that"
        else:
            fewer = "fewer" if rank < self.num_keys else "no fewer"
            degree = np.asarray(self.degrees)[at]
            needs += f"degree {degree}, {rank} features, {fewer} than the {self.num_keys} keys"
        exact = np.asarray(self.exact_seconds)[head]
        share = np.asarray(self.exact_shares)[at]
        if self.cheaper[at]:
            gain = exact / np.asarray(self.polynomial_seconds)[at]
            verdict = f"polynomial attention, with {share:.2g} of the entries exact, is estimated "
            verdict += f"{gain:.3g} times as fast as exact attention"
        else:
            verdict = "exact attention is cheaper"
        name = f"Head {', '.join(map(str, head))}: entries" if head else "Entries"
        return (
            f"{name} of {bound:.3g} are {side} sqrt(log n) = {self.threshold:.3g}, and centred "
            f"logits reach {np.asarray(self.sampled_radius)[head]:.3g} to "
            f"{np.asarray(self.radius)[head]:.3g}: {needs}; {verdict}."
        )

    def to_markdown(self) -> str:
        """A line on the whole and a table with one row a head and relative error."""
        lines = [
            f"{self.num_queries} queries, {self.num_keys} keys, head_dim {self.head_dim}, "
            f"value_dim {self.value_dim}; sqrt(log n) = {self.threshold:.3g}.",
            "",
            "| head | entries | side | R sampled | R | error | degree | features | exact share "
            "| polynomial ms | exact ms |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for head in np.ndindex(np.shape(self.radius)):
            for e, epsilon in enumerate(self.epsilons):
                at = (*head, e)
                degree, rank = (np.asarray(x)[at] for x in (self.degrees, self.ranks))
                cells = [
                    ", ".join(map(str, head)) or "-",
                    f"{np.asarray(self.balanced_entry_bound)[head]:.3g}",
                    "bounded" if np.asarray(self.bounded)[head] else "not bounded",
                    f"{np.asarray(self.sampled_radius)[head]:.3g}",
                    f"{np.asarray(self.radius)[head]:.3g}",
                    f"{epsilon:g}",
                    str(degree) if degree >= 0 else "-",
                    str(rank) if rank >= 0 else "-",
                    f"{np.asarray(self.exact_shares)[at]:.3g}",
                    f"{1e3 * np.asarray(self.polynomial_seconds)[at]:.3g}",
                    f"{1e3 * np.asarray(self.exact_seconds)[head]:.3g}",
                ]
                lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python numbers and lists; NaN and infinity as None."""
        return {entry.name: plain(getattr(self, entry.name)) for entry in fields(self)}

    def to_json(self) -> str:
        """Strict JSON: what is not a number, or infinite, is null."""
        return json.dumps(self.to_dict(), allow_nan=False)
