"""Calibrated attention: some keys exactly, the others by one convolution of weighted values.

For one head, logits ``H`` and a split of the keys of each row i into exact and far ones:

    ``w_ij = exp(H_ij)`` for exact keys, ``w_ij = alpha_i tau[i - j] beta_j`` for far keys

and ``y_i = sum_j w_ij v_j / sum_j w_ij``. Exact are the keys of the row's own block and of
`near_blocks` before it, *heavy* keys, and key blocks retrieved for the query block. ``beta`` (a
weight a key) and ``tau`` (a weight a lag) are fitted to the attention of sample rows; ``alpha``
comes from a few drawn keys. Blocks have 64 rows; the first four take all keys exactly.

Not of a paper: this project's own extension of conv bases to content-dependent logits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .attention import attention_logits

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: Rows of a block, and query blocks at the start that take all keys exactly.
BLOCK, WHOLE_BLOCKS = 64, 4

#: Rounds of the fit, and what draws masses to equal ones: shares of the mean mass.
ITERATIONS, KEY_PRIOR, LAG_PRIOR = 4, 0.2, 0.02

#: A lag has a bin of its own above so many times the mean of its bin, and this share of all.
OUTSTANDING, LEAST_SHARE, MOST_OUTSTANDING = 8, 0.002, 16


def uniform_draw(seed: int, a: int, b: int, c: int = 0) -> float:
    """A number in [0, 1) that depends on its arguments alone: SplitMix64 of all of them."""
    whole = 2**64 - 1
    x = seed
    for index in (a, b, c):
        x = x + 0x9E3779B97F4A7C15 * (index + 1) & whole
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & whole
        x = (x ^ x >> 27) * 0x94D049BB133111EB & whole
        x ^= x >> 31
    return (x >> 11) * 2.0**-53


def sample_rows(seed: int, head: int, n: int, count: int) -> Integers:
    """One row from each of `count` equal parts of the rows after the whole blocks."""
    first = WHOLE_BLOCKS * BLOCK
    borders = [first + (n - first) * part // count for part in range(count + 1)]
    parts = enumerate(itertools.pairwise(borders))
    return np.array(
        [
            begin + int(uniform_draw(seed, head, -1, part) * (end - begin))
            for part, (begin, end) in parts
        ]
    )


def lag_bins(masses: ArrayLike, window: int) -> Integers:
    """Borders of bins of lags, from `window` to n; a lag that stands out is a bin of its own."""
    masses = np.asarray(masses, np.float64)
    n = len(masses)
    borders = [window]
    while borders[-1] < n:
        borders.append(min(max(borders[-1] + 8, math.ceil(borders[-1] * math.sqrt(2))), n))
    found = [
        lag
        for begin, end in itertools.pairwise(borders)
        for lag in range(begin, end)
        if masses[lag] > OUTSTANDING * masses[begin:end].mean()
        and masses[lag] > LEAST_SHARE * masses.sum()
    ]
    found = sorted(found, key=lambda lag: -masses[lag])[:MOST_OUTSTANDING]
    return np.unique([*borders, *found, *(lag + 1 for lag in found)])


def fit_far(weights: ArrayLike, rows: ArrayLike, window: int) -> tuple[Floats, Floats]:
    """``beta`` and ``tau`` for the attention of some rows to keys at least `window` before them.

    Iterative proportional fitting: in turn the factors of rows, of bins of lags, and of keys are
    set so that the model has the masses of the given attention.

    Parameters
    ----------
    weights : array_like, shape (rows, n)
        Rows of the softmax.
    rows : array_like of int, shape (rows,)
    window : int

    Returns
    -------
    key_weights : ndarray, shape (n,)
        ``beta``, with mean 1.
    lag_weights : ndarray, shape (n,)
        ``tau``, with sum 1; 0 below `window`.
    """
    weights = np.asarray(weights, np.float64)
    n = weights.shape[1]
    lags = np.asarray(rows)[:, None] - np.arange(n)
    far = lags >= window
    target = np.where(far, weights, 0.0)
    key_masses, row_masses = target.sum(0), target.sum(1)
    total = row_masses.sum()
    if total == 0 or window >= n:
        return np.zeros(n), np.zeros(n)
    borders = lag_bins(np.bincount(lags[far], target[far], n), window)
    bins = np.searchsorted(borders, lags[far], side="right") - 1
    lengths = np.diff(borders)
    bin_masses = np.bincount(bins, target[far], len(lengths))
    key_prior, bin_prior = KEY_PRIOR * total / n, LAG_PRIOR * total / len(lengths)

    key_weights, bin_weights = np.ones(n), np.ones(len(lengths))
    for _ in range(ITERATIONS):
        model = far_model(far, bins, key_weights, bin_weights, row_masses)
        masses = np.bincount(bins, model[far], len(lengths))
        bin_weights *= (bin_masses + bin_prior) / (masses + bin_prior)
        model = far_model(far, bins, key_weights, bin_weights, row_masses)
        key_weights *= (key_masses + key_prior) / (model.sum(0) + key_prior)
    lag_weights = np.zeros(n)
    lag_weights[window:] = np.repeat(bin_weights, lengths)
    return key_weights / key_weights.mean(), lag_weights / lag_weights.sum()


def far_model(
    far: NDArray[np.bool_],
    bins: Integers,
    key_weights: Floats,
    bin_weights: Floats,
    row_masses: Floats,
) -> Floats:
    """The model's weights, each row with its mass; `bins` are those of the entries in `far`."""
    model = np.where(far, key_weights, 0.0)
    model[far] *= bin_weights[bins]
    sums = model.sum(1, keepdims=True)
    return np.asarray(model * (row_masses[:, None] / np.where(sums > 0, sums, 1.0)))


def heavy_keys(masses: ArrayLike, sinks: int, count: int) -> Integers:
    """The first `sinks` keys, and of the others those with the largest masses above 0."""
    masses = np.asarray(masses, np.float64)
    order = sorted(range(sinks, len(masses)), key=lambda key: (-masses[key], key))
    others = [key for key in order[:count] if masses[key] > 0]
    return np.array(sorted([*range(min(sinks, len(masses))), *others]), np.int64)


def rank_key_blocks(
    query: ArrayLike, key: ArrayLike, heavy: ArrayLike, near_blocks: int, *, scale: float
) -> list[Integers]:
    """For each query block the key blocks before its near ones, by falling weight.

    Weights are those of the block's mean query, heavy keys apart; of equal ones the later comes
    first.
    """
    query = np.asarray(query, np.float64)
    ranked = []
    for first in range(0, len(query), BLOCK):
        blocks = max(first // BLOCK - near_blocks, 0)
        mean = query[first : first + BLOCK].mean(0, keepdims=True)
        logits = attention_logits(mean, key, scale=scale)[0]
        logits[np.asarray(heavy, np.int64)] = -np.inf
        seen = logits[: blocks * BLOCK]
        masses = np.exp(seen - seen.max(initial=-1e300)).reshape(blocks, BLOCK).sum(1)
        ranked.append(np.array(sorted(range(blocks), key=lambda b: (-masses[b], -b)), np.int64))
    return ranked


@dataclass(frozen=True)
class CalibratedHead:
    """What one head takes exactly, and the model of the rest."""

    near_blocks: int
    retrieved: Sequence[ArrayLike]  # of each query block
    heavy: ArrayLike
    key_weights: ArrayLike  # beta; those of heavy keys do not count
    lag_weights: ArrayLike  # tau
    has_far: bool = True  # whether keys that are not exact count at all

    def exact_keys(self) -> NDArray[np.bool_]:
        """Which keys each row takes exactly, (n, n); none after the row's own."""
        n = len(np.asarray(self.key_weights))
        blocks = np.arange(n) // BLOCK
        taken = blocks[:, None] - blocks <= self.near_blocks
        taken[: WHOLE_BLOCKS * BLOCK] = True
        taken[:, np.asarray(self.heavy, np.int64)] = True
        for block, retrieved in enumerate(self.retrieved[WHOLE_BLOCKS:], WHOLE_BLOCKS):
            own = slice(block * BLOCK, (block + 1) * BLOCK)
            taken[own] |= np.isin(blocks, np.asarray(retrieved, np.int64))
        return np.asarray(np.tril(taken))

    def draw_weights(self, block: int) -> Floats:
        """What far keys of a query block are drawn in proportion to; 0 for the others.

        The key's weight times that of the lag between both blocks.
        """
        beta, tau = (np.asarray(w, np.float64) for w in (self.key_weights, self.lag_weights))
        first = block * BLOCK
        lags = np.maximum(first - np.arange(len(beta)) // BLOCK * BLOCK, 0)
        exact = self.exact_keys()[min(first + BLOCK, len(beta)) - 1]
        far = ~exact & (np.arange(len(beta)) < first)
        return np.where(far, beta * tau[lags], 0.0)


def draw_keys(weights: ArrayLike, count: int, offset: float) -> Integers:
    """`count` keys at even distances, the first at `offset`, of the running sum of the weights."""
    running = np.cumsum(np.asarray(weights, np.float64))
    if running[-1] == 0:
        return np.zeros(0, np.int64)
    places = (np.arange(count) + offset) * running[-1] / count
    return np.asarray(np.searchsorted(running, places, side="right"))


def calibrated_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    head: CalibratedHead,
    drawn: Sequence[ArrayLike],
    *,
    scale: float,
) -> tuple[Floats, Floats, Floats]:
    """Causal attention of one head by a calibration.

    Parameters
    ----------
    query, key : array_like, shape (n, d)
    value : array_like, shape (n, d_v)
    head : CalibratedHead
    drawn : sequence of array_like of int
        Keys drawn for each query block, in proportion to `CalibratedHead.draw_weights`.
    scale : float

    Returns
    -------
    out : ndarray, shape (n, d_v)
    lse : ndarray, shape (n,)
        Logarithm of the sum of a row's weights.
    far_share : ndarray, shape (n,)
        Share of the far keys in a row's attention, as far as the drawn keys tell.
    """
    logits = attention_logits(query, key, scale=scale)
    logits[np.triu_indices(len(logits), 1)] = -np.inf
    exact = head.exact_keys()
    beta, tau = (np.asarray(w, np.float64) for w in (head.key_weights, head.lag_weights))
    lags = np.subtract.outer(np.arange(len(beta)), np.arange(len(beta)))
    top = logits.max(1, keepdims=True)
    attention = np.exp(logits - top)
    model = np.where(lags >= 0, tau[np.maximum(lags, 0)] * beta, 0.0)
    sums = np.where(exact, attention, 0.0).sum(1)
    alpha, far = np.zeros(len(beta)), np.zeros(len(beta))
    for block, listed in enumerate(drawn):
        keys = np.asarray(listed, np.int64)
        rows = slice(block * BLOCK, (block + 1) * BLOCK)
        if len(keys) == 0:
            continue
        wanted = head.draw_weights(block)
        seen = (attention[rows, keys] / wanted[keys]).sum(1)
        modelled = (model[rows, keys] / wanted[keys]).sum(1)
        alpha[rows] = np.where(modelled > 0, seen / np.where(modelled > 0, modelled, 1.0), 0.0)
        far[rows] = seen * wanted.sum() / len(keys)
    weights = np.where(exact, attention, alpha[:, None] * model if head.has_far else 0.0)
    total = weights.sum(1, keepdims=True)
    lse = (top + np.log(total))[:, 0]
    return weights @ np.asarray(value, np.float64) / total, lse, far / (sums + far)
