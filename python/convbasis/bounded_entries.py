"""Whether the entries of Q and K are small enough for polynomial attention, in linear time.

Source: Alman and Song, *Fast Attention Requires Bounded Entries*, arXiv 2302.13214.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from . import _core, _layout, _validate
from .cost_model import cost_model
from .masks import Mask
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
        rank = np.asarray(self.ranks)[(*head, e)]
        needs = f"a relative error of {self.epsilons[e]:g} takes "
        if rank < 0:
            needs = f"no polynomial has a relative error of {self.epsilons[e]:g}"
        else:
            fewer = "fewer" if rank < self.num_keys else "no fewer"
            degree = np.asarray(self.degrees)[(*head, e)]
            needs += f"degree {degree}, {rank} features, {fewer} than the {self.num_keys} keys"
        exact = np.asarray(self.exact_seconds)[head]
        share = np.asarray(self.exact_shares)[(*head, e)]
        if self.cheaper[(*head, e)]:
            gain = exact / np.asarray(self.polynomial_seconds)[(*head, e)]
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
            f"{self.num_queries} queries, {self.num_keys} keys, head_dim {self.head_dim}, value_dim "
            f"{self.value_dim}; sqrt(log n) = {self.threshold:.3g}.",
            "",
            "| head | entries | side | R sampled | R | error | degree | features | exact share "
            "| polynomial ms | exact ms |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for head in np.ndindex(np.shape(self.radius)):
            for e, epsilon in enumerate(self.epsilons):
                degree, rank = (np.asarray(x)[(*head, e)] for x in (self.degrees, self.ranks))
                cells = [
                    ", ".join(map(str, head)) or "-",
                    f"{np.asarray(self.balanced_entry_bound)[head]:.3g}",
                    "bounded" if np.asarray(self.bounded)[head] else "not bounded",
                    f"{np.asarray(self.sampled_radius)[head]:.3g}",
                    f"{np.asarray(self.radius)[head]:.3g}",
                    f"{epsilon:g}",
                    str(degree) if degree >= 0 else "-",
                    str(rank) if rank >= 0 else "-",
                    f"{np.asarray(self.exact_shares)[(*head, e)]:.3g}",
                    f"{1e3 * np.asarray(self.polynomial_seconds)[(*head, e)]:.3g}",
                    f"{1e3 * np.asarray(self.exact_seconds)[head]:.3g}",
                ]
                lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python numbers and lists; NaN and infinity as None."""
        return {entry.name: plain(getattr(self, entry.name)) for entry in fields(self)}


def bounded_entries(
    query: np.ndarray,
    key: np.ndarray,
    *,
    attn_mask: Mask | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    epsilons: Sequence[float] = (0.1, 0.01, 0.001, 1e-6),
    value_dim: int | None = None,
    sample_rows: int = 32,
    check_finite: bool = True,
    num_threads: int | None = None,
) -> BoundedEntries:
    """What decides whether polynomial attention applies to an input, without forming the logits.

    Parameters
    ----------
    query : ndarray, shape (..., n_q, d)
        float32, float64, float16 or bfloat16.
    key : ndarray, shape (..., n_kv, d)
    attn_mask : convbasis.masks.Mask, optional
        It can only narrow the range: `radius` and the costs are those without it.
    is_causal : bool
        Query i sees keys 0..i; keys past the last query are not looked at.
    scale : float, optional
        Of ``q . k``; default ``1 / sqrt(d)``.
    enable_gqa : bool
        Query heads share key heads in groups.
    epsilons : sequence of float
        Relative errors of the weights to find degrees, ranks and costs for. The output then errs
        by at most ``2 epsilon / (1 - epsilon) max|V|``.
    value_dim : int, optional
        Channels of value, for the costs; default d.
    sample_rows : int
        Rows of each head computed in full for `sampled_radius`.
    check_finite : bool
        Raise for NaN and infinity.
    num_threads : int, optional
        Default all cores this process may use.

    Returns
    -------
    BoundedEntries

    Raises
    ------
    ValueError, TypeError
        If an argument breaks a rule.

    Notes
    -----
    Time O((n_q + n_kv) d + sample_rows n_kv d) a head, and the sorting of the norms; memory
    O(n_q + n_kv). Costs count multiply-adds at the rate that `cost_model` has for exact attention.

    Standard-normal Q and K are on the wrong side: their largest entries grow like
    ``sqrt(2 log(n d))``, and the scale adds a factor ``d^(1/4)``.

    Source: Alman and Song, arXiv 2302.13214; the rows and columns taken exactly, *Support Basis*,
    arXiv 2510.01643.

    Examples
    --------
    >>> import numpy as np, convbasis as cb
    >>> query, key = np.random.default_rng(0).uniform(-0.7, 0.7, size=(2, 4096, 4))
    >>> found = cb.bounded_entries(query, key)
    >>> bool(found.bounded), found.degrees.tolist(), found.ranks.tolist()
    (True, [2, 3, 4, 6], [15, 35, 70, 210])
    >>> bool(found.sampled_radius <= found.radius), bool(found.cheaper[0])
    (True, True)
    """
    name = "bounded_entries"
    query = _validate.float_array(name, "query", query, min_ndim=2)
    key = _validate.float_array(name, "key", key, min_ndim=2)
    _validate.same_dtype(name, "key", key, "query", query.dtype)
    enable_gqa = _validate.flag(name, "enable_gqa", enable_gqa)
    _validate.attention_shapes(name, query, key, None, enable_gqa)
    (n_q, d), n_kv = query.shape[-2:], key.shape[-2]
    if attn_mask is not None:
        if not isinstance(attn_mask, Mask):
            raise _validate.wrong(
                name,
                "attn_mask",
                "is not a mask",
                "a mask of convbasis.masks, or None",
                type(attn_mask).__name__,
                TypeError,
            )
        attn_mask.check(name, n_q, n_kv)
    is_causal = _validate.flag(name, "is_causal", is_causal)
    scale = _validate.scale_or_default(name, scale, query)
    errors = relative_errors(name, epsilons)
    value_dim = d if value_dim is None else value_dim
    value_dim = _validate.integer(name, "value_dim", value_dim, minimum=1)
    sample_rows = _validate.integer(name, "sample_rows", sample_rows, minimum=0)
    check_finite = _validate.flag(name, "check_finite", check_finite)
    threads = _validate.threads(name, num_threads)
    lead, query, key = query.shape[:-2], _layout.operand(query), _layout.operand(key)
    if check_finite:
        _validate.finite(name, [("query", query), ("key", key)], threads)

    _, query_norms, key_norms, radius, sampled = _core.logit_range(
        query, key, scale, is_causal, None, sample_rows, threads
    )
    seen = min(n_q, n_kv) if is_causal else n_kv
    group = query.shape[1] // max(key.shape[1], 1)
    largest_query = largest_entry(query)
    largest_key = np.repeat(largest_entry(key[:, :, :seen]), group, axis=1)
    to_paper = math.sqrt(abs(scale) * d)
    balanced = to_paper * np.sqrt(largest_query) * np.sqrt(largest_key)
    threshold = math.sqrt(math.log(max(n_kv, 1)))

    model = cost_model(query.dtype)
    mean_zero = not is_causal and attn_mask is None
    pairs = seen * (seen + 1) / 2 + (n_q - seen) * seen if is_causal else n_q * n_kv
    unit = float(np.finfo(query.dtype).eps) / 2
    shape = (*radius.shape, len(errors))
    degrees, ranks = np.full(shape, -1), np.full(shape, -1)
    shares, seconds = np.ones(shape), np.zeros(shape)
    exact_seconds = 1e-9 * model.exact * pairs * (d + value_dim)
    for e, epsilon in enumerate(errors):
        radii = _core.degree_radii(d, epsilon, unit, mean_zero, max(n_q, seen))
        for head in np.ndindex(radius.shape):
            degree = _core.polynomial_degree(epsilon, radius[head], unit, mean_zero)
            if degree is not None:
                degrees[(*head, e)] = degree
                ranks[(*head, e)] = _core.feature_count(d, degree)
            plan = _core.plan_polynomial(
                query_norms[head],
                key_norms[head[0], head[1] // group, :seen],
                d,
                value_dim,
                pairs / max(n_q * seen, 1),
                epsilon,
                unit,
                mean_zero,
                (model.exact, model.exact),
                radii,
            )
            rows, columns = n_q - len(plan["exact_rows"]), seen - len(plan["exact_columns"])
            shares[(*head, e)] = 1.0 - rows * columns / max(n_q * seen, 1)
            seconds[(*head, e)] = 1e-9 * plan["cost_polynomial"]

    def by_head(array: Any) -> Any:
        return array.reshape(lead + array.shape[2:])[()]

    return BoundedEntries(
        num_queries=n_q,
        num_keys=n_kv,
        head_dim=d,
        value_dim=value_dim,
        epsilons=errors,
        entry_bound=by_head(to_paper * np.maximum(largest_query, largest_key)),
        balanced_entry_bound=by_head(balanced),
        threshold=threshold,
        bounded=by_head(balanced < threshold),
        radius=by_head(radius),
        sampled_radius=by_head(sampled),
        degrees=by_head(degrees),
        ranks=by_head(ranks),
        exact_shares=by_head(shares),
        polynomial_seconds=by_head(seconds),
        exact_seconds=by_head(np.full(radius.shape, exact_seconds)),
    )


def relative_errors(function: str, epsilons: object) -> tuple[float, ...]:
    """`epsilons` as numbers above 0."""
    if not isinstance(epsilons, (Sequence, np.ndarray)) or isinstance(epsilons, str):
        raise _validate.wrong(
            function, "epsilons", "is no sequence", "numbers", type(epsilons).__name__, TypeError
        )
    errors = tuple(_validate.number(function, "epsilons", epsilon) for epsilon in epsilons)
    if not errors or min(errors) <= 0.0:
        raise _validate.wrong(
            function, "epsilons", "are not positive", "at least one number, all above 0", errors
        )
    return errors


def largest_entry(array: np.ndarray) -> np.ndarray:
    """Largest |entry| of every head in float64, shape (batch, heads)."""
    high = array.max(axis=(2, 3), initial=0.0).astype(np.float64)
    return np.maximum(high, -array.min(axis=(2, 3), initial=0.0).astype(np.float64))
