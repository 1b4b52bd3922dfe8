"""Judges the output of calibrated attention by exact rows, and names the blocks to give up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import _core
from .estimate import relative_error

#: Queries, and keys, of a block in the core.
BLOCK = 64

#: Query blocks at the start that the core takes exactly.
WHOLE_BLOCKS = 4

#: Rows of each head that are judged: one of so many, at most as many.
ROWS_PER_JUDGED, MOST_JUDGED = 32, 128

#: A head that misses is judged again by so many times as many fresh rows before blocks are given
#: up: among few rows, one bad one looks like many.
AGAIN = 3

#: Share of the judged rows that is drawn evenly; the others where errors are to be expected.
EVEN_SHARE = 0.4

#: Power to which the ends of an interval are raised, relative to the estimate. Errors of few rows
#: drawn unevenly have longer tails than those that `relative_error` was made for.
WIDENING = 1.75

#: A head that misses is given so many chances to come within the tolerance by more exact blocks,
#: aiming a little lower than needed.
ROUNDS, AIM = 5, 0.95


def judged_rows(n: int) -> int:
    """Rows of a head that are judged at first."""
    return min(n // ROWS_PER_JUDGED, MOST_JUDGED)


@dataclass(frozen=True)
class Judged:
    """Rows of finished output beside exact attention. Arrays are (heads, ...) of some heads."""

    rows: np.ndarray  # (heads, m), a row may be drawn twice
    counts: np.ndarray  # (heads, m): how many rows each stands for
    errors: np.ndarray  # (heads, m): squared errors
    weight: np.ndarray  # (heads): squared norm of all rows of the output, in the same unit
    expected: np.ndarray  # (heads, blocks): errors up to a factor, as far as shares tell

    def error(self, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Relative error of all rows, and its interval, when blocks not `kept` are exact."""
        stays = np.take_along_axis(kept, self.rows // BLOCK, axis=-1)
        norms = self.weight[..., None] / (self.counts * self.counts.shape[-1])
        estimate, interval = relative_error(np.where(stays, self.errors, 0.0), norms, self.counts)
        middle = np.where(estimate > 0.0, estimate, 1.0)[..., None]
        return estimate, middle * (interval / middle) ** WIDENING

    def whole_error(self) -> tuple[np.ndarray, np.ndarray]:
        """The error and its interval while no block is exact."""
        return self.error(np.ones(self.expected.shape, bool))

    def blocks_kept(self, tol: float) -> np.ndarray:
        """Blocks that need not be exact for intervals to end below `tol`, (heads, blocks).

        Errors of blocks are those expected times one factor a head, that of the judged rows. So
        which rows were judged says nothing about the order in which blocks are given up. How many
        are is told by the same rows, which makes the error left look a little smaller than it
        is; `WIDENING` allows for that.
        """
        order = np.argsort(self.expected, axis=-1, kind="stable")
        rising = np.cumsum(np.take_along_axis(self.expected, order, axis=-1), axis=-1)
        kept = np.ones(self.expected.shape, bool)
        most = rising[..., -1:]
        for _ in range(ROUNDS):
            np.put_along_axis(kept, order, rising <= most, axis=-1)
            end = self.error(kept)[1][..., 1:]
            if (end <= tol).all():
                break
            with np.errstate(divide="ignore", invalid="ignore"):
                shrink = np.where(end <= tol, 1.0, (AIM * tol / end) ** 2)
            most = most * shrink
        kept[~(end[..., 0] <= tol)] = False
        kept[..., :WHOLE_BLOCKS] = True  # exact anyhow
        return kept


@dataclass(frozen=True)
class Verdict:
    """Of all heads. Arrays are (batch, heads, ...); 0 for heads that were not judged."""

    kept: np.ndarray  # (..., blocks): those that need not be exact
    before: np.ndarray  # the error while none is exact
    error: np.ndarray  # the error when those not kept are
    interval: np.ndarray  # (..., 2): of that
    rows: np.ndarray  # how many were judged

    @classmethod
    def of_none(cls, lead: tuple[int, ...], blocks: int) -> Verdict:
        zeros = np.zeros(lead)
        kept = np.zeros((*lead, blocks), bool)
        return cls(kept, zeros, zeros.copy(), np.zeros((*lead, 2)), np.zeros(lead, np.int64))


class Judge:
    """Draws rows, more of them where keys that are not exact weigh more, and looks at them."""

    def __init__(
        self,
        problem: _core.SelfAttention,
        output: np.ndarray,
        share: np.ndarray,
        norms: np.ndarray,
        seed: int,
        threads: int,
    ) -> None:
        """`output` (batch, heads, n, d_v); of its rows, the `share` of far keys, and norms."""
        self.problem, self.output, self.share, self.norms = problem, output, share, norms
        self.seed, self.threads = seed, threads

    def verdict(self, heads: np.ndarray, tol: float | None) -> Verdict:
        """Judges the `heads`, numbers b * heads + h; without a `tol` all blocks are kept."""
        lead, n = self.output.shape[:2], self.output.shape[2]
        found = Verdict.of_none(lead, -(-n // BLOCK))
        at, count = np.unravel_index(heads, lead), judged_rows(n)
        error, interval = self.look(heads, count, 0).whole_error()
        found.kept[at], found.rows[at] = True, count
        found.before[at], found.error[at], found.interval[at] = error, error, interval
        if tol is None or (interval[:, 1] <= tol).all():
            return found
        missing = heads[~(interval[:, 1] <= tol)]
        at = np.unravel_index(missing, lead)
        judged = self.look(missing, AGAIN * count, 1)
        found.kept[at] = judged.blocks_kept(tol)
        found.rows[at] += AGAIN * count
        found.before[at] = judged.whole_error()[0]
        found.error[at], found.interval[at] = judged.error(found.kept[at])
        return found

    def look(self, heads: np.ndarray, count: int, stage: int) -> Judged:
        """`count` rows of each of the `heads`, numbers b * heads + h; fresh ones in each stage."""
        lead, n = self.output.shape[:2], self.output.shape[2]
        at = np.unravel_index(heads, lead)
        first = WHOLE_BLOCKS * BLOCK
        expected = np.square(np.nan_to_num(self.share[at].astype(np.float64), nan=1.0))
        expected[:, :first] = 0.0
        chance = np.zeros_like(expected)
        total = expected.sum(-1, keepdims=True)
        np.divide(expected, total, out=chance, where=total > 0.0)
        chance *= np.where(total > 0.0, 1.0 - EVEN_SHARE, 0.0)
        chance[:, first:] += np.where(total > 0.0, EVEN_SHARE, 1.0) / (n - first)
        rows = self.drawn(chance, heads, count, stage)
        counts = 1.0 / (count * np.take_along_axis(chance, rows, axis=-1))

        right = self.problem.exact_rows(rows, heads, self.threads)
        norms = self.norms[at]
        unit = norms.max(axis=-1, initial=0.0, keepdims=True)
        unit[unit == 0.0] = 1.0
        found = self.output[at[0][:, None], at[1][:, None], rows].astype(np.float64)
        errors = np.square((found - right) / unit[..., None]).sum(-1)
        edges = np.arange(0, n, BLOCK)
        return Judged(
            rows,
            counts,
            errors,
            np.square(norms / unit).sum(-1),
            np.add.reduceat(expected, edges, axis=-1),
        )

    def drawn(self, chance: np.ndarray, heads: np.ndarray, count: int, stage: int) -> np.ndarray:
        """`count` rows at even distances of the running sum of each head's chances.

        They depend on the number of the head, and not on which others are judged.
        """
        every = np.random.default_rng([self.seed, stage]).random(self.share[..., 0].size)
        offsets = every[heads][:, None]
        places = (np.arange(count) + offsets) / count
        running = np.cumsum(chance, axis=-1)
        rows = [
            np.searchsorted(sums, wanted * sums[-1], side="right")
            for sums, wanted in zip(running, places, strict=True)
        ]
        drawn: np.ndarray = np.array(rows, np.int64).reshape(places.shape)
        drawn[drawn >= chance.shape[-1]] = chance.shape[-1] - 1
        return drawn
