"""What conv attention did inside a model, by layer and head."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..report import plain

#: How a call was computed: by conv_attention; exactly because it was short, went on from a cache,
#: or had padding in the middle.
KINDS = ("prefills", "short", "steps", "holes")

#: What is kept of each head: sums over sequences, and largest values.
SUMS = ("sequences", "heads_exact", "blocks_share", "exact_share", "error_estimate")
LARGEST = ("error_high",)


@dataclass
class Layer:
    """Counts of one layer; `heads` has an array (heads,) for each of `SUMS` and `LARGEST`."""

    calls: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    tokens: int = 0
    heads: dict[str, Any] = field(default_factory=dict)

    def add(self, report: Any) -> None:
        """Count the heads of a report, each entry of its batch as one sequence."""
        mask = np.asarray(report.exact_mask)
        shares = np.asarray(getattr(report, "exact_share", mask), float)
        blocks = np.asarray(getattr(report, "blocks_exact", mask), float)
        blocks = np.where(mask, 1.0, blocks / np.maximum(getattr(report, "num_blocks", 1), 1))
        entries = {
            "sequences": np.ones(mask.shape),
            "heads_exact": mask.astype(float),
            "blocks_share": blocks,
            "exact_share": shares,
            "error_estimate": np.asarray(report.error_estimate, float),
            "error_high": np.asarray(report.error_interval, float)[..., 1],
        }
        for name, array in entries.items():
            array = array.reshape(-1, mask.shape[-1])
            new = np.fmax.reduce(array) if name in LARGEST else array.sum(axis=0)
            old = self.heads.get(name)
            merge = np.fmax if name in LARGEST else np.add
            self.heads[name] = new if old is None else merge(old, new)

    def means(self) -> dict[str, Any]:
        """Of each head: means over sequences, and the largest end of an interval."""
        if not self.heads:
            return {}
        count = self.heads["sequences"]
        averages = {name: self.heads[name] / count for name in SUMS[1:]}
        return {**averages, **{name: self.heads[name] for name in LARGEST}}


class Statistics:
    """Counts by layer and head since the start or the last `reset`; print it for a table.

    Attributes
    ----------
    name : str
        The registered name.
    layers : dict of int to Layer
        By ``module.layer_idx``; -1 for a module that has none.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.layers: dict[int, Layer] = {}
        self.lock = threading.Lock()

    def reset(self) -> None:
        """Forget everything."""
        with self.lock:
            self.layers = {}

    def add(
        self, layer: int, kind: str, reports: Iterable[Any], tokens: int, seconds: float
    ) -> None:
        """Count one call."""
        with self.lock:
            entry = self.layers.setdefault(layer, Layer())
            entry.calls[kind] += 1
            entry.seconds[kind] += seconds
            entry.tokens += tokens
            for report in reports:
                entry.add(report)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python numbers and lists; NaN as None."""
        layers = [
            {
                "layer": number,
                "calls": layer.calls,
                "seconds": layer.seconds,
                "tokens": layer.tokens,
                "heads": layer.means(),
            }
            for number, layer in sorted(self.layers.items())
        ]
        found: dict[str, Any] = plain({"name": self.name, "layers": layers})
        return found

    def to_json(self) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), allow_nan=False)

    def __str__(self) -> str:
        if not self.layers:
            return "nothing was computed yet"
        lines = [
            f"attention {self.name!r} by layer: calls by conv_attention (prefills) and computed "
            "exactly (short, steps, holes); means over heads",
            "layer  prefills  short  steps  holes  heads exact  blocks exact  logits computed  "
            "error  at most  seconds",
        ]
        lines += [row(number, layer) for number, layer in sorted(self.layers.items())]
        seconds = sum(sum(layer.seconds.values()) for layer in self.layers.values())
        lines.append(f"all    {seconds:.3f} s in {len(self.layers)} layers")
        return "\n".join(lines)


def row(number: int, layer: Layer) -> str:
    """A line of the table."""
    calls = "  ".join(f"{layer.calls[kind]:>{max(len(kind), 5)}}" for kind in KINDS)
    means = layer.means()
    if means:
        shares = [f"{np.mean(means[name]):.0%}" for name in ("heads_exact", "blocks_share")]
        shares.append(f"{np.mean(means['exact_share']):.0%}")
        errors = [f"{np.mean(means['error_estimate']):.2g}", f"{np.max(means['error_high']):.2g}"]
    else:
        shares, errors = ["-"] * 3, ["-"] * 2
    return (
        f"{number:>5}  {calls}  {shares[0]:>11}  {shares[1]:>12}  {shares[2]:>15}  {errors[0]:>5}  "
        f"{errors[1]:>7}  {sum(layer.seconds.values()):>7.3f}"
    )
