"""Products of conv bases, and of single Toeplitz matrices, with vectors: never dense."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _basis_rules, _core, _layout, _on_gpu, _validate
from ._device_arrays import any_on_device
from .basis import ConvBasis, Strips


def conv_matmul(
    basis: ConvBasis,
    x: Any,
    *,
    transpose: bool = False,
    out: Any = None,
    num_threads: int | None = None,
) -> Any:
    """``H @ x``, or ``H.T @ x``, for the matrices of a basis.

    Parameters
    ----------
    basis : ConvBasis
        Matrices of shape (..., n, num_columns).
    x : ndarray, shape (..., num_columns, channels) or (..., num_columns)
        n instead of num_columns with `transpose`. Leading dimensions as those of the basis. The
        basis must be in its computing type: float64 for float64, float32 for all others. On a
        GPU with a `GpuBasis`, where nothing looks for NaN or infinity.
    transpose : bool
        Multiply by the transposed matrices.
    out : ndarray, optional
        Where to write: exact shape and dtype, no memory shared with `x`.
    num_threads : int, optional
        Default: all cores this process may use.

    Returns
    -------
    ndarray, shape (..., n, channels) or (..., n), the dtype of `x`
        num_columns instead of n with `transpose`.

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not match, or `x` is not finite. Nothing is written then.

    Notes
    -----
    O(n c log L + k n c) time a head for c channels and blocks of L rows, O(k n + n c) memory.
    Rounding is relative to the largest kernel entries that meet in a block, about
    ``eps * sqrt(log2 L)``. Source: Conv-Basis (arXiv 2405.05219), fast product with a conv basis,
    on a blocked schedule.

    Examples
    --------
    >>> import numpy as np, convbasis as cb
    >>> basis = cb.decompose(np.array([[1.0, 0.0], [2.0, 3.0]]))
    >>> cb.conv_matmul(basis, np.array([1.0, 1.0])).round(12)
    array([1., 5.])
    """
    name = "conv_matmul"
    if any_on_device(x):
        return _on_gpu.conv_matmul(basis, x, transpose=transpose, out=out, num_threads=num_threads)
    if not isinstance(basis, ConvBasis):
        raise _validate.wrong(
            name, "basis", "has the wrong type", "ConvBasis", type(basis).__name__, TypeError
        )
    x = _validate.float_array(name, "x", x, min_ndim=1)
    if basis.dtype != _validate.compute_dtype(x.dtype):
        raise _validate.wrong(
            name,
            "x",
            "differs in dtype from basis",
            f"{basis.dtype} to compute in",
            x.dtype,
            TypeError,
        )
    transpose = _validate.flag(name, "transpose", transpose)
    shape = _basis_rules.product_shape(name, basis, x.shape, transpose)
    _validate.output(name, out, shape, x.dtype, [("x", x)])
    threads = _validate.threads(name, num_threads)
    return multiply(
        name,
        basis.strips(),
        x,
        out,
        shape,
        transpose,
        threads,
        is_vector=x.ndim == len(basis.lead) + 1,
    )


def toeplitz_matmul(
    column: np.ndarray,
    x: np.ndarray,
    *,
    transpose: bool = False,
    out: np.ndarray | None = None,
    num_threads: int | None = None,
) -> np.ndarray:
    """``conv(column) @ x``: product with one lower-triangular Toeplitz matrix a head.

    Parameters
    ----------
    column : ndarray, shape (..., n)
        First column of each matrix; entry (i, j) is ``column[i - j]`` for ``i >= j``.
    x : ndarray, shape (..., n, channels) or (..., n)
        Leading dimensions and dtype as those of `column`.
    transpose, out, num_threads
        As in `conv_matmul`.

    Returns
    -------
    ndarray of the shape and dtype of `x`

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not match, or an entry is not finite. Nothing is written then.

    Notes
    -----
    Cost and rounding as for `conv_matmul` with k = 1.

    Examples
    --------
    >>> import numpy as np, convbasis as cb
    >>> cb.toeplitz_matmul(np.array([1.0, 2.0, 3.0]), np.array([1.0, 0.0, 1.0])).round(12)
    array([1., 2., 4.])
    """
    name = "toeplitz_matmul"
    column = _validate.float_array(name, "column", column, min_ndim=1)
    x = _validate.float_array(name, "x", x, min_ndim=1)
    _validate.same_dtype(name, "x", x, "column", column.dtype)
    if x.shape[: column.ndim] != column.shape or x.ndim > column.ndim + 1:
        raise _validate.wrong(
            name,
            "x",
            "does not match column",
            f"shape {column.shape} or {(*column.shape, 'channels')}",
            f"shape {x.shape}",
        )
    transpose = _validate.flag(name, "transpose", transpose)
    _validate.output(name, out, x.shape, x.dtype, [("column", column), ("x", x)])
    threads = _validate.threads(name, num_threads)

    kernel = np.ascontiguousarray(_layout.operand(column, 1))[:, :, None, :]
    _validate.finite(name, [("column", kernel)], threads)
    batch, heads, _, n = kernel.shape
    k = min(n, 1)  # an empty matrix has no strip
    strips = Strips(
        np.zeros((batch, heads, k), np.int64),
        np.full((batch, heads), k, np.int64),
        kernel[:, :, :k],
        n,
    )
    return multiply(
        name, strips, x, out, x.shape, transpose, threads, is_vector=x.ndim == column.ndim
    )


def multiply(
    function: str,
    strips: Strips,
    x: np.ndarray,
    out: np.ndarray | None,
    shape: tuple[int, ...],
    transpose: bool,
    threads: int,
    *,
    is_vector: bool,
) -> np.ndarray:
    """The product itself, of the given output `shape`, after all checks but that for finite x."""
    given = x[..., None] if is_vector else x
    target = out[..., None] if is_vector and out is not None else out
    matrix_shape = (*shape, 1) if is_vector else shape
    operand = _layout.operand(given)
    _validate.finite(function, [("x", operand)], threads)
    result = _layout.buffer(target, (*operand.shape[:2], *matrix_shape[-2:]), operand.dtype)
    _core.conv_matmul(*strips, operand, result, transpose, threads)
    made = _layout.deliver(result, target, matrix_shape, x.dtype)
    return made.reshape(shape) if out is None else out
