"""Times of several functions that can be compared: warmed up, interleaved, medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..problems import Problem

#: Rounds of an interleaved run, and the seconds that its functions share.
ROUNDS = 9
MAX_SECONDS = 8.0

#: Rounds that a function takes part in however slow it is.
FEWEST_ROUNDS = 2

#: Pause before each turn: threads of other libraries stop spinning for work, which those of
#: NumPy's OpenBLAS do for 0.1 seconds.
PAUSE = 0.15

#: Seconds that a turn lasts at least: fast functions are called again and again, and what counts
#: is the mean of the turn, its first call with cold caches included.
TURN = 0.05


@dataclass(frozen=True)
class Seconds:
    """Seconds of one call of a function, one entry for each round."""

    runs: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.runs)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "median": self.median,
            "min": min(self.runs),
            "max": max(self.runs),
            "runs": len(self.runs),
        }


def milliseconds(seconds: float) -> str:
    """Three digits or so."""
    value = 1e3 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.{1 if value >= 10 else 2}f}"


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    step: Callable[[str], None],
    *,
    rounds: int = ROUNDS,
    seconds: float = MAX_SECONDS,
) -> dict[str, Seconds]:
    """Time all `functions` in turn, A B C A B C. They are warm already.

    Parameters
    ----------
    functions : mapping of str to function without arguments
    step : function
        Told of each round as it begins.
    rounds : int
    seconds : float
        A function that has used up its equal share of them leaves out the rounds that follow, so
        that slow ones do not cost the fast ones theirs.
    """
    runs: dict[str, list[float]] = {name: [] for name in functions}
    share = seconds / max(len(functions), 1)
    for number in range(rounds):
        step(f"timing, round {number + 1} of {rounds}")
        for name, function in functions.items():
            if number >= FEWEST_ROUNDS and sum(runs[name]) > share:
                continue
            time.sleep(PAUSE)
            runs[name].append(turn(function))
    return {name: Seconds(tuple(times)) for name, times in runs.items()}


def turn(function: Callable[[], object]) -> float:
    """Mean seconds of a call, of as many as fit in a turn."""
    calls = 0
    start = time.perf_counter()
    while True:
        function()
        calls += 1
        elapsed = time.perf_counter() - start
        if elapsed >= TURN:
            return elapsed / calls


def torch_attention(problem: Problem, threads: int) -> tuple[str, Callable[[], Any]] | None:
    """torch's version and its scaled_dot_product_attention of `problem`; None without torch."""
    try:
        import torch
    except (ImportError, OSError):  # OSError: a library of it cannot be loaded
        return None
    torch.set_num_threads(threads)
    arrays = [
        torch.from_numpy(array)[None, None] for array in (problem.query, problem.key, problem.value)
    ]

    def attend() -> np.ndarray:
        with torch.inference_mode():
            out = torch.nn.functional.scaled_dot_product_attention(
                *arrays, is_causal=True, scale=problem.scale
            )
        return np.asarray(out[0, 0].numpy())

    return str(torch.__version__), attend
