"""What simple approximations of one head would err by, on sampled rows, in plain NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SINKS = 4  # first keys that every window is given
WINDOW = 64  # beside the heavy keys
ROWS = 128  # drawn to choose heavy keys from, and as many to judge by


@dataclass(frozen=True)
class Sweep:
    """The settings tried."""

    num_bases: tuple[int, ...]
    windows: tuple[int, ...]
    heavy_keys: tuple[int, ...]


def sweep_of(n: int) -> Sweep:
    """Strips up to n/4, windows and heavy keys up to n/2."""
    powers = [4**i for i in range(12)]
    return Sweep(
        tuple(k for k in powers if k <= n // 4),
        tuple(4 * w for w in powers if 16 <= 4 * w <= n // 2),
        (0, *(4 * c for c in powers if 16 <= 4 * c <= n // 2)),
    )


def sampled(n: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to choose by and rows to judge by; each a random one out of every n / ROWS."""
    rng = np.random.default_rng(seed)
    count = min(ROWS, n)
    edges = np.arange(count + 1) * n // count
    choose, judge = (rng.integers(edges[:-1], edges[1:]) for _ in range(2))
    return choose, judge


def weights(logits: Any, shown: Any) -> Floats:
    """Softmax over the keys shown; every row shows one."""
    logits = np.where(shown, logits, -np.inf)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: Floats = powers / powers.sum(axis=1, keepdims=True)
    return found


def head_errors(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, scale: float, sweep: Sweep, seed: int
) -> dict[str, list[float]]:
    """Relative errors of one causal head for every setting of the sweep.

    Parameters
    ----------
    query, key, value : ndarray, shapes (n, d), (n, d), (n, d_v)

    Returns
    -------
    dict
        ``strips``: by number of strips, their columns at equal distances; ``window``: by window,
        with the first keys; ``heavy``: by number of heavy keys, with a window of 64.
    """
    n = len(query)
    columns = np.arange(n)
    choose, judge = sampled(n, seed)
    causal = columns <= judge[:, None]
    logits = (scale * (query[judge] @ key.T)).astype(np.float64)
    wide = value.astype(np.float64)
    want = weights(logits, causal) @ wide
    norm = float(np.linalg.norm(want)) or 1.0

    def error(approximate: Any, shown: Any) -> float:
        return float(np.linalg.norm(weights(approximate, shown) @ wide - want)) / norm

    def near(window: int) -> Any:
        return causal & ((columns > judge[:, None] - window) | (columns < SINKS))

    logits_chosen = (scale * (query[choose] @ key.T)).astype(np.float64)
    mass = weights(logits_chosen, columns <= choose[:, None])
    mass = np.where(columns > choose[:, None] - WINDOW, 0.0, mass).sum(axis=0)
    order = np.argsort(-mass, kind="stable")
    return {
        "strips": [
            error(strip_logits(query, key, scale, judge, k), causal) for k in sweep.num_bases
        ],
        "window": [error(logits, near(window)) for window in sweep.windows],
        "heavy": [
            error(logits, near(WINDOW) | (causal & np.isin(columns, order[:count])))
            for count in sweep.heavy_keys
        ],
    }


def strip_logits(
    query: np.ndarray, key: np.ndarray, scale: float, rows: NDArray[np.int64], k: int
) -> Floats:
    """Logits of some rows with k strips: each column stands for those up to the next one."""
    n = len(query)
    starts = np.arange(k) * n // k
    kernels = scale * (query @ key[starts].T)  # (n, k)
    columns = np.arange(n)
    strip = np.searchsorted(starts, columns, side="right") - 1
    source = rows[:, None] - columns + starts[strip]  # beyond the row where the mask hides it
    found: Floats = kernels[np.clip(source, 0, n - 1), strip].astype(np.float64)
    return found
