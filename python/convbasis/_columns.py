"""The columns of a wide matrix, dense or sparse, as sparsification asks for them."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from . import _core, _validate

#: Entries of other sizes are scaled before they are squared, so that nothing over- or underflows.
SAFE = (1e-75, 1e75)


class DenseColumns:
    """Of an array (n, d), in float64 with contiguous rows: copied if it is not so already."""

    def __init__(self, x: np.ndarray, factor: float, num_threads: int) -> None:
        self.x = np.ascontiguousarray(x, np.float64)
        if factor != 1.0:
            self.x = self.x * factor
        self.shape, self.num_threads = x.shape, num_threads

    def gram(self) -> np.ndarray:
        """``X X^T``."""
        return _core.gram_matrix(self.x, self.num_threads)

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Some of the columns, dense."""
        return np.ascontiguousarray(self.x[:, indices])

    def forms(self, matrix: np.ndarray) -> np.ndarray:
        """``x_j^T matrix x_j`` of every column, for a symmetric matrix."""
        return _core.dense_quadratic_forms(self.x, matrix, self.num_threads)


class SparseColumns:
    """Of a scipy.sparse matrix or array (n, d), never made dense as a whole."""

    def __init__(self, x: Any, factor: float, num_threads: int) -> None:
        self.x = x.tocsc().astype(np.float64)
        if factor != 1.0:
            self.x = self.x * factor
        self.starts = self.x.indptr.astype(np.int64)
        self.rows = self.x.indices.astype(np.int64)
        self.shape, self.num_threads = x.shape, num_threads

    def gram(self) -> np.ndarray:
        return np.asarray((self.x @ self.x.T).toarray())

    def take(self, indices: np.ndarray) -> np.ndarray:
        return np.asarray(self.x[:, indices].toarray(order="C"))

    def forms(self, matrix: np.ndarray) -> np.ndarray:
        return _core.sparse_quadratic_forms(
            self.shape[0], self.starts, self.rows, self.x.data, matrix, self.num_threads
        )


def is_sparse(x: object) -> bool:
    """Whether x is of scipy.sparse; nothing of it can exist before that is imported."""
    sparse = sys.modules.get("scipy.sparse")
    return sparse is not None and bool(sparse.issparse(x))


def checked(function: str, name: str, x: Any) -> Any:
    """x if it is a matrix of floats, dense or in compressed rows or columns."""
    if not is_sparse(x):
        x = _validate.float_array(function, name, x, min_ndim=2)
    elif x.format not in ("csr", "csc"):
        raise _validate.wrong(
            function, name, "has an unsupported sparse format", "CSR or CSC", x.format.upper()
        )
    elif x.dtype not in (np.float32, np.float64):
        raise _validate.wrong(
            function, name, "has an unsupported dtype", "float32 or float64", x.dtype, TypeError
        )
    return x


def columns_of(x: Any, num_threads: int) -> tuple[DenseColumns | SparseColumns, float]:
    """The columns times a power of two that keeps their squares in range, and that factor."""
    values = x.data if is_sparse(x) else x
    largest = max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))
    factor = 1.0
    if largest and not SAFE[0] < largest < SAFE[1]:
        factor = 2.0 ** -np.clip(np.frexp(largest)[1], -1021, 1021)
    kind = SparseColumns if is_sparse(x) else DenseColumns
    return kind(x, factor, num_threads), float(factor)


def reweighted(x: Any, indices: np.ndarray, weights: np.ndarray) -> Any:
    """``x[..., indices] * weights`` in the type of x, sparse if x is."""
    if not is_sparse(x):
        return (x[..., indices] * weights).astype(x.dtype)
    taken = x.tocsc()[:, indices]
    taken.data = (taken.data * np.repeat(weights, np.diff(taken.indptr))).astype(x.dtype)
    return taken.asformat(x.format)
