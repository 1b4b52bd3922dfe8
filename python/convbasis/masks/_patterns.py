"""Masks that have few distinct rows or few distinct columns."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .. import _validate
from ._base import Booleans, Causal, Indices, Mask, fitting, frozen, index_array


def checked_patterns(
    function: str, name: str, pattern_of: object, patterns: object
) -> tuple[Indices, Booleans]:
    """Both arrays, frozen, if every entry of the first names a row of the second."""
    which = index_array(function, name, pattern_of)
    table = np.asarray(patterns)
    if table.dtype != np.bool_:
        raise _validate.wrong(
            function, "patterns", "is not made of bools", "bool", table.dtype, TypeError
        )
    if table.ndim != 2:
        raise _validate.wrong(
            function, "patterns", "is no list of patterns", "2 dimensions", f"shape {table.shape}"
        )
    if which.size and which.max() >= len(table):
        raise _validate.wrong(
            function,
            name,
            "names a pattern that is not there",
            f"indices below {len(table)}",
            which.max(),
        )
    return which, frozen(table)


@dataclass(frozen=True, eq=False, repr=False)
class DistinctRows(Mask):
    """Query i sees the keys of ``patterns[pattern_of_row[i]]``.

    Low-rank product: one sum a pattern, shared by its queries, O((m n_kv + n_q) r d_v).
    Memory m n_kv + n_q for m patterns.

    Parameters
    ----------
    pattern_of_row : array_like of int, shape (n_q,)
    patterns : array_like of bool, shape (m, n_kv)
        True where the queries of a pattern see the key; a row without any is allowed.
    is_causal : bool
        Of these, only keys 0..i.

    Raises
    ------
    ValueError
        If `patterns` has not two dimensions or `pattern_of_row` names a row it has not.
    TypeError
        If `patterns` is not made of bools or `pattern_of_row` not of integers.

    Examples
    --------
    >>> import convbasis as cb
    >>> rows = cb.masks.DistinctRows([0, 1, 0], [[True, False], [True, True]])
    >>> rows.to_dense(3, 2).astype(int).tolist()
    [[1, 0], [1, 1], [1, 0]]
    """

    pattern_of_row: Indices
    patterns: Booleans
    is_causal: bool = False

    def __post_init__(self) -> None:
        name = "DistinctRows"
        which, table = checked_patterns(name, "pattern_of_row", self.pattern_of_row, self.patterns)
        object.__setattr__(self, "pattern_of_row", which)
        object.__setattr__(self, "patterns", table)
        causal = _validate.flag(name, "is_causal", self.is_causal)
        object.__setattr__(self, "is_causal", causal)

    def check(self, function: str, n_q: int, n_kv: int) -> None:
        """As many queries as `pattern_of_row` has, and keys as a pattern."""
        rows, columns = len(self.pattern_of_row), self.patterns.shape[1]
        fitting(function, self, "queries", f"{rows} queries", n_q == rows, n_q)
        fitting(function, self, "keys", f"{columns} keys", n_kv == columns, n_kv)

    def _dense(self, n_q: int, n_kv: int) -> Booleans:
        seen: Booleans = self.patterns[self.pattern_of_row]
        return seen & np.tri(n_q, n_kv, dtype=bool) if self.is_causal else seen

    def _seen_keys(self, n_q: int, n_kv: int) -> Booleans:
        last_row = np.full(len(self.patterns), -1)  # of each pattern
        np.maximum.at(last_row, self.pattern_of_row, np.arange(n_q))
        earliest = np.arange(n_kv) if self.is_causal else np.zeros(n_kv, np.int64)
        seen: Booleans = np.any(self.patterns & (last_row[:, None] >= earliest), axis=0)
        return seen

    def _joined(self, other: Mask) -> Mask | None:
        return replace(self, is_causal=True) if isinstance(other, Causal) else None


@dataclass(frozen=True, eq=False, repr=False)
class DistinctColumns(Mask):
    """Key j is seen by the queries of ``patterns[pattern_of_column[j]]``.

    Low-rank product: one sum a pattern, over its keys, O((n_kv + m n_q) r d_v).
    Memory m n_q + n_kv for m patterns.

    Parameters
    ----------
    pattern_of_column : array_like of int, shape (n_kv,)
    patterns : array_like of bool, shape (m, n_q)
        True where the query sees the keys of the pattern.
    is_causal : bool
        Of these, key j only by queries from j on.

    Raises
    ------
    ValueError
        If `patterns` has not two dimensions or `pattern_of_column` names a row it has not.
    TypeError
        If `patterns` is not made of bools or `pattern_of_column` not of integers.

    Examples
    --------
    >>> import convbasis as cb
    >>> columns = cb.masks.DistinctColumns([0, 1, 0], [[True, False], [True, True]])
    >>> columns.to_dense(2, 3).astype(int).tolist()
    [[1, 1, 1], [0, 1, 0]]
    """

    pattern_of_column: Indices
    patterns: Booleans
    is_causal: bool = False

    def __post_init__(self) -> None:
        name = "DistinctColumns"
        which, table = checked_patterns(
            name, "pattern_of_column", self.pattern_of_column, self.patterns
        )
        object.__setattr__(self, "pattern_of_column", which)
        object.__setattr__(self, "patterns", table)
        causal = _validate.flag(name, "is_causal", self.is_causal)
        object.__setattr__(self, "is_causal", causal)

    def check(self, function: str, n_q: int, n_kv: int) -> None:
        """As many queries as a pattern has, and keys as `pattern_of_column`."""
        rows, columns = self.patterns.shape[1], len(self.pattern_of_column)
        fitting(function, self, "queries", f"{rows} queries", n_q == rows, n_q)
        fitting(function, self, "keys", f"{columns} keys", n_kv == columns, n_kv)

    def _dense(self, n_q: int, n_kv: int) -> Booleans:
        seen: Booleans = np.ascontiguousarray(self.patterns[self.pattern_of_column].T)
        return seen & np.tri(n_q, n_kv, dtype=bool) if self.is_causal else seen

    def _seen_keys(self, n_q: int, n_kv: int) -> Booleans:
        if n_q == 0:
            return np.zeros(n_kv, dtype=bool)
        last_row = n_q - 1 - np.argmax(self.patterns[:, ::-1], axis=1)
        last_row = np.where(self.patterns.any(axis=1), last_row, -1)[self.pattern_of_column]
        earliest = np.arange(n_kv) if self.is_causal else np.zeros(n_kv, np.int64)
        return last_row >= earliest

    def _joined(self, other: Mask) -> Mask | None:
        return replace(self, is_causal=True) if isinstance(other, Causal) else None
