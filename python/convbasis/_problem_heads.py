"""One head of a structured problem: starts, strips that differ, query and key rows.

The parts that `convbasis.problems` is put together from. NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

# The default RecoverOptions compare 16 entries and ask for a difference of 1e-2.
HEAD_LENGTH = 16
SMALLEST_DISTANCE = 10 * 1e-2
DRAWS_PER_STRIP = 64

Array = NDArray[Any]
Strip = TypeVar("Strip")


def rotary_head(
    name: str,
    rng: np.random.Generator,
    starts: Array,
    n: int,
    head_dim: int,
    spread: float,
    scale: float,
) -> tuple[Array, Array, Array]:
    """Query (n, d), key (n, d) and kernels (k, n) of one head of `conv_problem`."""
    pairs, constant = head_dim // 2, head_dim % 2
    turn = 2 ** math.ceil(math.log2(max(64, 8 * n)))  # a full circle, in lattice steps
    # Frequencies from one turn in 4 positions down to one in about 4 n, log-uniform.
    exponent = rng.uniform(math.log(turn / (4 * n)), math.log(turn / 4), size=pairs)
    steps = np.rint(np.exp(exponent)).astype(np.int64)
    positions = np.arange(n)

    def angles(lattice: Array) -> Array:
        return np.asarray(2 * np.pi / turn * (lattice % turn))

    turns = angles(np.outer(positions, steps))
    query = np.hstack([np.cos(turns), np.sin(turns), np.ones((n, constant))])

    def kernels_of(strips: list[tuple[Array, Array, Array]], lags: Array) -> Array:
        # cos(w lag - p) = cos(w lag) cos(p) + sin(w lag) sin(p): one product makes them all.
        rows = [
            np.hstack([size * np.cos(angles(phase)), size * np.sin(angles(phase)), offset])
            for size, phase, offset in strips
        ]
        return np.asarray(np.stack(rows) @ query[lags].T)

    def draw() -> tuple[Array, Array, Array]:
        weights = rng.uniform(0.25, 1.0, size=pairs + constant)
        signs = rng.choice([-1.0, 1.0], size=constant)
        weights *= spread * rng.uniform(0.5, 1.5) / np.linalg.norm(weights)
        phase = rng.integers(0, turn, size=pairs)
        return math.sqrt(2) * weights[:pairs], phase, signs * weights[pairs:]

    lags = positions[: min(HEAD_LENGTH, n - starts[-1])]
    strips = draw_apart(name, len(starts), draw, lambda strip: kernels_of([strip], lags)[0], spread)
    key = np.zeros((n, head_dim))
    kernels = kernels_of(strips, positions)
    for r, (start, stop) in enumerate(pairwise_with_end(starts, n)):
        amplitude, phase, offset = strips[r]
        turns = angles(np.outer(positions[start:stop], steps) + phase)
        parts = [
            amplitude * np.cos(turns),
            amplitude * np.sin(turns),
            np.broadcast_to(offset, (stop - start, constant)),
        ]
        key[start:stop] = np.hstack(parts) / scale
        kernels[r, n - start :] = 0.0
    return query, key, kernels


def dyadic_head(
    name: str,
    rng: np.random.Generator,
    starts: Array,
    n: int,
    head_dim: int,
    spread: float,
    scale: float,
) -> tuple[Array, Array, Array]:
    """Query (n, d), key (n, d) and kernels (k, n) of one head of `dyadic_conv_problem`."""
    linear = head_dim >= 3
    period = head_dim - 2 if linear else head_dim
    grain = 2.0 ** (math.floor(math.log2(spread)) - 5)
    slope_unit = 2.0 ** math.floor(math.log2(4 * spread / n)) if linear else 0.0
    largest = 4 * spread + 6 * n * slope_unit  # of any partial sum of a logit
    finest = min(grain, slope_unit) if linear else grain
    if largest / finest >= 2**24:
        raise ValueError(
            f"[{name}] n is too large for exact numbers; expected at most about 2^21; got {n}"
        )
    positions = np.arange(n)

    def kernel_of(strip: tuple[Array, float], lags: Array) -> Array:
        pattern, slope = strip
        return np.asarray(pattern[lags % period] - slope * lags)

    def draw() -> tuple[Array, float]:
        pattern = np.clip(rng.normal(scale=spread, size=period), -4 * spread, 4 * spread)
        pattern = np.trunc(pattern / grain) * grain
        return pattern, slope_unit * int(rng.integers(1, 4))

    lags = positions[: min(HEAD_LENGTH, n - starts[-1])]
    strips = draw_apart(name, len(starts), draw, lambda strip: kernel_of(strip, lags), spread)
    query = np.zeros((n, head_dim))
    query[positions, positions % period] = 1.0
    if linear:
        query[:, period], query[:, period + 1] = -positions, 1.0
    key = np.zeros((n, head_dim))
    kernels = np.zeros((len(starts), n))
    for r, (start, stop) in enumerate(pairwise_with_end(starts, n)):
        pattern, slope = strips[r]
        columns = positions[start:stop]
        key[start:stop, :period] = pattern[(np.arange(period) - columns[:, None]) % period] / scale
        if linear:
            key[start:stop, period] = slope / scale
            key[start:stop, period + 1] = slope * columns / scale
        kernels[r, : n - start] = kernel_of(strips[r], positions[: n - start])
    return query, key, kernels


def noise_dimensions(
    rng: np.random.Generator, n: int, dims: int, largest: float
) -> tuple[Array, Array]:
    """Signs (n, dims) and numbers (n, dims) whose row products stay below `largest` in size.

    ``|sum_c signs[i, c] small[j, c]| <= dims * max|small|``; one part in 10^3 is kept back so that
    rounding to a 16-bit type does not carry a product over the bound.
    """
    signs = rng.choice([-1.0, 1.0], size=(n, dims))
    bound = largest / dims * (1.0 - 1e-3)
    return signs, rng.uniform(-bound, bound, size=(n, dims))


def draw_starts(
    name: str,
    rng: np.random.Generator,
    n: int,
    num_bases: int,
    min_size: int | None,
    first_start: int,
) -> Array:
    """Starts of `num_bases` strips of at least `min_size` columns, the first at `first_start`."""
    room = n - first_start
    if min_size is None:
        min_size = min(max(HEAD_LENGTH, n // (4 * num_bases)), room // num_bases)
    if min_size < 1 or min_size * num_bases > room:
        raise ValueError(
            f"[{name}] min_size leaves no room; expected 1 to "
            f"{room // num_bases} for {num_bases} strips in {room} columns; got "
            f"{min_size}"
        )
    slack = room - min_size * num_bases
    shifts = np.sort(rng.integers(0, slack + 1, size=num_bases))
    shifts[0] = 0
    return np.asarray(first_start + min_size * np.arange(num_bases) + shifts)


def draw_apart(
    name: str,
    count: int,
    draw: Callable[[], Strip],
    head_of: Callable[[Strip], Array],
    spread: float,
) -> list[Strip]:
    """Draw `count` strips whose heads, and 0, lie far from each other in l1.

    A draw is taken when it lies ``spread / 4`` per lag from all others; after some tries the
    farthest is.
    """
    strips: list[Strip] = []
    heads = np.zeros((1, 0))
    for number in range(count):
        best_distance = -1.0
        for _ in range(DRAWS_PER_STRIP):
            strip = draw()
            head = head_of(strip)
            if not heads.size:
                heads = np.zeros((count + 1, len(head)))  # the first one is the 0
            distance = np.abs(heads[: number + 1] - head).sum(axis=1).min()
            if distance > best_distance:
                best_distance, best_strip, best_head = distance, strip, head
            if distance >= spread / 4 * len(head):
                break
        if best_distance < SMALLEST_DISTANCE:
            raise ValueError(
                f"[{name}] spread is too small to tell {count} strips apart; expected "
                f"kernels that differ by {SMALLEST_DISTANCE} in l1 over their first "
                f"{len(best_head)} lags; got {best_distance:.3g} with spread {spread}"
            )
        strips.append(best_strip)
        heads[number + 1] = best_head
    return strips


def pairwise_with_end(starts: Array, n: int) -> Iterator[tuple[int, int]]:
    """``(start, stop)`` of each strip as Python ints."""
    stops = [*starts[1:].tolist(), n]
    return zip(starts.tolist(), stops, strict=True)
