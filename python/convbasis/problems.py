"""Structured attention problems with a known conv basis, for demonstrations, tests and timings.

The logits ``scale * Q K^T`` of these problems are, on and below the diagonal, a k-conv basis whose
starts and kernels are returned beside the arrays. NumPy only.

- `conv_problem`: sums of cosines by rotary pairs, with noise of a given size if wanted.
- `dyadic_conv_problem`: every logit and every kernel entry is exact in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ._problem_heads import Array, draw_starts, dyadic_head, noise_dimensions, rotary_head

__all__ = ["Problem", "conv_problem", "dyadic_conv_problem"]

Seed = int | np.random.SeedSequence | np.random.Generator
Head = tuple[Array, Array, Array, Array]  # query, key, starts, kernels


@dataclass(frozen=True, eq=False)
class Problem:
    """Arrays of one attention problem and the conv basis of its logits.

    Attributes
    ----------
    query, key : ndarray, shape (*batch, n, head_dim)
    value : ndarray, shape (*batch, n, value_dim)
    starts : ndarray of int64, shape (*batch, num_bases)
        True first column of each strip.
    scale : float
        To be passed on as ``scale=``.
    kernels : ndarray of float64, shape (*batch, num_bases, n)
        True logits of each strip by lag, without noise; 0 past the last row.
    epsilon : float
        Bound of the noise in the logits; 0 without noise.
    """

    query: NDArray[Any]
    key: NDArray[Any]
    value: NDArray[Any]
    starts: NDArray[np.int64]
    scale: float
    kernels: NDArray[np.float64]
    epsilon: float = 0.0


def conv_problem(
    n: int,
    head_dim: int,
    num_bases: int,
    *,
    batch: Sequence[int] = (),
    seed: Seed = 0,
    dtype: DTypeLike = np.float64,
    spread: float = 1.0,
    min_size: int | None = None,
    first_start: int = 0,
    value_dim: int | None = None,
    epsilon: float = 0.0,
) -> Problem:
    """Query and key whose causal logits have a known conv basis, by rotary pairs.

    A pair of dimensions holds ``(cos w i, sin w i)`` in query row ``i`` and
    ``a (cos(w j + p), sin(w j + p))`` in key row ``j``, where the amplitude ``a`` and the phase
    ``p`` belong to the strip of ``j``. Their product is ``a cos(w (i - j) - p)``, a function of
    the lag alone within a strip. An odd dimension left over holds a constant per strip.

    Parameters
    ----------
    n : int
        Sequence length, at least 1.
    head_dim : int
        At least 1; at least 2 with noise.
    num_bases : int
        Strips of each head, 1 to ``n - first_start``.
    batch : tuple of int
        Leading dimensions; every head has frequencies, starts and kernels of its own.
    seed : int, numpy.random.SeedSequence or numpy.random.Generator
        Passed to `numpy.random.default_rng`.
    dtype : dtype
        A real floating type, of query, key and value. The logits are exact up to its rounding.
    spread : float
        Root mean square of the logits of a strip, up to a factor of 1/2 to 3/2 drawn per strip.
    min_size : int, optional
        Least width of a strip. Default ``max(16, n // (4 num_bases))``, less where ``n`` has no
        room for that. The default RecoverOptions need 16.
    first_start : int
        Key rows before this column are 0, and so are their logits (noise apart).
    value_dim : int, optional
        Default `head_dim`. The value rows are normal random numbers.
    epsilon : float
        Noise: the last one (``head_dim < 4``) or two of the `head_dim` dimensions are taken from
        the signal. They hold random signs in the query and numbers in the key, drawn uniformly
        and so small that ``scale * sum |q| |k| <= epsilon``: no logit moves by more than
        `epsilon`, whatever the signs.

    Returns
    -------
    Problem
        ``scale`` is ``1 / sqrt(head_dim)``, the default of every attention function.

    Raises
    ------
    ValueError
        If an argument is out of its range, or `spread` is too small for kernels that differ by
        0.1 in l1 at their heads (10 times the default ``delta``), see Notes.

    Notes
    -----
    Any two kernels of a head, and each kernel and 0, differ by at least 0.1 in l1 over the first
    ``T = min(16, m_k)`` lags, ``m_k`` being the rows of the last strip: the basis is
    (T, 0.1)-non-degenerate in the sense of Conv-Basis (arXiv:2405.05219). Angles are multiples of
    ``2 pi`` over a power of two and are reduced in integers, so that long sequences lose no
    digits. Time and memory O(n (head_dim + num_bases)) per head.

    Examples
    --------
    >>> from convbasis.problems import conv_problem
    >>> problem = conv_problem(64, 8, 2, seed=1)
    >>> logits = problem.scale * problem.query @ problem.key.T
    >>> start = problem.starts[1]
    >>> bool(abs(logits[start + 5, start] - problem.kernels[1, 5]) < 1e-12)
    True
    """
    name = "conv_problem"
    check_sizes(name, n, head_dim, num_bases, first_start, spread)
    dtype = check_dtype(name, dtype, smallest_bytes=2)
    noise_dims = 0
    if epsilon != 0:
        if not (epsilon > 0 and head_dim >= 2):
            raise ValueError(
                f"[{name}] epsilon cannot be honoured; expected a positive number and "
                f"head_dim >= 2; got epsilon {epsilon}, head_dim {head_dim}"
            )
        noise_dims = 2 if head_dim >= 4 else 1
    scale = 1.0 / math.sqrt(head_dim)
    rng = np.random.default_rng(seed)

    def draw_head() -> Head:
        starts = draw_starts(name, rng, n, num_bases, min_size, first_start)
        query, key, kernels = rotary_head(
            name, rng, starts, n, head_dim - noise_dims, spread, scale
        )
        if noise_dims:
            signs, small = noise_dimensions(rng, n, noise_dims, epsilon / scale)
            query, key = np.hstack([query, signs]), np.hstack([key, small])
        return query, key, starts, kernels

    value_dim = head_dim if value_dim is None else value_dim
    return assemble(rng, draw_head, batch, n, value_dim, dtype, scale, epsilon)


def dyadic_conv_problem(
    n: int,
    head_dim: int,
    num_bases: int,
    *,
    batch: Sequence[int] = (),
    seed: Seed = 0,
    dtype: DTypeLike = np.float64,
    spread: float = 1.0,
    min_size: int | None = None,
    first_start: int = 0,
    value_dim: int | None = None,
) -> Problem:
    """A problem whose logits and kernels are exact in float32, in any order of summation.

    With ``p = head_dim - 2``, query row ``i`` is ``(onehot(i mod p), -i, 1)`` and key row ``j`` is
    ``(g[(c - j) mod p] for c < p, slope, slope * j)``, where ``g`` and ``slope`` belong to the
    strip of ``j``. The logit is ``g[(i - j) mod p] - slope (i - j)``: a pattern of period ``p``
    and a linear decay (as in ALiBi). All numbers are multiples of one power of two, below
    ``2^24`` of it, and `scale` is a power of two as well. For ``head_dim < 3`` there is no linear
    term, and ``p = head_dim``.

    Parameters
    ----------
    n, head_dim, num_bases, batch, seed, min_size, first_start, value_dim
        As in `conv_problem`.
    dtype : dtype
        float32 or float64 (or a longer type).
    spread : float
        Standard deviation of ``g`` times the scale. The decay over the whole length is 2 to 12
        times as much.

    Returns
    -------
    Problem
        ``scale`` is the power of two nearest to ``1 / sqrt(head_dim)``, in the exponent.

    Raises
    ------
    ValueError
        If an argument is out of its range, if the numbers do not fit into 24 bits (from about
        ``n = 2^21``), or if the kernels differ too little, as in `conv_problem`.

    Examples
    --------
    >>> import numpy as np
    >>> from convbasis.problems import dyadic_conv_problem
    >>> problem = dyadic_conv_problem(100, 8, 1, seed=1, dtype=np.float32)
    >>> logits = np.float32(problem.scale) * (problem.query @ problem.key.T)
    >>> bool(np.all(logits[:, 0] == problem.kernels[0]))
    True
    """
    name = "dyadic_conv_problem"
    check_sizes(name, n, head_dim, num_bases, first_start, spread)
    dtype = check_dtype(name, dtype, smallest_bytes=4)
    scale = 2.0 ** -round(math.log2(head_dim) / 2)
    rng = np.random.default_rng(seed)

    def draw_head() -> Head:
        starts = draw_starts(name, rng, n, num_bases, min_size, first_start)
        query, key, kernels = dyadic_head(name, rng, starts, n, head_dim, spread, scale)
        return query, key, starts, kernels

    value_dim = head_dim if value_dim is None else value_dim
    return assemble(rng, draw_head, batch, n, value_dim, dtype, scale, 0.0)


def assemble(
    rng: np.random.Generator,
    draw_head: Callable[[], Head],
    batch: Sequence[int],
    n: int,
    value_dim: int,
    dtype: np.dtype[Any],
    scale: float,
    epsilon: float,
) -> Problem:
    """Draw every head and stack them to a `Problem`."""
    batch = tuple(int(size) for size in batch)
    count = math.prod(batch)
    heads = [draw_head() for _ in range(max(count, 1))]  # one head gives an empty batch its shapes

    def stack(column: int) -> Array:
        rows = np.stack([head[column] for head in heads])[:count]
        return rows.reshape(*batch, *rows.shape[1:])

    value = rng.normal(size=(*batch, n, value_dim)).astype(dtype)
    return Problem(
        query=stack(0).astype(dtype),
        key=stack(1).astype(dtype),
        value=value,
        starts=stack(2).astype(np.int64),
        scale=scale,
        kernels=stack(3),
        epsilon=float(epsilon),
    )


def check_sizes(
    name: str, n: int, head_dim: int, num_bases: int, first_start: int, spread: float
) -> None:
    """Raise ValueError for sizes that no problem has."""
    if n < 1:
        raise ValueError(f"[{name}] n is too small; expected at least 1; got {n}")
    if head_dim < 1:
        raise ValueError(f"[{name}] head_dim is too small; expected at least 1; got {head_dim}")
    if not 0 <= first_start < n:
        raise ValueError(
            f"[{name}] first_start is no column; expected 0..{n - 1}; got {first_start}"
        )
    if not 1 <= num_bases <= n - first_start:
        raise ValueError(
            f"[{name}] num_bases is out of range; expected 1..{n - first_start}; got {num_bases}"
        )
    if not (spread > 0 and math.isfinite(spread)):
        raise ValueError(
            f"[{name}] spread is no size; expected a positive finite number; got {spread}"
        )


def check_dtype(name: str, dtype: DTypeLike, *, smallest_bytes: int) -> np.dtype[Any]:
    """The dtype of the arrays, a real floating type with enough digits."""
    dtype = np.dtype(dtype)
    if dtype.kind != "f" or dtype.itemsize < smallest_bytes:
        raise TypeError(
            f"[{name}] dtype cannot hold the problem; expected a real floating type of "
            f"at least {8 * smallest_bytes} bits; got {dtype}"
        )
    return dtype
