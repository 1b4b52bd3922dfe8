"""The figure of benchmarks/sparsify.py: times by columns of x, epsilons by columns kept."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

CARD, INK = "#fbfaf6", "#22252b"
#: Told apart by every common colour vision; what is promised is dashed.
COLOURS = {"leverage": "#1f6f9f", "bss": "#c2410c"}
Curve = Mapping[str, Mapping[float, float]]


def panel(ax: Axes, curves: Curve, dashed: str, x: str, y: str) -> None:
    for name, values in curves.items():
        method, kind = name.split(", ") if ", " in name else (name, "measured")
        style = "--" if kind == dashed else "-"
        marker = None if kind == "promised" else "o"
        points = list(values), list(values.values())
        ax.loglog(*points, style, marker=marker, markersize=4, color=COLOURS[method], label=name)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.grid(True, which="major", alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    if curves:
        ax.legend(frameon=False, fontsize=8)


def draw(file: str, times: Curve, epsilons: Curve, n: int) -> None:
    figure = Figure(figsize=(9, 3.6), facecolor=CARD, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    panel(left, times, "dense", f"d, columns of x (n = {n})", "seconds")
    panel(right, epsilons, "promised", "m / n, columns kept for each row", "epsilon")
    for ax, curves in ((left, times), (right, epsilons)):
        if not curves:
            ax.set_visible(False)  # of a table that was not asked for
        ax.set_facecolor(CARD)
        ax.tick_params(colors=INK)
    right.axhline(1.0, color=INK, linewidth=0.6)  # from there on nothing is certain
    right.set_xticks(list(next(iter(epsilons.values()), [])))
    right.set_yticks([0.25, 0.5, 1, 2, 4])
    for axis in (right.xaxis, right.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    figure.savefig(file, dpi=150, facecolor=CARD)
