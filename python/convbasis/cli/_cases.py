"""One comparison of `convbasis check`, and how comparisons are made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import reference
from ..basis import ConvBasis
from ._plain import budget, plain_attention, relative_error

Arrays = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


@dataclass(frozen=True)
class Case:
    """An error and what it may be at most."""

    name: str
    error: float
    budget: float

    @property
    def passed(self) -> bool:
        return self.error <= self.budget  # false for NaN

    @property
    def share(self) -> float:
        """The part of the budget that is used; infinity for what cannot be told."""
        if math.isnan(self.error):
            return math.inf
        if self.budget == 0.0:
            return math.inf if self.error > 0.0 else 0.0
        return self.error / self.budget


def random_arrays(
    seed: int,
    n_q: int,
    n_kv: int,
    *,
    heads: tuple[int, ...] = (2, 3),
    kv_heads: tuple[int, ...] | None = None,
    dtype: Any = np.float64,
) -> Arrays:
    """Normal random query, key and value with head_dim 8 and value_dim 5."""
    rng = np.random.default_rng(seed)
    kv_heads = heads if kv_heads is None else kv_heads
    query = rng.normal(size=(*heads, n_q, 8)).astype(dtype)
    key = rng.normal(size=(*kv_heads, n_kv, 8)).astype(dtype)
    value = rng.normal(size=(*kv_heads, n_kv, 5)).astype(dtype)
    return query, key, value


def attention_case(
    name: str, got: NDArray[Any], arrays: Arrays, *, scale: float, is_causal: bool
) -> Case:
    """Compare an attention output with the oracle; shared heads are repeated first."""
    query, key, value = arrays
    if query.ndim > 2:
        shared = query.shape[-3] // key.shape[-3]
        key, value = (np.repeat(array, shared, axis=-3) for array in (key, value))
    want, _ = reference.attention(query, key, value, scale=scale, is_causal=is_causal)
    plain = plain_attention(query, key, value, scale=scale, is_causal=is_causal)
    error = relative_error(got, want) if got.dtype == query.dtype else math.inf
    return Case(name, error, budget(relative_error(plain, want), query.dtype))


def same(name: str, got: ArrayLike, want: ArrayLike) -> Case:
    """Two arrays that must agree in every bit; the error is the number of entries that do not."""
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape or got.dtype != want.dtype:
        return Case(name, math.inf, 0.0)
    return Case(name, float(np.count_nonzero(got != want)), 0.0)


def random_basis(seed: int, n: int, k: int, dtype: Any) -> ConvBasis:
    """One basis with k random strips, the first one at column 0."""
    rng = np.random.default_rng(seed)
    starts = np.sort(np.append(0, 1 + rng.choice(n - 1, k - 1, replace=False)))
    kernels = rng.normal(size=(k, n)).astype(dtype)
    kernels[np.arange(n) >= (n - starts)[:, None]] = 0.0
    return ConvBasis(starts, k, kernels)


def dense(basis: ConvBasis) -> NDArray[np.float64]:
    """The matrix of one basis, written out by the oracle."""
    oracle = reference.Basis(basis.starts, basis.kernels, basis.num_columns)
    return np.asarray(reference.basis_to_dense(oracle), np.float64)


def precision(dtype: Any) -> str:
    """The name of a type."""
    return str(np.dtype(dtype))
