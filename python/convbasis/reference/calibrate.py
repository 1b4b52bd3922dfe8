"""Calibrated attention: some keys exactly, the others by one convolution of weighted values.

For one head, logits ``H`` and a split of the keys of each row i into exact and far ones:

    ``w_ij = exp(H_ij)`` for exact keys, ``w_ij = alpha_i tau[I - J] beta_j`` for far keys

and ``y_i = sum_j w_ij v_j / sum_j w_ij``, with I and J the blocks of 64 of row and key. Exact are
the keys of the row's own block and of `near_blocks` before it, *heavy* keys, key blocks retrieved
for the query block, and keys at *single* lags ``i - j``. ``beta`` (a weight a key) and ``tau`` (a
weight a block lag) are fitted to the attention of sample rows; ``alpha`` comes from a few drawn
keys. The first four blocks take all keys exactly.

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

#: A lag is single above so many times the mean of its bin, and this share of all; so many at most.
OUTSTANDING, LEAST_SHARE, MOST_OUTSTANDING = 8, 0.02, 16


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


def block_lag_bins(first: int, blocks: int) -> Integers:
    """Borders of bins of block lags, from `first` to `blocks`, that grow by the root of two."""
    borders = [first]
    while borders[-1] < blocks:
        borders.append(min(math.ceil(borders[-1] * math.sqrt(2)), blocks))
    return np.array(borders)


def single_lags(masses: ArrayLike, borders: ArrayLike) -> Integers:
    """Lags that stand out from the mean of their bin; `borders` are of block lags."""
    masses = np.asarray(masses, np.float64)
    ends = np.minimum(BLOCK * np.asarray(borders), len(masses))
    found = [
        lag
        for begin, end in itertools.pairwise(ends)
        for lag in range(begin, end)
        if masses[lag] > OUTSTANDING * masses[begin:end].mean()
        and masses[lag] > LEAST_SHARE * masses.sum()
    ]
    return np.sort(np.array(sorted(found, key=lambda lag: -masses[lag])[:MOST_OUTSTANDING], int))


def fit_far(
    weights: ArrayLike, rows: ArrayLike, near_blocks: int
) -> tuple[Floats, Floats, Integers]:
    """``beta``, ``tau`` and single lags for the attention of some rows to keys that are not near.

    Iterative proportional fitting: in turn the factors of rows, of bins of block lags, and of keys
    are set so that the model has the masses of the given attention, but for that at single lags.

    Parameters
    ----------
    weights : array_like, shape (rows, n)
        Rows of the softmax.
    rows : array_like of int, shape (rows,)
    near_blocks : int

    Returns
    -------
    key_weights : ndarray, shape (n,)
        ``beta``, with mean 1.
    lag_weights : ndarray, shape (blocks,)
        ``tau`` by block lag; 64 times its sum is 1; 0 for near blocks.
    single : ndarray of int
        Lags that stand out.
    """
    weights = np.asarray(weights, np.float64)
    n = weights.shape[1]
    blocks = -(-n // BLOCK)
    lags = np.asarray(rows)[:, None] - np.arange(n)
    block_lags = np.asarray(rows)[:, None] // BLOCK - np.arange(n) // BLOCK
    far = block_lags > near_blocks
    target = np.where(far, weights, 0.0)
    if target.sum() == 0 or near_blocks + 1 >= blocks:
        return np.zeros(n), np.zeros(blocks), np.zeros(0, np.int64)
    borders = block_lag_bins(near_blocks + 1, blocks)
    single = single_lags(np.bincount(lags[far], target[far], n), borders)
    target[np.isin(lags, single)] = 0.0
    key_masses, row_masses = target.sum(0), target.sum(1)
    total = row_masses.sum()
    if total == 0:
        return np.zeros(n), np.zeros(blocks), single
    bins = np.searchsorted(borders, block_lags[far], side="right") - 1
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
    lag_weights = np.zeros(blocks)
    lag_weights[near_blocks + 1 :] = np.repeat(bin_weights, lengths)
    return key_weights / key_weights.mean(), lag_weights / (BLOCK * lag_weights.sum()), single


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
) -> list[tuple[Integers, Floats]]:
    """For each query block the key blocks before its near ones by falling weight, and their shares.

    Weights are those of the block's mean query, heavy keys apart; shares are of the weights of all
    keys up to the end of the block. Of equal ones the later comes first.
    """
    query = np.asarray(query, np.float64)
    ranked = []
    for first in range(0, len(query), BLOCK):
        blocks = max(first // BLOCK - near_blocks, 0)
        mean = query[first : first + BLOCK].mean(0, keepdims=True)
        logits = attention_logits(mean, key, scale=scale)[0, : first + BLOCK]
        weights = np.exp(logits - logits.max())
        total = weights.sum()
        weights[[j for j in np.asarray(heavy, np.int64) if j < blocks * BLOCK]] = 0.0
        shares = weights[: blocks * BLOCK].reshape(blocks, BLOCK).sum(1) / total
        order = np.array(sorted(range(blocks), key=lambda b: (-shares[b], -b)), np.int64)
        ranked.append((order, shares[order]))
    return ranked


def take_largest(
    ranked: Sequence[tuple[Integers, Floats]], near_blocks: int, mean: int, most: int
) -> Integers:
    """How many ranked blocks each query block takes, of the first `most`, near ones apart.

    `mean` in the mean of the blocks that do not take all keys: those with the largest shares.
    """
    shares = [
        [
            share if block >= WHOLE_BLOCKS and key_block < block - near_blocks else 0.0
            for key_block, share in zip(order[:most], found[:most], strict=True)
        ]
        for block, (order, found) in enumerate(ranked)
    ]
    pool = sorted((share for row in shares for share in row if share > 0), reverse=True)
    wanted = mean * (len(ranked) - WHOLE_BLOCKS)
    if wanted <= 0:
        return np.zeros(len(ranked), np.int64)
    least = pool[wanted - 1] if wanted < len(pool) else 0.0
    return np.array([sum(share > 0 and share >= least for share in row) for row in shares])


@dataclass(frozen=True)
class CalibratedHead:
    """What one head takes exactly, and the model of the rest."""

    near_blocks: int
    retrieved: Sequence[ArrayLike]  # of each query block
    heavy: ArrayLike
    key_weights: ArrayLike  # beta; those of heavy keys do not count
    lag_weights: ArrayLike  # tau, by block lag
    lags: ArrayLike = ()  # single ones
    has_far: bool = True  # whether keys that are not exact count at all

    def exact_keys(self) -> NDArray[np.bool_]:
        """Which keys each row takes exactly, (n, n); none after the row's own."""
        taken = self.keys_of_blocks()
        n = len(taken)
        for lag in np.asarray(self.lags, np.int64):
            taken[np.arange(lag, n), np.arange(n - lag)] = True
        return taken

    def keys_of_blocks(self) -> NDArray[np.bool_]:
        """The same but for keys at single lags: alike for all rows of a block that see them."""
        n = len(np.asarray(self.key_weights))
        blocks = np.arange(n) // BLOCK
        taken = blocks[:, None] - blocks <= self.near_blocks
        taken[: WHOLE_BLOCKS * BLOCK] = True
        taken[:, np.asarray(self.heavy, np.int64)] = True
        for block, retrieved in enumerate(self.retrieved[WHOLE_BLOCKS:], WHOLE_BLOCKS):
            own = slice(block * BLOCK, (block + 1) * BLOCK)
            taken[own] |= np.isin(blocks, np.asarray(retrieved, np.int64))
        return np.asarray(np.tril(taken))

    def model(self, block: int) -> Floats:
        """Weights of all keys in the rows of a query block with ``alpha = 1``, (n); 0 if exact."""
        beta, tau = (np.asarray(w, np.float64) for w in (self.key_weights, self.lag_weights))
        first, n = block * BLOCK, len(beta)
        taken = self.keys_of_blocks()[min(first + BLOCK, n) - 1]
        far = ~taken & (np.arange(n) < first)
        return np.where(far, beta * tau[np.maximum(block - np.arange(n) // BLOCK, 0)], 0.0)


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
        Keys drawn for each query block, in proportion to `CalibratedHead.model`.
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
    n = len(exact)
    attention = np.exp(logits - logits.max(1, keepdims=True))
    model = np.concatenate(
        [np.tile(head.model(b), (min(BLOCK, n - b * BLOCK), 1)) for b in range(-(-n // BLOCK))]
    )
    alpha, far = np.zeros(n), np.zeros(n)
    for row in range(n):
        keys = np.asarray(drawn[row // BLOCK], np.int64)
        own = keys[~exact[row, keys]]
        if len(own):
            ratios = attention[row, own] / model[row, own]
            alpha[row] = ratios.mean()
            far[row] = ratios.sum() * model[row].sum() / len(keys)
    weights = np.where(exact, attention, alpha[:, None] * model if head.has_far else 0.0)
    total = weights.sum(1, keepdims=True)
    lse = logits.max(1) + np.log(total[:, 0])
    sums = np.where(exact, attention, 0.0).sum(1)
    return weights @ np.asarray(value, np.float64) / total, lse, far / (sums + far)
