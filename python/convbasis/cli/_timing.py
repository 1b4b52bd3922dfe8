"""Times of several functions that can be compared: warmed up, interleaved, medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..problems import Problem

#: Rounds of an interleaved run, and the seconds after which no further one is begun.
ROUNDS = 9
MAX_SECONDS = 8.0

#: Pause before each run: threads of other libraries stop spinning for work.
PAUSE = 0.02


@dataclass(frozen=True)
class Seconds:
    """Seconds of one function over all rounds."""

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


def interleaved(
    functions: Mapping[str, Callable[[], object]], step: Callable[[str], None]
) -> dict[str, Seconds]:
    """Time all `functions` in turn, A B C A B C, up to `ROUNDS` times. They are warm already.

    Parameters
    ----------
    functions : mapping of str to function without arguments
    step : function
        Told of each round as it begins.
    """
    runs: dict[str, list[float]] = {name: [] for name in functions}
    began = time.perf_counter()
    for number in range(ROUNDS):
        step(f"timing, round {number + 1} of {ROUNDS}")
        if number and time.perf_counter() - began > MAX_SECONDS:
            continue
        for name, function in functions.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            function()
            runs[name].append(time.perf_counter() - start)
    return {name: Seconds(tuple(seconds)) for name, seconds in runs.items()}


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
