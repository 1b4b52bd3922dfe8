"""Whether the entries of an input are small enough for polynomial attention.

Source: AS23. With ``d = O(log n)``, logits ``q . k / d`` and all entries of Q, K and V at most
``B`` in size: for ``B = o(sqrt(log n))`` attention takes ``n^(1 + o(1))`` time; for
``B = Theta(sqrt(log n))`` no algorithm is truly subquadratic, unless the strong exponential time
hypothesis (SETH) fails.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .attention import attention_logits, scale_or_default, visible
from .features import feature_count
from .polynomial import polynomial_degree
from .polynomial_attention import row_middles


@dataclass(frozen=True)
class BoundedEntries:
    """The numbers of `bounded_entries`; ``str()`` gives the finding in one sentence."""

    num_keys: int  #: n
    head_dim: int  #: d
    entry_bound: float  #: B, the paper's: largest |entry| of Q and K once the scale is 1/d
    balanced_entry_bound: float  #: the same after moving a factor from the larger to the smaller
    threshold: float  #: sqrt(log n)
    low: float  #: least visible logit
    high: float  #: largest visible logit
    radius: float  #: R: half the widest row's range of logits, which P has to cover
    degrees: dict[float, int | None]  #: least degree by relative error; None if there is none
    ranks: dict[float, int | None]  #: C(d + g, g) features by relative error

    @property
    def bounded(self) -> bool:
        """Whether B is below the threshold, however the factor is shared by Q and K."""
        return self.balanced_entry_bound < self.threshold

    def __str__(self) -> str:
        side = "below" if self.bounded else "not below"
        first = min(self.degrees, key=lambda epsilon: abs(math.log(epsilon / 0.01)))
        rank = self.ranks[first]
        if rank is None:
            cost = f"no degree reaches a relative error of {first:g}"
        else:
            fewer = "fewer" if rank < self.num_keys else "no fewer"
            cost = (
                f"a relative error of {first:g} takes degree {self.degrees[first]}, "
                f"{rank} features, {fewer} than the {self.num_keys} keys"
            )
        return (
            f"Entries of {self.balanced_entry_bound:.3g} are {side} sqrt(log n) = "
            f"{self.threshold:.3g}, and logits range over {2 * self.radius:.3g} in a row: {cost}."
        )


def bounded_entries(
    query: ArrayLike,
    key: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    epsilons: tuple[float, ...] = (0.1, 0.01, 0.001, 1e-6),
) -> BoundedEntries:
    """What decides whether polynomial attention applies to an input.

    Parameters
    ----------
    query : array_like, shape (n_q, d)
    key : array_like, shape (n_kv, d)
    mask, is_causal, scale
        As in `attention`.
    epsilons : tuple of float
        Relative errors of the weights to give degrees and ranks for.

    Returns
    -------
    BoundedEntries
        ``entry_bound`` is ``sqrt(|scale| d) max(|Q|, |K|)``: with entries scaled so, the logits
        are ``q . k / d``, as the paper has them. The default scale is ``1 / sqrt(d)``, hence a
        factor ``d^(1/4)``. Subtracting the mean key changes the entries,
        not ``radius``, which is that of single rows.

    Raises
    ------
    ValueError
        If the head dimensions differ or are 0.

    Notes
    -----
    The transition is one of growing ``n``; for one input the rank beside the number of keys says
    more. Time O(n_q n_kv d), memory O(n_q n_kv).

    Examples
    --------
    >>> from convbasis import reference
    >>> print(reference.bounded_entries([[0.5]] * 8, [[1.0], [-1.0]] * 8))
    Entries of 0.707 are below sqrt(log n) = 1.67, and logits range over 1 in a row: a relative \
error of 0.01 takes degree 2, 3 features, fewer than the 16 keys.
    """
    query, key = np.asarray(query, dtype=np.float64), np.asarray(key, dtype=np.float64)
    logits = attention_logits(query, key, scale=scale)
    seen = visible(*logits.shape, is_causal=is_causal)
    if mask is not None:
        seen = seen & np.asarray(mask, dtype=bool)
    head_dim = query.shape[-1]
    scale = scale_or_default(scale, head_dim)
    # Centring only moves whole rows, whose middles are taken off anyway.
    radius = row_middles(logits, seen)[1]
    degrees = {epsilon: polynomial_degree(epsilon, -radius, radius) for epsilon in epsilons}
    ranks = {
        epsilon: None if degree is None else feature_count(head_dim, degree)
        for epsilon, degree in degrees.items()
    }
    largest_query = float(np.max(np.abs(query), initial=0.0))
    largest_key = float(np.max(np.abs(key), initial=0.0))
    to_paper = math.sqrt(abs(scale) * head_dim)
    return BoundedEntries(
        num_keys=len(key),
        head_dim=head_dim,
        entry_bound=to_paper * max(largest_query, largest_key),
        balanced_entry_bound=to_paper * math.sqrt(largest_query * largest_key),
        threshold=math.sqrt(math.log(max(len(key), 1))),
        low=float(np.min(logits, where=seen, initial=np.inf)),
        high=float(np.max(logits, where=seen, initial=-np.inf)),
        radius=radius,
        degrees=degrees,
        ranks=ranks,
    )
