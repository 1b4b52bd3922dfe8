"""The pictures of `convbasis analyze`, drawn by matplotlib."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._analyze_job import Analysis
from ._analyze_rows import SINKS, WINDOW
from ._analyze_text import settings_of
from ._plot_style import BLUE, GREY, LIGHT_BLUE, ORANGE, headline, page

TITLES = {
    "strips": ("Plain strips", "strips k"),
    "window": (f"Window and {SINKS} first keys", "window w"),
    "heavy": (f"Window {WINDOW} and heavy keys", "heavy keys c"),
}


def draw(analysis: Analysis) -> dict[str, bytes]:
    """PNG files by name."""
    return {
        "heads.png": heads(analysis),
        "errors.png": errors(analysis),
        "cost.png": cost(analysis),
    }


def note(analysis: Analysis) -> str:
    """What was looked at."""
    count = analysis.heads.query.shape[0] * analysis.heads.query.shape[1]
    return f"{analysis.heads.origin}: {count} heads, n = {analysis.heads.n:,}"


def heads(analysis: Analysis) -> bytes:
    """Heat maps, layers by heads."""
    layers, count = analysis.heads.query.shape[:2]
    panels: list[tuple[str, Any, Any]] = []
    for name, settings in settings_of(analysis).items():
        place = max(i for i, setting in enumerate(settings) if setting <= analysis.heads.n // 16)
        title = f"{TITLES[name][0]}: error at {settings[place]}"
        panels.append((title, analysis.errors[name][..., place], (0.0, 1.0)))
    chosen = analysis.at_tol()
    title = f"conv_attention, tol {analysis.tol:g}: logits computed"
    panels.append((title, chosen.exact_share, (0.0, 1.0)))
    with page(15, 3.0 + 0.16 * layers) as (figure, stream):
        for axes, (title, values, (low, high)) in zip(
            figure.subplots(1, len(panels), sharey=True), panels, strict=True
        ):
            image = axes.imshow(values, aspect="auto", cmap="viridis", vmin=low, vmax=high)
            axes.set_title(title, fontsize=9.5)
            axes.set_xlabel("head")
            axes.set_xticks(range(0, count, max(1, count // 9)))
            figure.colorbar(image, ax=axes)
        first = figure.axes[0]
        step = max(1, layers // 15)
        first.set_yticks(range(0, layers, step), [str(x) for x in analysis.heads.layers[::step]])
        first.set_ylabel("layer")
        headline(figure, "Which heads can be approximated", note(analysis))
    return stream.getvalue()


def errors(analysis: Analysis) -> bytes:
    """Error against each setting: every head a line, and the median."""
    with page(13, 4.6) as (figure, stream):
        panels = figure.subplots(1, 3, sharey=True)
        for axes, (name, settings) in zip(panels, settings_of(analysis).items(), strict=True):
            table = analysis.errors[name].reshape(-1, len(settings))
            axes.plot(table.T, color=LIGHT_BLUE, alpha=0.25, linewidth=0.7)
            axes.plot(np.median(table, axis=0), color=BLUE, linewidth=2, label="median")
            axes.axhline(analysis.tol, color=ORANGE, label=f"tol {analysis.tol:g}")
            axes.set_xticks(range(len(settings)), [f"{setting:,}" for setting in settings])
            axes.set_yscale("log")
            axes.set_ylim(1e-3, 2.0)
            axes.set_title(TITLES[name][0])
            axes.set_xlabel(TITLES[name][1])
        panels[0].set_ylabel("relative error of the output")
        panels[0].legend()
        headline(figure, "Error of every head against what it costs", note(analysis))
    return stream.getvalue()


def cost(analysis: Analysis) -> bytes:
    """What each tolerance costs."""
    tols = [entry.tol for entry in analysis.calibrated]
    with page(7.5, 4.6) as (figure, stream):
        axes = figure.subplots()
        for label, color, values in (
            ("logits computed", BLUE, [x.exact_share.mean() for x in analysis.calibrated]),
            ("heads computed exactly", GREY, [x.exact.mean() for x in analysis.calibrated]),
            ("estimated error", ORANGE, [np.mean(x.error) for x in analysis.calibrated]),
        ):
            axes.plot(tols, values, "o-", color=color, label=label)
        axes.set_xscale("log")
        axes.set_xticks(tols, [f"{tol:g}" for tol in tols])
        axes.minorticks_off()
        axes.set_ylim(0, 1)
        axes.set_xlabel("tol")
        axes.set_ylabel("mean over heads")
        axes.legend()
        headline(figure, "What a tolerance costs", note(analysis))
    return stream.getvalue()
