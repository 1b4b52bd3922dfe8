"""Whether the entries of Q and K are small enough for polynomial attention, in linear time.

Source: Alman and Song, *Fast Attention Requires Bounded Entries*, arXiv 2302.13214.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import _core, _layout, _validate
from ._entries_report import BoundedEntries
from ._polynomial_cost import Costs
from ._polynomial_plan import Chooser, without_unseen_keys
from .masks import Mask


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
        Keys that it hides from every query do not count. Otherwise it can only narrow the range:
        `radius` is that without it. The costs are those of its share of the entries.
    is_causal : bool
        Query i sees keys 0..i, as with ``attn_mask=Causal()``; keys past the last query do not
        count.
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
    ValueError, TypeError, NotImplementedError
        If an argument breaks a rule or cannot be honoured.

    Notes
    -----
    Time O((n_q + n_kv) d + sample_rows n_kv d) a head, and the sorting of the norms; memory
    O(n_q + n_kv), and a copy of the keys where a mask hides some. Costs are those by which
    `polynomial_attention` chooses, from rates that follow from `cost_model`.

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
    (True, [2, 3, 4, 7], [15, 35, 70, 330])
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
    mask, mask_is_causal = None, False
    if attn_mask is not None:
        mask, mask_is_causal = _layout.native_mask(name, attn_mask, n_q, n_kv)
    is_causal = _validate.flag(name, "is_causal", is_causal) or mask_is_causal
    scale = _validate.scale_or_default(name, scale, query)
    errors = relative_errors(name, epsilons)
    value_dim = d if value_dim is None else value_dim
    value_dim = _validate.integer(name, "value_dim", value_dim, minimum=1)
    sample_rows = _validate.integer(name, "sample_rows", sample_rows, minimum=0)
    check_finite = _validate.flag(name, "check_finite", check_finite)
    threads = _validate.threads(name, num_threads)
    lead, dtype, query, key = query.shape[:-2], query.dtype, *map(_layout.operand, (query, key))
    if check_finite:
        _validate.finite(name, [("query", query), ("key", key)], threads)
    value = np.broadcast_to(query.dtype.type(0), (*key.shape[:3], value_dim))
    inputs = without_unseen_keys(
        _layout.AttentionInputs(query, key, value, lead, dtype, is_causal, scale, mask, attn_mask)
    )

    _, query_norms, key_norms, radius, sampled = _core.logit_range(
        query, inputs.key, scale, is_causal, sample_rows, threads
    )
    seen = inputs.key.shape[2]
    group = query.shape[1] // max(key.shape[1], 1)
    largest_query = largest_entry(query)
    largest_key = np.repeat(largest_entry(inputs.key), group, axis=1)
    to_paper = math.sqrt(abs(scale) * d)
    balanced = to_paper * np.sqrt(largest_query) * np.sqrt(largest_key)
    threshold = math.sqrt(math.log(max(n_kv, 1)))

    shape = (*radius.shape, len(errors))
    degrees, ranks = np.full(shape, -1), np.full(shape, -1)
    shares, seconds = np.ones(shape), np.zeros(shape)
    exact_seconds = 1e-9 * Costs(inputs).exact
    for e, epsilon in enumerate(errors):
        chooser = Chooser(inputs, epsilon)
        for head in np.ndindex(radius.shape):
            at = (*head, e)
            degree = _core.polynomial_degree(epsilon, radius[head], chooser.unit, False)
            if degree is not None:
                degrees[at] = degree
                ranks[at] = _core.feature_count(d, degree)
            plan = chooser.cheapest(query_norms[head], key_norms[head[0], head[1] // group])
            seconds[at] = exact_seconds if plan is None else 1e-9 * plan.cost
            if plan is not None:
                rows, columns = n_q - plan.rows.size, seen - plan.columns.size
                shares[at] = 1.0 - rows * columns / max(n_q * seen, 1)

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
    """`epsilons` as numbers between 0 and 1."""
    if not isinstance(epsilons, (Sequence, np.ndarray)) or isinstance(epsilons, str):
        raise _validate.wrong(
            function, "epsilons", "is no sequence", "numbers", type(epsilons).__name__, TypeError
        )
    errors = tuple(_validate.number(function, "epsilons", epsilon) for epsilon in epsilons)
    if not errors or min(errors) <= 0.0 or max(errors) >= 1.0:
        raise _validate.wrong(
            function,
            "epsilons",
            "are no errors",
            "at least one number, all between 0 and 1",
            errors,
        )
    return errors


def largest_entry(array: np.ndarray) -> np.ndarray:
    """Largest |entry| of every head in float64, shape (batch, heads)."""
    high = array.max(axis=(2, 3), initial=0.0).astype(np.float64)
    low = array.min(axis=(2, 3), initial=0.0).astype(np.float64)
    return np.asarray(np.maximum(high, 0.0 - low))
