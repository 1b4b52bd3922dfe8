"""Masks whose rows are ones on one range of keys, and such a mask with global tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .. import _validate
from ._base import (
    MOST_INDEX,
    Booleans,
    Causal,
    Indices,
    Mask,
    distinct_indices,
    fitting,
    index_array,
)


def window_size(function: str, name: str, size: object) -> int:
    """`size` from 1 on; one beyond every sequence sees all, so more need not be kept."""
    return min(_validate.integer(function, name, size, minimum=1), MOST_INDEX)


@dataclass(frozen=True, eq=False, repr=False)
class RowWindow(Mask):
    """Query i sees keys ``start[i] <= j < stop[i]`` (Conv-Basis: continuous row).

    Low-rank product: sums over ranges of keys, by a segment tree O((n_kv + n_q log n_kv) r d_v),
    or as differences of running sums, O((n_kv + n_q) r d_v), which cancel.

    Parameters
    ----------
    start, stop : array_like of int, shape (n_q,)
        ``start <= stop``; where they are equal the query sees nothing.

    Raises
    ------
    ValueError
        If shapes differ, an index is negative, or a window stops before it starts.
    TypeError
        If the arrays are not made of integers.

    Examples
    --------
    >>> import convbasis as cb
    >>> window = cb.masks.RowWindow([0, 0, 3], [1, 3, 3])
    >>> window.to_dense(3, 3).astype(int).tolist()
    [[1, 0, 0], [1, 1, 1], [0, 0, 0]]
    >>> window & cb.masks.Causal()
    RowWindow(start=[0, 0, 3], stop=[1, 2, 3])
    """

    start: Indices
    stop: Indices

    def __post_init__(self) -> None:
        start = index_array("RowWindow", "start", self.start)
        stop = index_array("RowWindow", "stop", self.stop)
        if stop.shape != start.shape:
            raise _validate.wrong(
                "RowWindow", "stop", "does not match start", f"{len(start)} rows", len(stop)
            )
        if np.any(stop < start):
            row = int(np.argmax(stop < start))
            raise _validate.wrong(
                "RowWindow",
                "stop",
                f"is before start in row {row}",
                f"at least {start[row]}",
                stop[row],
            )
        object.__setattr__(self, "start", start)
        object.__setattr__(self, "stop", stop)

    def check(self, function: str, n_q: int, n_kv: int) -> None:
        """As many queries as rows, and keys as far as the windows reach."""
        rows, reach = len(self.start), int(np.max(self.stop, initial=0))
        fitting(function, self, "queries", f"{rows} queries", n_q == rows, n_q)
        fitting(function, self, "keys", f"at least {reach} keys", n_kv >= reach, n_kv)

    def _dense(self, n_q: int, n_kv: int) -> Booleans:
        keys = np.arange(n_kv)
        return (self.start[:, None] <= keys) & (keys < self.stop[:, None])

    def _seen_keys(self, n_q: int, n_kv: int) -> Booleans:
        begun, ended = (
            np.bincount(ends[self.start < self.stop], minlength=n_kv + 1)
            for ends in (self.start, self.stop)
        )
        seen: Booleans = np.cumsum(begun - ended)[:n_kv] > 0
        return seen

    def _joined(self, other: Mask) -> Mask | None:
        row = np.arange(len(self.start))
        if isinstance(other, RowWindow):
            other.check("RowWindow", len(row), int(np.max(other.stop, initial=0)))
            low, high = other.start, other.stop
        elif isinstance(other, SlidingWindow):
            low = np.maximum(row - (other.size - 1), 0)
            high = row + (1 if other.is_causal else other.size)
        elif isinstance(other, Causal):
            low, high = np.zeros_like(row), row + 1
        else:
            return None
        start, stop = np.maximum(self.start, low), np.minimum(self.stop, high)
        # A window that became empty stays where it began.
        start = np.minimum(start, self.stop)
        return RowWindow(start, np.maximum(start, stop))


@dataclass(frozen=True, eq=False, repr=False)
class SlidingWindow(Mask):
    """Query i sees the keys at a distance ``|i - j| < size``.

    With `Causal`: its own key and the ``size - 1`` before. For any numbers of queries and keys,
    both counted from the first.

    Low-rank product: as `RowWindow`.

    Parameters
    ----------
    size : int
        At least 1.
    is_causal : bool
        Of these, only keys 0..i.

    Examples
    --------
    >>> import convbasis as cb
    >>> (cb.masks.SlidingWindow(2) & cb.masks.Causal()).to_dense(3, 3).astype(int).tolist()
    [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    """

    size: int
    is_causal: bool = False

    def __post_init__(self) -> None:
        size = window_size("SlidingWindow", "size", self.size)
        object.__setattr__(self, "size", size)
        causal = _validate.flag("SlidingWindow", "is_causal", self.is_causal)
        object.__setattr__(self, "is_causal", causal)

    def check(self, function: str, n_q: int, n_kv: int) -> None:
        """Any numbers of queries and keys will do."""

    def _dense(self, n_q: int, n_kv: int) -> Booleans:
        lag = np.arange(n_q)[:, None] - np.arange(n_kv)
        near: Booleans = np.abs(lag) < self.size
        return near & (lag >= 0) if self.is_causal else near

    def _seen_keys(self, n_q: int, n_kv: int) -> Booleans:
        ahead = 0 if self.is_causal or n_q == 0 else self.size - 1
        return np.arange(n_kv) < n_q + ahead

    def _joined(self, other: Mask) -> Mask | None:
        if isinstance(other, Causal):
            return replace(self, is_causal=True)
        if isinstance(other, SlidingWindow):
            return SlidingWindow(min(self.size, other.size), self.is_causal or other.is_causal)
        return None


@dataclass(frozen=True, eq=False, repr=False)
class Longformer(Mask):
    """A sliding window, and global tokens that see every key and are seen by every query.

    Low-rank product: `SlidingWindow` over the other keys, one sum over the global keys for all
    queries, and one over all keys for the global queries.

    Source: Beltagy, Peters, Cohan, *Longformer: The Long-Document Transformer*, arXiv 2004.05150.

    Parameters
    ----------
    window : int
        Query i sees the keys at a distance ``|i - j| < window``.
    global_tokens : array_like of int
        Distinct positions, in any order; one beyond the last query or key counts for the other.
    is_causal : bool
        Of all these, only keys 0..i.

    Examples
    --------
    >>> import convbasis as cb
    >>> cb.masks.Longformer(1, [1]).to_dense(3, 4).astype(int).tolist()
    [[1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0]]
    """

    window: int
    global_tokens: Indices
    is_causal: bool = False

    def __post_init__(self) -> None:
        window = window_size("Longformer", "window", self.window)
        object.__setattr__(self, "window", window)
        tokens = distinct_indices("Longformer", "global_tokens", self.global_tokens)
        object.__setattr__(self, "global_tokens", tokens)
        causal = _validate.flag("Longformer", "is_causal", self.is_causal)
        object.__setattr__(self, "is_causal", causal)

    def check(self, function: str, n_q: int, n_kv: int) -> None:
        """Every global token is a query or a key."""
        need = int(np.max(self.global_tokens, initial=-1)) + 1
        have = max(n_q, n_kv)
        fitting(function, self, "queries and keys", f"at least {need} of one", have >= need, have)

    def _dense(self, n_q: int, n_kv: int) -> Booleans:
        seen = SlidingWindow(self.window)._dense(n_q, n_kv)
        seen[self.global_tokens[self.global_tokens < n_q]] = True
        seen[:, self.global_tokens[self.global_tokens < n_kv]] = True
        return seen & np.tri(n_q, n_kv, dtype=bool) if self.is_causal else seen

    def _seen_keys(self, n_q: int, n_kv: int) -> Booleans:
        seen = SlidingWindow(self.window, self.is_causal)._seen_keys(n_q, n_kv)
        if n_q and not self.is_causal:
            seen[self.global_tokens[self.global_tokens < n_kv]] = True
            seen |= np.any(self.global_tokens < n_q)
        return seen

    def _joined(self, other: Mask) -> Mask | None:
        return replace(self, is_causal=True) if isinstance(other, Causal) else None
