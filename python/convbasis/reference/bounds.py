"""What a deviation of the logits can do to the output, and when recovery is guaranteed.

Let the logits of two attentions differ by at most ``dev`` in every visible entry. Weights and row
sums then change by a factor within ``exp(+-dev)``, and

    ``max |Y - Y~| <= 2 (exp(dev) - 1) max |V|``,

one ``exp(dev) - 1`` for the numerators and one for the row sums. Recovery from epsilon-close
logits leaves ``dev <= 2 epsilon``.

Source: Conv-Basis, theorem on attention inference with a k-conv basis.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .attention import visible
from .conv import Basis, basis_to_dense


def a_posteriori_bound(deviation: float, value: ArrayLike) -> float:
    """``2 (exp(deviation) - 1) max |V|``: bound of the output error from a measured deviation.

    Parameters
    ----------
    deviation : float
        An upper bound of ``|H~ - H|`` over the visible entries, as from `logit_deviation`.
    value : array_like
        The value rows.

    Returns
    -------
    float

    Examples
    --------
    >>> from convbasis import reference
    >>> reference.a_posteriori_bound(0.0, [[3.0]])
    0.0
    """
    return float(2.0 * np.expm1(deviation) * np.max(np.abs(value), initial=0.0))


def theorem_bound(epsilon: float, value: ArrayLike) -> float:
    """``2 (exp(2 epsilon) - 1) max |V|``: the same bound before recovery, from its promise."""
    return a_posteriori_bound(2.0 * epsilon, value)


def logit_deviation(logits: ArrayLike, basis: Basis) -> float:
    """``max |H~[i, j] - H[i, j]|`` over the lower triangle, ``H`` the matrix of `basis`.

    Parameters
    ----------
    logits : array_like, shape (n, num_columns)
    basis : Basis

    Returns
    -------
    float
        0 for an empty matrix.
    """
    logits = np.asarray(logits, dtype=np.float64)
    gap = np.abs(logits - basis_to_dense(basis))
    return float(np.max(gap[visible(*logits.shape, is_causal=True)], initial=0.0))


def non_degeneracy(basis: Basis, window: int) -> float:
    """The largest ``delta`` for which a basis is (T, delta)-non-degenerate.

    That is the least ``|| b_j[0:T] + ... + b_i[0:T] ||_1`` over ``j <= i``; in strip form the
    least l1 distance between the heads of any two kernels, the kernel 0 before the first strip
    counted among them.

    Returns
    -------
    float
        Infinity for a basis without strips.

    Raises
    ------
    ValueError
        If a strip has fewer than ``T`` rows: the basis is then degenerate for every ``delta``.
    """
    if np.any(basis.sizes < window):
        raise ValueError(
            "[non_degeneracy] window is longer than a strip; expected at most "
            f"{basis.sizes.min()}; got {window}"
        )
    heads = np.concatenate([np.zeros((1, window)), basis.kernels[:, :window]]).astype(np.float64)
    pairs = ((i, j) for i in range(len(heads)) for j in range(i))
    return float(min((np.abs(heads[i] - heads[j]).sum() for i, j in pairs), default=np.inf))


def is_non_degenerate(basis: Basis, window: int, delta: float) -> bool:
    """Whether all ``m_r >= T`` and all sums of consecutive heads are at least `delta` in l1.

    Source: Conv-Basis, definition of a non-degenerate k-conv basis.
    """
    return not np.any(basis.sizes < window) and non_degeneracy(basis, window) >= delta
