"""Knowing the error: exact sample rows, an interval for the whole, and the theorem's bound.

The error of one head is ``||Y - Y~||_F / ||Y||_F``. With ``e_i = ||y_i - y~_i||^2`` and
``w_i = ||y_i||^2`` it is the root of the ratio ``sum e / sum w``, and a sample of rows estimates
both sums. Rows are drawn one from each of equally long strata of the sequence, so that the first
rows (few keys) and the last (many) are always among them.
"""

from __future__ import annotations

import numpy as np

#: Rows computed exactly for an estimate. The interval narrows with the root of this number.
SAMPLE_ROWS = 128

#: Seed of the sample, so that a call repeated gives the same answer, decisions included.
SEED = 2405_05219

#: Two-sided 95 %: the upper end is exceeded in one of 40 cases when errors are well behaved.
Z_SCORE = 1.959964


def strata(num_rows: int, samples: int) -> np.ndarray:
    """Borders of `samples` strata of equal length (up to one row), shape (samples + 1,)."""
    return np.arange(samples + 1) * num_rows // max(samples, 1)


def stratified_rows(
    num_rows: int, samples: int = SAMPLE_ROWS, rng: np.random.Generator | None = None
) -> np.ndarray:
    """One random row from each stratum, increasing; all rows when there are no more.

    Parameters
    ----------
    num_rows : int
    samples : int
        Number of rows wanted.
    rng : numpy.random.Generator, optional
        Default: a generator with the fixed seed 240505219, so that equal sizes give equal rows.

    Returns
    -------
    ndarray of int64, shape (min(samples, num_rows),)
    """
    borders = strata(num_rows, min(samples, num_rows))
    rng = np.random.default_rng(SEED) if rng is None else rng
    return rng.integers(borders[:-1], borders[1:], dtype=np.int64)


def relative_error(
    errors: np.ndarray, weights: np.ndarray, num_rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Estimate ``sqrt(sum e / sum w)`` over all rows from stratified sample rows.

    Parameters
    ----------
    errors, weights : ndarray of float64, shape (..., samples)
        ``||y_i - y~_i||^2`` and ``||y_i||^2`` of the rows of `stratified_rows`.
    num_rows : int
        Rows of the whole sequence.

    Returns
    -------
    estimate : ndarray, shape (...)
        0 where all sampled errors are 0, infinity where only the weights are.
    interval : ndarray, shape (..., 2)
        Meant to hold the true value in 95 of 100 cases; a point when every row was sampled.

    Notes
    -----
    Row errors are often heavy-tailed, and the usual interval ``estimate +- 2 standard errors``
    then ends too low. Two remedies are combined, and the wider end of each side is taken:

    - a jackknife of the logarithm of the ratio, which cannot end below 0 and grows when one row
      carries the sum;
    - Hall's cubic correction for the skewness of the sample (P. Hall, *On the removal of skewness
      by transformation*, J. R. Statist. Soc. B 54, 1992), applied to the linearised ratio.

    Strata are not used to reduce the variance; the factor ``1 - samples / num_rows`` for a finite
    sequence is. Simulated at 128 of 4,096 rows, the truth was below the upper end in 95 % of draws
    for log-normal squared errors with sigma 1, 87 % with sigma 2, 84 % for Pareto tails of
    exponent 1.5, and in 99.8 % or more of each it was at most 1.5 times the upper end. An error
    confined to fewer than one row in a hundred may be missed by every sampled row, and then by
    the interval: no sample of this size can see it.
    """
    samples = errors.shape[-1]
    if samples == 0:
        zero = np.zeros(errors.shape[:-1])
        return zero, np.stack([zero, zero], axis=-1)
    lengths = np.diff(strata(num_rows, samples))
    errors, weights = errors * lengths, weights * lengths
    total_error, total_weight = errors.sum(-1), weights.sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(total_error == 0.0, 0.0, total_error / total_weight)
    unsampled = 1.0 - samples / num_rows
    sure = (ratio == 0.0) | ~np.isfinite(ratio) | (unsampled == 0.0)
    errors = np.where(sure[..., None], 1.0, errors / np.where(sure, 1.0, total_error)[..., None])
    weights = np.where(sure[..., None], 1.0, weights / np.where(sure, 1.0, total_weight)[..., None])
    spread = np.sqrt(unsampled) * jackknife_error(errors, weights) * Z_SCORE
    skew_low, skew_high = skewness_corrected(errors, weights, unsampled)
    low = np.minimum(np.exp(-spread), np.maximum(skew_low, 0.0))
    high = np.maximum(np.exp(spread), skew_high)
    factors = np.where(sure[..., None], 1.0, np.stack([low, high], axis=-1))
    return np.sqrt(ratio), np.sqrt(ratio[..., None] * factors)


def jackknife_error(errors: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Standard error of ``log(sum e / sum w)`` by leaving out one row at a time.

    Both arrays sum to 1 along the last axis, so that the sums without row i are ``1 - e_i``.
    """
    samples = errors.shape[-1]
    tiny = 1e-12  # one row may carry all of the sum
    left_out = np.log(np.maximum(1.0 - errors, tiny) / np.maximum(1.0 - weights, tiny))
    deviation = left_out - left_out.mean(-1, keepdims=True)
    spread: np.ndarray = np.sqrt((samples - 1) / samples * (deviation**2).sum(-1))
    return spread


def skewness_corrected(
    errors: np.ndarray, weights: np.ndarray, unsampled: float
) -> tuple[np.ndarray, np.ndarray]:
    """Ends of Hall's interval for ``(sum e / sum w) / estimate``, from arrays that sum to 1."""
    samples = errors.shape[-1]
    influence = (errors - weights) * samples
    deviation = np.sqrt((influence**2).mean(-1))
    safe = np.where(deviation > 0.0, deviation, 1.0)
    skewness = (influence**3).mean(-1) / safe**3 / np.sqrt(samples)
    skewness = np.where(np.abs(skewness) < 1e-6, 1e-6, skewness)
    standard_error = deviation * np.sqrt(unsampled / samples)

    def student(quantile: float) -> np.ndarray:
        """The t of the cubic ``t + a t^2 / 3 + a^2 t^3 / 27 + a / 6 = quantile``."""
        return 3.0 / skewness * (np.cbrt(1.0 + skewness * (quantile - skewness / 6.0)) - 1.0)

    return 1.0 - standard_error * student(Z_SCORE), 1.0 - standard_error * student(-Z_SCORE)


def theorem_bound(deviation: np.ndarray, largest_value: np.ndarray) -> np.ndarray:
    """``2 (exp(deviation) - 1) max|V|``, a bound of ``max|Y - Y~|``.

    Source: Conv-Basis (arXiv 2405.05219), theorem on attention inference, with the promised
    ``2 epsilon`` replaced by a measured ``max|H~ - H|``. Infinite where that overflows.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return np.where(largest_value == 0.0, 0.0, 2.0 * np.expm1(deviation) * largest_value)
