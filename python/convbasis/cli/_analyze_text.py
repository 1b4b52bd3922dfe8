"""What `convbasis analyze` prints, as text and as JSON."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__, build_info
from .._calibrated import SHORTEST
from ._analyze_job import Analysis
from ._analyze_rows import SINKS, WINDOW

NAMES = {
    "strips": "plain strips, k =",
    "window": f"window and {SINKS} first keys, w =",
    "heavy": f"window {WINDOW} and heavy keys, c =",
}


def settings_of(analysis: Analysis) -> dict[str, tuple[int, ...]]:
    """What was tried, by name."""
    sweep = analysis.sweep
    return {"strips": sweep.num_bases, "window": sweep.windows, "heavy": sweep.heavy_keys}


def text(analysis: Analysis) -> list[str]:
    """The lines for people."""
    heads = analysis.heads
    layers, count, n, head_dim = heads.query.shape
    return [
        f"convbasis {__version__} analyze: {heads.origin}, {layers} layers of {count} query heads "
        f"on {heads.key.shape[1]} key heads, n = {n:,}, head_dim {head_dim}, {heads.query.dtype}",
        "",
        *head_table(analysis),
        "",
        *curves(analysis),
        "",
        *costs(analysis),
        "",
        *kinds(analysis),
    ]


def head_table(analysis: Analysis) -> list[str]:
    """The way that does for each head; one line a layer."""
    width = max(len("calibrated"), len("strips 1024"))
    count = analysis.heads.query.shape[1]
    return [
        f"cheapest way with an error of at most {analysis.tol:g}, by layer and head",
        "layer  " + "  ".join(f"{f'head {head}':<{width}}" for head in range(count)).rstrip(),
        *(
            f"{layer:>5}  "
            + "  ".join(f"{analysis.kind(place, head):<{width}}" for head in range(count)).rstrip()
            for place, layer in enumerate(analysis.heads.layers)
        ),
        *legend(analysis),
    ]


def legend(analysis: Analysis) -> list[str]:
    """What the kinds in the table mean, those that are there."""
    meanings = {
        "strips": "position decides: conv_attention with RecoverOptions(num_bases=...)",
        "window": "the nearest keys and the first ones alone would do",
        "heavy": "these and so many keys with the most attention would do",
        "calibrated": "conv_attention with CalibrateOptions()",
        "content": "conv_attention computes the head exactly",
        "too short": f"conv_attention computes less than {SHORTEST:,} positions exactly",
    }
    found = families(analysis)
    return [f"       {kind}: {told}" for kind, told in meanings.items() if kind in found]


def families(analysis: Analysis) -> Counter[str]:
    """How many heads are of each kind, whatever its number."""
    layers, count = analysis.heads.query.shape[:2]
    every = (analysis.kind(layer, head) for layer in range(layers) for head in range(count))
    return Counter(kind.rstrip(" 0123456789") for kind in every)


def curves(analysis: Analysis) -> list[str]:
    """Errors against each setting, over heads."""
    lines = ["relative error over heads: median (10 % to 90 %), heads within tol"]
    for name, settings in settings_of(analysis).items():
        errors = analysis.errors[name].reshape(-1, len(settings))
        low, middle, high = np.quantile(errors, (0.1, 0.5, 0.9), axis=0)
        for i, setting in enumerate(settings):
            share = np.mean(errors[:, i] <= analysis.tol)
            lines.append(
                f"  {NAMES[name]} {setting:<6} {middle[i]:6.3f}  ({low[i]:.3f} to {high[i]:.3f})  "
                f"{share:4.0%}"
            )
    return lines


def costs(analysis: Analysis) -> list[str]:
    """What each tolerance costs."""
    lines = ["conv_attention: what a tolerance costs, over all heads"]
    for entry in analysis.calibrated:
        lines.append(
            f"  tol {entry.tol:<5g} logits computed {entry.exact_share.mean():4.0%}, heads "
            f"exact {entry.exact.mean():4.0%}, estimated error {np.mean(entry.error):.3f}, "
            f"{entry.seconds:.2f} s"
        )
    return lines


def kinds(analysis: Analysis) -> list[str]:
    """How many heads are of each kind."""
    said = ", ".join(f"{number} {name}" for name, number in families(analysis).most_common())
    return [f"heads     {said}"]


def as_dict(analysis: Analysis, pictures: list[Path]) -> dict[str, Any]:
    """The content of ``--json``."""
    heads = analysis.heads
    layers, count, n, head_dim = heads.query.shape
    return {
        "version": __version__,
        "origin": heads.origin,
        "layers": heads.layers,
        "heads": count,
        "kv_heads": heads.key.shape[1],
        "n": n,
        "head_dim": head_dim,
        "scales": heads.scales,
        "tol": analysis.tol,
        "kinds": [[analysis.kind(i, head) for head in range(count)] for i in range(layers)],
        "errors": {
            name: {"settings": settings, "errors": analysis.errors[name]}
            for name, settings in settings_of(analysis).items()
        },
        "calibrated": [
            {
                "tol": entry.tol,
                "exact_share": entry.exact_share,
                "error_estimate": entry.error,
                "exact": entry.exact,
                "seconds": entry.seconds,
            }
            for entry in analysis.calibrated
        ],
        "build": build_info(),
        "pictures": [str(path) for path in pictures],
    }
