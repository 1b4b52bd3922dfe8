"""Exact decomposition of a lower-triangular matrix into its unique smallest conv basis."""

from __future__ import annotations

import numpy as np

from . import _layout, _validate
from .basis import ConvBasis, Strips


def decompose(matrix: np.ndarray, *, atol: float = 0.0) -> ConvBasis:
    """The conv basis of any lower-triangular matrix, with the smallest k there is.

    Columns are scanned from the left; a strip starts where a column, shifted up to its diagonal,
    differs from the current kernel on their overlap by more than `atol`.

    Parameters
    ----------
    matrix : ndarray, shape (..., n, n)
        Zero above the diagonal. float32, float64, float16 or bfloat16.
    atol : float
        Largest absolute difference taken as equal.

    Returns
    -------
    ConvBasis
        In float64 for a float64 matrix, else in float32. ``num_bases`` is 0 for a zero matrix.

    Raises
    ------
    ValueError
        If the matrix is not square, not finite, or has anything above the diagonal, or atol < 0.
    TypeError
        If it is not a float array.

    Notes
    -----
    Time O(n^2) and memory O(k n) a matrix. With ``atol=0`` the basis multiplies back exactly and
    is unique; otherwise ``to_dense`` is within `atol` of the matrix. Source: Conv-Basis
    (arXiv 2405.05219), lemma that every non-zero lower-triangular matrix has exactly one k-conv
    basis, 1 <= k <= n.

    Examples
    --------
    >>> import numpy as np, convbasis as cb
    >>> basis = cb.decompose(np.array([[1.0, 0.0, 0.0], [2.0, 1.0, 0.0], [3.0, 2.0, 9.0]]))
    >>> basis.num_bases, basis.starts.tolist()
    (2, [0, 2])
    """
    name = "decompose"
    matrix = _validate.float_array(name, "matrix", matrix, min_ndim=2)
    n = matrix.shape[-1]
    if matrix.shape[-2] != n:
        raise _validate.wrong(
            name, "matrix", "is not square", "shape (..., n, n)", f"shape {matrix.shape}"
        )
    atol = _validate.number(name, "atol", atol)
    if atol < 0.0:
        raise _validate.wrong(name, "atol", "is negative", "at least 0", atol)
    stack = _layout.operand(matrix)
    _validate.finite(name, [("matrix", stack)], _validate.threads(name, None))
    found = {head: scan(stack[head], atol) for head in np.ndindex(stack.shape[:2])}

    k = max((len(starts) for starts, _ in found.values()), default=0)
    starts = np.full((*stack.shape[:2], k), n, np.int64)
    kernels = np.zeros((*stack.shape[:2], k, n), stack.dtype)
    num_bases = np.zeros(stack.shape[:2], np.int64)
    for head, (columns, heads_kernels) in found.items():
        num_bases[head] = len(columns)
        starts[head][: len(columns)] = columns
        for r, kernel in enumerate(heads_kernels):
            kernels[head][r, : kernel.size] = kernel
    complete = np.ones(stack.shape[:2], bool)
    return ConvBasis.of_strips(Strips(starts, num_bases, kernels, n), matrix.shape[:-2], complete)


def scan(matrix: np.ndarray, atol: float) -> tuple[list[int], list[np.ndarray]]:
    """Starts and kernels (without padding) of one matrix."""
    n = len(matrix)
    starts: list[int] = []
    kernels = [np.zeros(n, matrix.dtype)]  # before the first start
    for j in range(n):
        if matrix[:j, j].any():
            row = int(np.flatnonzero(matrix[:j, j])[0])
            raise _validate.wrong(
                "decompose",
                "matrix",
                "has entries above the diagonal",
                "a lower-triangular matrix",
                f"{matrix[row, j]} at ({row}, {j})",
            )
        column = matrix[j:, j]
        if np.any(np.abs(column - kernels[-1][: n - j]) > atol):
            starts.append(j)
            kernels.append(column.copy())
    return starts, kernels[1:]
