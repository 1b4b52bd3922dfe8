"""Masks with structure, for attention that never forms a matrix of all queries and keys.

A mask says which keys each query sees. All have linear size, cannot be changed, compare and hash
by value, and give a matrix only by ``to_dense(n_q, n_kv)``. ``mask & Causal()`` works for every
mask. A query that sees nothing gets the output 0 and the lse -inf.

================== ==========================================================
`Causal`           query i sees keys 0..i
`RowWindow`        query i sees keys ``start[i] <= j < stop[i]``
`RowChange`        row i differs from row i - 1 in a few keys
`DistinctRows`     few distinct rows
`DistinctColumns`  few distinct columns
`SlidingWindow`    query i sees keys at a distance below the size
`Longformer`       a sliding window and global tokens
================== ==========================================================

The costs in the docstrings are those of ``(W o U1 U2^T) V`` with ``r`` features and values of
``d_v`` columns. Source: Conv-Basis (arXiv 2405.05219), section on low-rank approximation.
"""

from ._base import Causal, Mask
from ._patterns import DistinctColumns, DistinctRows
from ._row_change import KeyLists, RowChange
from ._windows import Longformer, RowWindow, SlidingWindow

__all__ = [
    "Causal",
    "DistinctColumns",
    "DistinctRows",
    "KeyLists",
    "Longformer",
    "Mask",
    "RowChange",
    "RowWindow",
    "SlidingWindow",
]
