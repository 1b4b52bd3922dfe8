"""The work of `convbasis analyze`: every head by every simple way, and by the calibrated one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import CalibrateOptions
from .._calibrated import SHORTEST
from ..attention import conv_attention
from ._analyze_input import Heads
from ._analyze_rows import WINDOW, Sweep, head_errors, sweep_of

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Calibrated:
    """conv_attention at one tolerance; arrays (layers, heads)."""

    tol: float
    exact_share: Floats  # logits computed, of those of exact attention
    error: Floats  # estimated, of what was returned
    exact: NDArray[np.bool_]  # computed exactly as a whole
    seconds: float


@dataclass(frozen=True, eq=False)
class Analysis:
    """What came of it. Errors are relative, of sampled rows."""

    heads: Heads
    sweep: Sweep
    tol: float
    errors: dict[str, Floats]  # "strips", "window", "heavy": (layers, heads, settings)
    calibrated: list[Calibrated]  # by growing tol

    def at_tol(self) -> Calibrated:
        """The call with the tolerance asked for."""
        return next(entry for entry in self.calibrated if entry.tol == self.tol)

    def kind(self, layer: int, head: int) -> str:
        """The cheapest way that holds the tolerance; "content" where none does."""
        ways = (
            ("strips", "strips {}", self.sweep.num_bases),
            ("window", "window {}", self.sweep.windows),
            ("heavy", "heavy {}", self.sweep.heavy_keys),
        )
        n = self.heads.n
        for name, label, settings in ways:
            for setting, error in zip(settings, self.errors[name][layer, head], strict=True):
                if error <= self.tol and setting <= max(WINDOW, n // 16):
                    return label.format(setting)
        if n < SHORTEST:
            return "too short"
        return "content" if self.at_tol().exact[layer, head] else "calibrated"


def stages(heads: Heads, tols: list[float]) -> int:
    """Steps that `analyze` tells of."""
    return len(heads.layers) * (1 + len(tols))


def analyze(
    heads: Heads,
    tol: float,
    tols: list[float],
    seed: int,
    threads: int,
    step: Callable[[str], None],
) -> Analysis:
    """Look at every head; ``step(text)`` is told of `stages`."""
    sweep = sweep_of(heads.n)
    errors: dict[str, list[Any]] = {"strips": [], "window": [], "heavy": []}
    reports: dict[float, list[Any]] = {wanted: [] for wanted in tols}
    group = heads.query.shape[1] // heads.key.shape[1]
    for place, layer in enumerate(heads.layers):
        query, key, value = (array[place] for array in (heads.query, heads.key, heads.value))
        scale = heads.scales[place]
        step(f"layer {layer}: strips, windows, heavy keys")
        found = [
            head_errors(query[h], key[h // group], value[h // group], scale, sweep, seed)
            for h in range(len(query))
        ]
        for name, table in errors.items():
            table.append([entry[name] for entry in found])
        for wanted in tols:
            step(f"layer {layer}: conv_attention, tol {wanted:g}")
            _, report = conv_attention(
                query,
                key,
                value,
                is_causal=True,
                scale=scale,
                enable_gqa=True,
                options=CalibrateOptions(seed=seed),
                tol=wanted,
                return_report=True,
                num_threads=threads,
            )
            reports[wanted].append(report)
    arrays = {name: np.array(table) for name, table in errors.items()}
    calibrated = [summary(wanted, reports[wanted]) for wanted in sorted(tols)]
    return Analysis(heads, sweep, tol, arrays, calibrated)


def summary(tol: float, reports: list[Any]) -> Calibrated:
    """The reports of all layers at one tolerance."""
    return Calibrated(
        tol,
        np.array([report.exact_share for report in reports], float),
        np.array([report.error_estimate for report in reports], float),
        np.array([report.exact_mask for report in reports], bool),
        sum(report.seconds["total"] for report in reports),
    )
