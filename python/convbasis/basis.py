"""ConvBasis: lower-triangular matrices as strips of columns that share a kernel."""

from __future__ import annotations

import functools
import os
from typing import Any, NamedTuple

import numpy as np

from . import _basis_rules, _core, _layout, _storage, _validate
from .estimate import equal_strata, stratified_rows


class Strips(NamedTuple):
    """A basis as the core takes it: four arguments, two leading dimensions, computing type."""

    starts: np.ndarray  # (batch, heads, k) int64, padded with n
    num_bases: np.ndarray  # (batch, heads) int64
    kernels: np.ndarray  # (batch, heads, k, n), C-contiguous
    num_columns: int


class ConvBasis:
    """Conv bases of one matrix or of a batch, immutable.

    Strip r holds the columns ``starts[r] <= j < starts[r + 1]`` (the last one ends at
    `num_columns`), and there ``H[i, j] = kernels[r, i - j]`` for ``i >= j``. Columns before the
    first start are 0. `recover_basis` and `decompose` make them; the constructor takes arrays of
    your own, checks and copies them.

    Parameters
    ----------
    starts : array_like of int, shape (..., k)
        Strictly increasing over the first `num_bases` entries, then n.
    num_bases : array_like of int, shape (...)
        Strips of each head, at most k.
    kernels : ndarray of float32 or float64, shape (..., k, n)
        Finite. 0 past the last row, ``t >= n - starts[r]``, and in unused strips.
    num_columns : int, optional
        Key columns, at most n; default n.
    complete : array_like of bool, shape (...)
        False for a head that was truncated: its data shows more strips.
    scale : float, optional
        Of the products ``q . k`` that the matrices stand for, where they are logits:
        `recover_basis` remembers it here. Default None: not known.

    Raises
    ------
    ValueError, TypeError
        If an array breaks one of these rules.

    Notes
    -----
    This is the paper's basis in cumulative form: ``starts = n - m_r`` and
    ``kernels[r] = b_1 + ... + b_r``, see `sizes` and `differences`. Memory O(k n) a head.
    Source: Conv-Basis (arXiv 2405.05219), section on conv basis.

    Examples
    --------
    >>> import numpy as np, convbasis as cb
    >>> basis = cb.ConvBasis([0, 2], 2, np.array([[1.0, 2.0, 3.0], [9.0, 0.0, 0.0]]))
    >>> basis.to_dense()
    array([[1., 0., 0.],
           [2., 1., 0.],
           [3., 2., 9.]])
    """

    __slots__ = ("_complete", "_kernels", "_num_bases", "_num_columns", "_scale", "_starts")

    def __init__(
        self,
        starts: Any,
        num_bases: Any,
        kernels: np.ndarray,
        *,
        num_columns: int | None = None,
        complete: Any = True,
        scale: float | None = None,
    ) -> None:
        kernels = _validate.float_array("ConvBasis", "kernels", kernels, min_ndim=2)
        if num_columns is None:
            num_columns = kernels.shape[-1]
        num_bases = _basis_rules.integers("num_bases", num_bases)
        starts = _basis_rules.integers("starts", starts)
        _basis_rules.check(starts, num_bases, kernels, num_columns)
        complete = _basis_rules.completeness(complete, num_bases)
        if scale is not None:
            scale = _validate.scale_in("ConvBasis", scale, kernels.dtype)
        self._fill(starts, num_bases, kernels.copy(), num_columns, complete, scale)

    def _fill(
        self,
        starts: np.ndarray,
        num_bases: np.ndarray,
        kernels: np.ndarray,
        num_columns: int,
        complete: np.ndarray,
        scale: float | None,
    ) -> None:
        self._starts, self._num_bases, self._kernels = starts, num_bases, kernels
        self._num_columns, self._complete, self._scale = num_columns, complete, scale
        for array in (starts, num_bases, kernels, complete):
            array.flags.writeable = False

    @classmethod
    def of_strips(
        cls,
        strips: Strips,
        lead: tuple[int, ...],
        complete: np.ndarray,
        scale: float | None = None,
    ) -> ConvBasis:
        """A basis that owns arrays made by this package, which are right by construction."""
        n, k = strips.kernels.shape[3], strips.kernels.shape[2]
        basis = object.__new__(cls)
        basis._fill(
            strips.starts.reshape((*lead, k)),
            strips.num_bases.reshape(lead),
            strips.kernels.reshape((*lead, k, n)),
            strips.num_columns,
            complete.reshape(lead),
            scale,
        )
        return basis

    def strips(self) -> Strips:
        """The basis as the core takes it; views."""
        return Strips(
            _layout.collapse(self._starts, 1),
            _layout.collapse(self._num_bases, 0),
            _layout.collapse(self._kernels, 2),
            self._num_columns,
        )

    @property
    def starts(self) -> np.ndarray:
        """First column of each strip, (..., k) int64, padded with n."""
        return self._starts

    @property
    def num_bases(self) -> Any:
        """Strips of each head, (...) int64; an int for a single matrix."""
        return self._num_bases if self._num_bases.ndim else int(self._num_bases)

    @property
    def kernels(self) -> np.ndarray:
        """``kernels[r, t] = H[j + t, j]`` for every column j of strip r, (..., k, n)."""
        return self._kernels

    @property
    def num_columns(self) -> int:
        """Key columns, at most n."""
        return self._num_columns

    @property
    def complete(self) -> Any:
        """Whether all strips that the data shows are there, (...) bool; a bool for one matrix."""
        return self._complete if self._complete.ndim else bool(self._complete)

    @property
    def scale(self) -> float | None:
        """Of the products ``q . k`` in these logits; None where it is not known."""
        return self._scale

    @property
    def lead(self) -> tuple[int, ...]:
        """The leading dimensions, () for a single matrix."""
        return self._num_bases.shape

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrices, (..., n, num_columns)."""
        return (*self.lead, self._kernels.shape[-1], self._num_columns)

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""
        return self._kernels.dtype

    @property
    def sizes(self) -> np.ndarray:
        """The paper's ``m_r = n - starts``, (..., k); 0 for unused strips."""
        sizes: np.ndarray = self._kernels.shape[-1] - self._starts
        return sizes

    @property
    def differences(self) -> np.ndarray:
        """The paper's ``b_r``, (..., k, n): ``H = sum_r conv(b_r, m_r)``.

        ``b_r = kernels[r] - kernels[r - 1]`` in the first m_r entries, 0 after.
        """
        vectors: np.ndarray = self._kernels.copy()
        vectors[..., 1:, :] -= self._kernels[..., :-1, :]
        vectors[np.arange(vectors.shape[-1]) >= self.sizes[..., None]] = 0.0
        return vectors

    def exp(self) -> ConvBasis:
        """The basis of ``M o exp(H)``, M the lower-triangular mask: exp of each kernel.

        Columns before the first start hold 0, so they become the strip ``(0, kernel of ones)``.

        Raises
        ------
        ValueError
            If an exponential overflows.

        Notes
        -----
        O(k n) a head. Source: Conv-Basis, lemma on the exponential of a conv basis; its
        ``exp(u_r) - exp(u_(r-1))`` are the `differences` of the result.
        """
        limit = np.log(np.finfo(self.dtype).max)
        if self._kernels.max(initial=0.0) > limit:
            raise _validate.wrong(
                "ConvBasis.exp",
                "kernels",
                "has entries whose exp overflows",
                f"at most {limit:.1f} in {self.dtype}",
                self._kernels.max(),
            )
        n = self._kernels.shape[-1]
        padded = np.concatenate([self._starts, np.full((*self.lead, 1), n)], axis=-1)
        late = (padded[..., 0] > 0) & (min(n, self._num_columns) > 0)
        starts, kernels = self._starts, self._kernels
        if late.any():
            zero = np.zeros((*self.lead, 1, n), self.dtype)
            first = late[..., None]
            starts = np.where(first, np.roll(padded, 1, axis=-1), padded)
            starts[..., 0][late] = 0
            kernels = np.where(
                first[..., None],
                np.concatenate([zero, kernels], axis=-2),
                np.concatenate([kernels, zero], axis=-2),
            )
        kernels = np.exp(kernels)
        kernels[np.arange(n) >= (n - starts)[..., None]] = 0.0
        result = object.__new__(ConvBasis)
        result._fill(
            starts.copy(),
            np.asarray(self._num_bases + late),
            kernels,
            self._num_columns,
            self._complete.copy(),
            None,
        )
        return result

    def row_sums(self, *, num_threads: int | None = None) -> np.ndarray:
        """``H @ ones``, (..., n), from windowed prefix sums without cancellation. O(k n)."""
        threads = _validate.threads("ConvBasis.row_sums", num_threads)
        strips = self.strips()
        sums = np.empty((*strips.num_bases.shape, self._kernels.shape[-1]), self.dtype)
        _core.row_sums(*strips, sums, threads)
        return sums.reshape(self.shape[:-1])

    def to_dense(self) -> np.ndarray:
        """The matrices themselves, (..., n, num_columns): O(n^2) memory, for small n."""
        strips = self.strips()
        n, columns = self.shape[-2:]
        dense = np.zeros((*strips.num_bases.shape, n, columns), self.dtype)
        for head in np.ndindex(strips.num_bases.shape):
            starts = strips.starts[head][: strips.num_bases[head]]
            stops = np.append(starts, columns)[1:]
            for r, (start, stop) in enumerate(zip(starts, stops, strict=True)):
                for j in range(start, stop):
                    dense[head][j:, j] = strips.kernels[head][r, : n - j]
        return dense.reshape(self.shape)

    def residual(
        self,
        query: np.ndarray,
        key: np.ndarray,
        samples: int | None = None,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
        rng: np.random.Generator | None = None,
        num_threads: int | None = None,
    ) -> Any:
        """Logit deviation ``max |scale * Q K^T - H|`` on and below the diagonal, per head.

        ``2 * (exp(residual) - 1) * max|V|`` bounds the error of attention through this basis
        (Conv-Basis, theorem on inference) when every row is measured.

        Parameters
        ----------
        query, key : ndarray, shapes (..., n, d) and (..., n_kv, d)
        samples : int, optional
            Measure this many rows only, one from each stratum: a lower estimate. Default: every
            row, the true value.
        scale : float, optional
            Of the products ``q . k``, whatever the basis remembers. Default: the `scale` of the
            basis, and ``1 / sqrt(d)`` where that is not known.
        enable_gqa, num_threads
            As in `recover_basis`.
        rng : numpy.random.Generator, optional
            Source of the sample; default: a fixed seed.

        Returns
        -------
        ndarray of float64, shape (...); a scalar for one matrix

        Raises
        ------
        ValueError, TypeError
            If the arrays do not belong to this basis.

        Notes
        -----
        O(n^2 d) time a head, or O(samples n d); memory O(n d).
        """
        name = "ConvBasis.residual"
        query = _validate.float_array(name, "query", query, min_ndim=2)
        key = _validate.float_array(name, "key", key, min_ndim=2)
        _validate.same_dtype(name, "key", key, "query", query.dtype)
        enable_gqa = _validate.flag(name, "enable_gqa", enable_gqa)
        _validate.attention_shapes(name, query, key, None, enable_gqa)
        _basis_rules.belongs(name, "query", self, query, key.shape[-2])
        if samples is not None:
            samples = _validate.integer(name, "samples", samples, minimum=1)
        if scale is None:
            scale = self._scale
        scale = _validate.scale_or_default(name, scale, query)
        threads = _validate.threads(name, num_threads)
        query4, key4 = _layout.operand(query), _layout.operand(key)[:, :, : self._num_columns]
        _validate.finite(name, [("query", query4), ("key", key4)], threads)
        rows = None
        if samples is not None:
            rows = stratified_rows(equal_strata(query4.shape[2], samples), rng=rng)
            rows = np.ascontiguousarray(np.broadcast_to(rows, (*query4.shape[:2], rows.size)))
        deviation = _core.logit_deviation(query4, key4, *self.strips(), rows, scale, threads)
        return deviation.reshape(self.lead)[()]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an .npz file at exactly `path`, completely or not at all."""
        _storage.save(path, self._state())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ConvBasis:
        """Read a file written by `save`; never executes what it holds.

        Raises
        ------
        ValueError
            If the file is not one, has a newer format, or its arrays break a rule.
        OSError
            If it cannot be read.
        """
        return cls(**_storage.load(path))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ConvBasis):
            return NotImplemented
        return (
            self.shape == other.shape
            and self.dtype == other.dtype
            and np.array_equal(self._starts, other._starts)
            and np.array_equal(self._num_bases, other._num_bases)
            and np.array_equal(self._kernels, other._kernels)
            and np.array_equal(self._complete, other._complete)
            and self._scale == other._scale
        )

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(ConvBasis, **self._state()), ()

    def _state(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "starts": self._starts,
            "num_bases": self._num_bases,
            "kernels": self._kernels,
            "num_columns": self._num_columns,
            "complete": self._complete,
            "scale": self._scale,
        }

    def __repr__(self) -> str:
        low = self._num_bases.min(initial=np.iinfo(np.int64).max)
        high = self._num_bases.max(initial=0)
        strips = f"{high}" if low >= high else f"{low}..{high}"
        kind = type(self).__name__
        return f"{kind}(shape={self.shape}, num_bases={strips}, dtype={self.dtype})"
