"""Where strips begin, before any kernel is formed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Starts(NamedTuple):
    """Where the strips of every head begin."""

    starts: np.ndarray  # (batch, heads, k) int64, padded with n
    num_bases: np.ndarray  # (batch, heads) int64
    complete: np.ndarray  # (batch, heads) bool
    seen_finite: bool  # the search has met every entry of query and key, and all are finite

    def only(self, wanted: np.ndarray, n: int) -> Starts:
        """The same with no strips for all but the `wanted` heads."""
        if wanted.all():
            return self
        num_bases = np.where(wanted, self.num_bases, 0)
        starts = np.where(wanted[..., None], self.starts, n)[..., : num_bases.max(initial=0)]
        return self._replace(starts=np.ascontiguousarray(starts), num_bases=num_bases)
