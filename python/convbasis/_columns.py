"""The columns of a wide matrix, dense or sparse, as sparsification asks for them."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from . import _core, _validate


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


def core_function(x: Any) -> Any:
    """The function of the core for this kind of x."""
    return _core.sparsify_sparse if is_sparse(x) else _core.sparsify_dense


def in_core(x: Any) -> Any:
    """x as the core takes it: float64 in rows or CSC, copied if it is not so already."""
    if not is_sparse(x):
        return np.ascontiguousarray(x, np.float64)
    x = x.tocsc()
    starts, rows = (part.astype(np.int64, copy=False) for part in (x.indptr, x.indices))
    return x.shape[0], starts, rows, x.data.astype(np.float64, copy=False)


def reweighted(function: str, name: str, x: Any, indices: np.ndarray, weights: np.ndarray) -> Any:
    """``x[..., indices] * weights`` in the type of x, sparse if x is."""
    if not is_sparse(x):
        return _narrowed(function, name, x[..., indices] * weights, x.dtype)
    taken = x.tocsc()[:, indices]
    products = taken.data * np.repeat(weights, np.diff(taken.indptr))
    taken.data = _narrowed(function, name, products, x.dtype)
    return taken.asformat(x.format)


def _narrowed(function: str, name: str, products: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        narrow = products.astype(dtype)
    if not np.array_equal(np.isfinite(narrow), np.isfinite(products)):
        raise _validate.wrong(
            function,
            name,
            f"has columns that overflow {dtype} times their weights",
            "smaller numbers or a wider type",
            f"products up to {np.nanmax(np.abs(products)):.3g}",
        )
    return narrow
