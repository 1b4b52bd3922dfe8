"""Convolution bases of lower-triangular matrices, in the paper's form and in strip form.

Every lower-triangular ``H`` is a sum ``conv(b_1, m_1) + ... + conv(b_k, m_k)`` with
``n >= m_1 > ... > m_k >= 1``. Put ``s_r = n - m_r`` (the *start*) and ``u_r = b_1 + ... + b_r``
(the *kernel*). A column ``j`` is touched by exactly those bases with ``s_r <= j``, so

    ``H[i, j] = u_r[i - j]``   for   ``s_r <= j < s_{r+1}``   and   ``i >= j``:

the key axis splits into ``k`` consecutive *strips*, and inside a strip an entry depends on the
lag alone. The strip form is what is stored; the paper's ``b_r`` come from `differences`.

Source: Conv-Basis, section on conv basis (definitions of conv, sub-convolution and k-conv basis).

All functions but the exponentials also accept object arrays of exact numbers
(`fractions.Fraction`) and then compute without rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]  # float64, or object for exact numbers


def exact_or_float64(array: ArrayLike) -> Array:
    """The array itself when it holds exact numbers (dtype object), else a float64 view of it."""
    array = np.asarray(array)
    return array if array.dtype == object else array.astype(np.float64, copy=False)


@dataclass(frozen=True, eq=False)
class Basis:
    """A conv basis of one (n, num_columns) lower-triangular matrix, in strip form.

    Attributes
    ----------
    starts : ndarray of int64, shape (k,)
        First column of each strip, strictly increasing. Columns before ``starts[0]`` are zero.
    kernels : ndarray, shape (k, n)
        ``kernels[r, t]`` is the entry at lag ``t`` of every column of strip ``r``; entries that
        fall past the last row (``t >= n - starts[r]``) are 0.
    num_columns : int
        Number of key columns; the last strip ends there.

    Raises
    ------
    ValueError
        If the shapes do not belong together, or `starts` does not increase within the matrix.
    """

    starts: NDArray[np.int64]
    kernels: Array
    num_columns: int

    def __post_init__(self) -> None:
        starts = np.asarray(self.starts, dtype=np.int64)
        kernels = exact_or_float64(self.kernels)
        if starts.ndim != 1 or kernels.ndim != 2 or len(starts) != len(kernels):
            raise ValueError(
                "[Basis] kernels does not belong to starts; expected shapes (k,) and "
                f"(k, n); got {starts.shape} and {kernels.shape}"
            )
        limit = min(kernels.shape[1], self.num_columns)
        if len(starts) and (starts[0] < 0 or starts[-1] >= limit or np.any(np.diff(starts) <= 0)):
            raise ValueError(
                "[Basis] starts is not a list of columns; expected increasing numbers "
                f"in 0..{limit - 1}; got {starts.tolist()}"
            )
        past_the_end = np.arange(kernels.shape[1]) >= (kernels.shape[1] - starts)[:, None]
        kernels = kernels.copy()
        kernels[past_the_end] = 0
        object.__setattr__(self, "starts", starts)
        object.__setattr__(self, "kernels", kernels)

    @property
    def num_rows(self) -> int:
        """Number of rows ``n``."""
        return int(self.kernels.shape[1])

    @property
    def num_bases(self) -> int:
        """Number of strips ``k``."""
        return len(self.starts)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """The paper's ``m_r = n - s_r``, shape (k,)."""
        return self.num_rows - self.starts

    @property
    def stops(self) -> NDArray[np.int64]:
        """One past the last column of each strip, shape (k,)."""
        return np.append(self.starts, self.num_columns)[1:]


def conv(kernel: ArrayLike, size: int | None = None) -> Array:
    """The paper's ``conv(a)`` and ``conv(a, m)``.

    Parameters
    ----------
    kernel : array_like, shape (n,)
    size : int, optional
        ``m``; default ``n``, which is ``conv(a)``.

    Returns
    -------
    ndarray, shape (n, n)
        Zero but for the bottom-right ``m x m`` block, whose entry ``(i, j)`` is ``a[i - j]`` for
        ``i >= j``.

    Examples
    --------
    >>> from convbasis import reference
    >>> reference.conv([1.0, 2.0, 3.0], 2).tolist()
    [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 2.0, 1.0]]
    """
    kernel = exact_or_float64(kernel)
    n = len(kernel)
    size = n if size is None else size
    dense = np.zeros((n, n), dtype=kernel.dtype)
    for j in range(n - size, n):
        dense[j:, j] = kernel[: n - j]
    return dense


def basis_to_dense(basis: Basis) -> Array:
    """The (n, num_columns) matrix of a basis: ``H[j + t, j] = u_r[t]`` for ``j`` in strip ``r``.

    Examples
    --------
    >>> from convbasis import reference
    >>> basis = reference.Basis([0, 2], [[1.0, 2.0, 3.0], [9.0, 0.0, 0.0]], 3)
    >>> reference.basis_to_dense(basis).tolist()
    [[1.0, 0.0, 0.0], [2.0, 1.0, 0.0], [3.0, 2.0, 9.0]]
    """
    n = basis.num_rows
    dense = np.zeros((n, basis.num_columns), dtype=basis.kernels.dtype)
    for start, stop, kernel in zip(basis.starts, basis.stops, basis.kernels, strict=True):
        for j in range(start, min(stop, n)):
            dense[j:, j] = kernel[: n - j]
    return dense


def differences(basis: Basis) -> Array:
    """The paper's ``b_r = u_r - u_{r-1}`` on the first ``m_r`` lags, 0 past them.

    Returns
    -------
    ndarray, shape (k, n)
    """
    result: Array = basis.kernels.copy()
    for r in range(1, basis.num_bases):
        size = basis.sizes[r]
        result[r, :size] = basis.kernels[r, :size] - basis.kernels[r - 1, :size]
    return result


def differences_to_dense(vectors: ArrayLike, sizes: ArrayLike) -> Array:
    """The paper's sum ``conv(b_1, m_1) + ... + conv(b_k, m_k)``.

    Parameters
    ----------
    vectors : array_like, shape (k, n)
    sizes : array_like of int, shape (k,)

    Returns
    -------
    ndarray, shape (n, n)
    """
    vectors = exact_or_float64(vectors)
    n = vectors.shape[1]
    dense = np.zeros((n, n), dtype=vectors.dtype)
    for vector, size in zip(vectors, np.asarray(sizes), strict=True):
        dense = dense + conv(vector, int(size))
    return dense


def with_column_zero(basis: Basis) -> Basis:
    """The same matrix with a strip that starts at column 0.

    Columns before the first start hold the logit 0. That is nothing in a sum but a weight of 1
    under ``exp``, so they become the strip ``(0, zero kernel)``.
    """
    if basis.num_columns == 0 or basis.num_rows == 0:
        return basis
    if basis.num_bases and basis.starts[0] == 0:
        return basis
    zero = np.zeros((1, basis.num_rows), dtype=basis.kernels.dtype)
    return Basis(
        np.append(0, basis.starts), np.concatenate([zero, basis.kernels]), basis.num_columns
    )


def exp_basis(basis: Basis) -> Basis:
    """The basis of ``M o exp(H)``: exp acts on each kernel by itself.

    A strip at column 0 with kernel ``exp(0) = 1`` is added when the basis starts later.

    Source: Conv-Basis, lemma on the exponential of a conv basis, in strip form.

    Examples
    --------
    >>> from convbasis import reference
    >>> weights = reference.exp_basis(reference.Basis([1], [[0.0, 0.0]], 2))
    >>> weights.starts.tolist(), weights.kernels.tolist()
    ([0, 1], [[1.0, 1.0], [1.0, 0.0]])
    """
    basis = with_column_zero(basis)
    return Basis(basis.starts, np.exp(basis.kernels), basis.num_columns)


def exp_differences(basis: Basis) -> tuple[Array, NDArray[np.int64]]:
    """The paper's ``b~_1 = exp(u_1)``, ``b~_r = exp(u_r) - exp(u_{r-1})``, for the added strip too.

    It gives the same matrix as `exp_basis`, by subtracting exponentials: a form to check with.

    Returns
    -------
    vectors : ndarray of float64, shape (k, n)
    sizes : ndarray of int64, shape (k,)
    """
    weights = exp_basis(basis)
    return differences(weights), weights.sizes


def row_sums(basis: Basis) -> Array:
    """Row sums of the matrix of a basis, each a sum over one window of lags per strip.

    Row ``i`` meets strip ``r`` in the columns ``s_r <= j < min(s_{r+1}, i + 1)``, which are the
    lags from ``max(0, i - s_{r+1} + 1)`` to ``i - s_r``. The window is summed directly: the
    difference of two long prefix sums would cancel.

    Returns
    -------
    ndarray, shape (n,)

    Examples
    --------
    >>> from convbasis import reference
    >>> reference.row_sums(reference.Basis([0, 2], [[1.0, 2.0, 3.0], [9.0, 0.0, 0.0]], 3)).tolist()
    [1.0, 3.0, 14.0]
    """
    sums = np.zeros(basis.num_rows, dtype=basis.kernels.dtype)
    for start, stop, kernel in zip(basis.starts, basis.stops, basis.kernels, strict=True):
        for i in range(start, basis.num_rows):
            sums[i] += kernel[max(0, i - stop + 1) : i - start + 1].sum()
    return sums


def decompose(matrix: ArrayLike, *, atol: float = 0.0) -> Basis:
    """The unique smallest conv basis of a lower-triangular matrix.

    Scan the columns; a strip starts at ``j`` when column ``j``, shifted up by ``j``, differs from
    the kernel so far (0 at first) on the overlap by more than `atol`.

    Parameters
    ----------
    matrix : array_like, shape (n, n_columns)
        Zero above the diagonal.
    atol : float
        Largest absolute difference taken as equal. With 0 the result is exact and ``k`` minimal;
        otherwise `basis_to_dense` of the result is within `atol` of `matrix` everywhere.

    Returns
    -------
    Basis
        ``k = 0`` for the zero matrix.

    Raises
    ------
    ValueError
        If the matrix is not two-dimensional or not lower triangular.

    Notes
    -----
    Time O(n^2). Source: Conv-Basis, lemma that every non-zero lower-triangular matrix has exactly
    one k-conv basis, 1 <= k <= n.

    Examples
    --------
    >>> from convbasis import reference
    >>> basis = reference.decompose([[0.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 6.0, 5.0]])
    >>> basis.starts.tolist(), basis.kernels.tolist()
    ([1], [[5.0, 6.0, 0.0]])
    """
    matrix = exact_or_float64(matrix)
    if matrix.ndim != 2:
        raise ValueError(
            "[decompose] matrix has the wrong rank; expected 2 dimensions; got shape "
            f"{matrix.shape}"
        )
    n, num_columns = matrix.shape
    above = np.arange(n)[:, None] < np.arange(num_columns)[None, :]
    if np.any(matrix[above] != 0):
        raise ValueError(
            "[decompose] matrix has entries above the diagonal; expected 0 there; got "
            f"{np.count_nonzero(matrix[above])} non-zero entries"
        )
    starts: list[int] = []
    kernels: list[Array] = []
    current = np.zeros(n, dtype=matrix.dtype)
    for j in range(min(n, num_columns)):
        column = matrix[j:, j]
        if np.any(np.abs(column - current[: n - j]) > atol):
            current = np.zeros(n, dtype=matrix.dtype)
            current[: n - j] = column
            starts.append(j)
            kernels.append(current)
    stacked = np.array(kernels, dtype=matrix.dtype).reshape(len(starts), n)
    return Basis(np.array(starts, dtype=np.int64), stacked, num_columns)
