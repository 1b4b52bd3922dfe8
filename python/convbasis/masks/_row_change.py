"""The mask whose rows differ little from the rows before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .. import _validate
from ._base import Booleans, Causal, Indices, Mask, distinct_indices, fitting, frozen, index_array


class KeyLists(NamedTuple):
    """Lists of keys end to end, as the columns of a CSR matrix.

    List l is ``keys[offsets[l] : offsets[l + 1]]``; `offsets` starts at 0 and has one entry more
    than there are lists.
    """

    keys: Indices
    offsets: Indices

    def rows(self) -> Indices:
        """The number of the list that each key is in."""
        lists: Indices = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        return lists


@dataclass(frozen=True, eq=False, repr=False, init=False)
class RowChange(Mask):
    """Query 0 sees `first_row`; query i + 1 sees what i does, plus and minus a few keys.

    Low-rank product: one running sum that is updated, O(r d_v (n_q + sum of B_i)) where B_i is
    the number of keys by which row i differs from row i - 1 (row 0: from none). Memory
    n_q + sum of B_i. (Conv-Basis: row change by amortised constant, sum of B_i = O(n).)

    Parameters
    ----------
    first_row : array_like of int
        Keys that query 0 sees.
    added, removed : sequence of n_q - 1 array_like of int, or KeyLists
        Keys that query i + 1 sees and query i does not, and the other way round, in any order.

    Raises
    ------
    ValueError
        If `added` and `removed` differ in length, a key is named twice, an added key is visible
        already, or a removed one is not.
    TypeError
        If keys are not integers.

    Examples
    --------
    >>> import convbasis as cb
    >>> change = cb.masks.RowChange([0], added=[[2], []], removed=[[], [0]])
    >>> change.to_dense(3, 3).astype(int).tolist()
    [[1, 0, 0], [1, 0, 1], [0, 0, 1]]
    >>> change.num_changes
    3
    """

    first_row: Indices
    added: KeyLists
    removed: KeyLists

    def __init__(
        self,
        first_row: object,
        added: Sequence[object] | KeyLists,
        removed: Sequence[object] | KeyLists,
    ) -> None:
        first = distinct_indices("RowChange", "first_row", first_row)
        plus, minus = key_lists("added", added), key_lists("removed", removed)
        if len(minus.offsets) != len(plus.offsets):
            raise _validate.wrong(
                "RowChange",
                "removed",
                "does not match added",
                f"{len(plus.offsets) - 1} lists",
                len(minus.offsets) - 1,
            )
        check_turns(first, plus, minus)
        object.__setattr__(self, "first_row", first)
        object.__setattr__(self, "added", plus)
        object.__setattr__(self, "removed", minus)

    @property
    def num_rows(self) -> int:
        """n_q, one more than there are lists."""
        return len(self.added.offsets)

    @property
    def num_changes(self) -> int:
        """The sum of all B_i, that of the first row included: what the product costs."""
        return len(self.first_row) + len(self.added.keys) + len(self.removed.keys)

    def check(self, function: str, n_q: int, n_kv: int) -> None:
        """One query more than lists, and keys as far as the lists name."""
        reach = 1 + int(max(np.max(keys, initial=-1) for keys in (self.first_row, self.added.keys)))
        fitting(function, self, "queries", f"{self.num_rows} queries", n_q == self.num_rows, n_q)
        fitting(function, self, "keys", f"at least {reach} keys", n_kv >= reach, n_kv)

    def _stays(self) -> tuple[Indices, Indices, Indices]:
        """Every key with the rows ``begin <= i < end`` in which it is visible without a gap."""
        keys = np.concatenate([self.first_row, self.added.keys])
        begin = np.concatenate([np.zeros_like(self.first_row), self.added.rows() + 1])
        order = np.lexsort((begin, keys))
        keys, begin = keys[order], begin[order]
        gone, gone_at = self.removed.keys, self.removed.rows() + 1
        order = np.lexsort((gone_at, gone))
        gone, gone_at = gone[order], gone_at[order]
        # A key comes and goes by turns, so its removals belong to its first stays.
        turn = np.arange(len(keys)) - np.searchsorted(keys, keys)
        first = np.searchsorted(gone, keys)
        leaves = turn < np.searchsorted(gone, keys, side="right") - first
        end = np.full(len(keys), self.num_rows)
        end[leaves] = gone_at[(first + turn)[leaves]]
        return keys, begin, end

    def _dense(self, n_q: int, n_kv: int) -> Booleans:
        seen = np.zeros((n_q, n_kv), dtype=bool)
        for key, begin, end in zip(*self._stays(), strict=True):
            seen[begin:end, key] = True
        return seen

    def _seen_keys(self, n_q: int, n_kv: int) -> Booleans:
        seen = np.zeros(n_kv, dtype=bool)
        seen[self.first_row] = seen[self.added.keys] = True
        return seen

    def _joined(self, other: Mask) -> Mask | None:
        if not isinstance(other, Causal):
            return None
        keys, begin, end = self._stays()
        begin = np.maximum(begin, keys)
        kept = begin < end
        keys, begin, end = keys[kept], begin[kept], end[kept]
        comes, goes = begin > 0, end < self.num_rows
        return RowChange(
            keys[~comes],
            by_row(keys[comes], begin[comes], self.num_rows),
            by_row(keys[goes], end[goes], self.num_rows),
        )


def by_row(keys: Indices, rows: Indices, num_rows: int) -> KeyLists:
    """The keys of rows 1 to ``num_rows - 1``, each row's in rising order."""
    order = np.lexsort((keys, rows))
    counts = np.bincount(rows - 1, minlength=num_rows - 1)
    return KeyLists(keys[order], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))


def key_lists(name: str, lists: Sequence[object] | KeyLists) -> KeyLists:
    """`lists` as frozen KeyLists, each list in rising order and without a key twice."""
    if isinstance(lists, KeyLists):
        keys = index_array("RowChange", f"{name}.keys", lists.keys)
        offsets = index_array("RowChange", f"{name}.offsets", lists.offsets)
        if (
            not offsets.size
            or offsets[0]
            or offsets[-1] != len(keys)
            or np.any(np.diff(offsets) < 0)
        ):
            raise _validate.wrong(
                "RowChange",
                f"{name}.offsets",
                "does not cut the keys into lists",
                f"rising numbers from 0 to {len(keys)}",
                offsets,
            )
    else:
        arrays = [index_array("RowChange", f"{name}[{l}]", keys) for l, keys in enumerate(lists)]
        keys = np.concatenate([*arrays, np.zeros(0, np.int64)])
        offsets = np.cumsum([0, *map(len, arrays)])
    rows = KeyLists(keys, offsets).rows()
    keys = keys[np.lexsort((keys, rows))]
    twice = (keys[1:] == keys[:-1]) & (rows[1:] == rows[:-1])
    if np.any(twice):
        at = int(np.argmax(twice))
        raise _validate.wrong(
            "RowChange", f"{name}[{rows[at]}]", "names a key twice", "distinct keys", keys[at]
        )
    return KeyLists(frozen(keys), frozen(offsets.astype(np.int64)))


def check_turns(first: Indices, added: KeyLists, removed: KeyLists) -> None:
    """Every key comes and goes by turns, coming first, and at most one of both in a row."""
    keys = np.concatenate([first, added.keys, removed.keys])
    rows = np.concatenate([np.zeros_like(first), added.rows() + 1, removed.rows() + 1])
    comes = np.arange(len(keys)) < len(first) + len(added.keys)
    order = np.lexsort((~comes, rows, keys))
    keys, rows, comes = keys[order], rows[order], comes[order]
    turn = np.arange(len(keys)) - np.searchsorted(keys, keys)
    again = np.r_[False, (keys[1:] == keys[:-1]) & (rows[1:] == rows[:-1])]
    wrong = (comes != (turn % 2 == 0)) | again
    if not np.any(wrong):
        return
    at = int(np.argmax(wrong))
    row, key = int(rows[at]), int(keys[at])
    name = "added" if comes[at] and not again[at] else "removed"
    fault = {
        "added": f"adds key {key}, which query {row - 1} sees",
        "removed": f"removes key {key}, which query {row - 1} does not see",
    }[name]
    expected = {"added": "a key it does not see", "removed": "a key it sees"}[name]
    raise _validate.wrong("RowChange", f"{name}[{row - 1}]", fault, expected, key)
