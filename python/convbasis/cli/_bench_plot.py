"""The picture of `convbasis bench`: time against n, time against k, and a map of the speed-up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, LogLocator, NullLocator

from ..cost_model import break_even
from ._bench_cases import Grid
from ._bench_job import Outcome, Result
from ._bench_peers import BY_STRIP
from ._bench_text import versions
from ._names import CONV, EXACT, TORCH
from ._plot_style import BLUE, GREEN, GREY, ORANGE, RED, headline, page

COLOURS = {CONV: BLUE, EXACT: ORANGE, TORCH: GREEN, BY_STRIP: RED}
MARKERS = {CONV: "o", EXACT: "s", TORCH: "D", BY_STRIP: "^"}


def draw(outcome: Outcome, grid: Grid) -> bytes:
    """The picture as the content of a PNG file."""
    settings = outcome.settings
    threads = f"{settings.num_threads} thread{'s' if settings.num_threads > 1 else ''}"
    baseline = next(result.baseline for result in outcome.grid if result.baseline)
    with page(16.5, 5.9) as (figure, stream):
        axes = figure.subplots(1, 3, width_ratios=(1, 1, 1.12))
        length_panel(axes[0], outcome.grid, grid)
        bases_panel(axes[1], outcome, grid)
        speedup_panel(figure, axes[2], outcome, baseline)
        headline(
            figure,
            f"Causal attention, recovery included: {settings.dtype}, head_dim "
            f"{settings.head_dim}, one head, {threads}",
            ", ".join(f"{name} {version}" for name, version in versions().items())
            + f", seed {settings.seed}.  Medians and ranges of a few interleaved runs.",
        )
    return stream.getvalue()


def length_panel(axes: Any, results: list[Result], grid: Grid) -> None:
    """Time of all methods against n."""
    chosen = [result for result in results if result.contest.num_bases == grid.num_bases]
    for method in COLOURS:
        line(axes, method, chosen, lambda result: result.contest.n)
    log_axes(axes, [result.contest.n for result in chosen], "sequence length n")
    axes.set(title=f"Time against n, k = {grid.num_bases} strips", ylabel="median time")
    name_lines(axes)


def bases_panel(axes: Any, outcome: Outcome, grid: Grid) -> None:
    """Time against k, with the times of exact attention, which do not depend on it."""
    chosen = [result for result in outcome.grid if result.contest.n == grid.length]
    bases = [result.contest.num_bases for result in chosen]
    for method in (CONV, BY_STRIP):
        line(axes, method, chosen, lambda result: result.contest.num_bases)
    measured = next(result for result in chosen if result.contest.num_bases == grid.num_bases)
    for method in (EXACT, TORCH):
        if method in measured.scores:
            seconds = measured.scores[method].seconds.median
            axes.axhline(seconds, color=COLOURS[method], label=method)
    log_axes(axes, bases, "number of strips k")
    most = break_even(grid.length, outcome.settings.head_dim)
    axes.set_xlim(right=1.4 * max(most, bases[-1]))
    axes.axvline(most, color=GREY, linestyle="--", linewidth=1.2)
    axes.annotate(
        f"break-even of the\ncost model, k = {most:,}",
        (most, 0.02),
        (-5, 0),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="right",
        color=GREY,
        path_effects=[withStroke(linewidth=3, foreground="white")],
    )
    axes.set(title=f"Time against k, n = {grid.length:,}", ylabel="median time")
    name_lines(axes)


def speedup_panel(figure: Any, axes: Any, outcome: Outcome, baseline: str) -> None:
    """How many times as fast as the baseline conv_attention is, over n and k."""
    lengths = sorted({result.contest.n for result in outcome.grid})
    bases = sorted({result.contest.num_bases for result in outcome.grid})
    seconds = {
        result.contest.n: result.scores[baseline].seconds.median
        for result in outcome.grid
        if baseline in result.scores
    }
    image = np.full((len(bases), len(lengths)), np.nan)
    for result in outcome.grid:
        row, column = bases.index(result.contest.num_bases), lengths.index(result.contest.n)
        image[row, column] = seconds[result.contest.n] / result.scores[CONV].seconds.median
    largest = max(4.0, float(np.nanmax(image)))
    smallest = min(0.25, float(np.nanmin(image)))
    norm = TwoSlopeNorm(0.0, np.log2(smallest), np.log2(largest))
    shown = axes.pcolormesh(
        edges(lengths), edges(bases), np.log2(image), norm=norm, cmap="RdBu", edgecolor="white"
    )
    for row, column in np.argwhere(np.isfinite(image)):
        value = image[row, column]
        place = float(norm(np.log2(value)))
        strong = abs(place - 0.5) > 0.3
        axes.text(
            lengths[column],
            bases[row],
            f"{value:.{0 if value >= 10 else 1}f}",
            ha="center",
            va="center",
            zorder=4,  # above the line
            color="white" if strong else "#222222",
            path_effects=[withStroke(linewidth=3, foreground=shown.cmap(place))],
        )
    log_axes(axes, lengths, "sequence length n", limits=edges(lengths)[[0, -1]])
    axes.set_yscale("log", base=2)
    plain_ticks(axes.yaxis, bases)
    borders = np.log(edges(lengths))
    fine = np.exp(np.linspace(borders[0], borders[-1], 100))
    limit = [break_even(int(n), outcome.settings.head_dim) for n in fine]
    halo = [withStroke(linewidth=4, foreground="white")]
    axes.plot(fine, limit, color="black", linewidth=1.8, linestyle="--", path_effects=halo)
    axes.set(
        title=f"conv_attention: times as fast as {baseline}",
        ylabel="number of strips k",
        ylim=edges(bases)[[0, -1]],
    )
    inside = int(np.searchsorted(limit, edges(bases)[-1]))  # of the line, which rises
    if inside:
        axes.annotate(
            "break-even of\nthe cost model",
            (fine[inside // 2], limit[inside // 2]),
            (0.015, 0.985),
            textcoords="axes fraction",
            va="top",
            arrowprops={"arrowstyle": "-", "color": "black", "linewidth": 0.8},
            zorder=5,
        )
    axes.set_facecolor("#F0F0F0")  # where nothing was measured
    bar = figure.colorbar(shown, ax=axes, pad=0.02, aspect=30)
    low, high = int(np.ceil(np.log2(smallest))), int(np.floor(np.log2(largest)))
    powers = range(low, high + 1)
    bar.set_ticks(list(powers), labels=[f"{2.0**power:g}x" for power in powers])
    bar.outline.set_visible(False)


def line(axes: Any, method: str, results: list[Result], place: Callable[[Result], int]) -> None:
    """Medians with ranges of one method, where it was measured."""
    found = [result for result in results if method in result.scores]
    if not found:
        return
    seconds = [result.scores[method].seconds for result in found]
    medians = np.array([entry.median for entry in seconds])
    ranges = [
        medians - [min(entry.runs) for entry in seconds],
        [max(entry.runs) for entry in seconds] - medians,
    ]
    axes.errorbar(
        [place(result) for result in found],
        medians,
        ranges,
        color=COLOURS[method],
        marker=MARKERS[method],
        markersize=5,
        elinewidth=1.0,
        label=method,
    )


def name_lines(axes: Any) -> None:
    """A legend above the lines, and a grid below them."""
    axes.legend(loc="upper left", frameon=True, framealpha=0.9, edgecolor="none")
    axes.grid(color="#E5E5E5", linewidth=0.7)
    axes.set_axisbelow(True)


def log_axes(axes: Any, values: Sequence[int], label: str, limits: Any = None) -> None:
    """Logarithmic axes with plain numbers: `values` below, seconds and milliseconds beside."""
    axes.set_xscale("log", base=2)
    plain_ticks(axes.xaxis, values)
    axes.set_xlabel(label)
    if limits is not None:
        axes.set_xlim(limits)
        return
    axes.set_yscale("log")
    heights = np.concatenate([drawn.get_ydata() for drawn in axes.get_lines()])
    low, high = heights.min() / 1.5, heights.max() * 1.5  # a single slow run may end outside
    high *= (high / low) ** 0.3  # room for the legend
    axes.set_ylim(low, high)
    steps = (1.0, 2.0, 5.0) if high / low < 1e4 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=steps, numticks=20))
    axes.yaxis.set_major_formatter(FuncFormatter(duration))
    axes.yaxis.set_minor_locator(NullLocator())


def plain_ticks(axis: Any, values: Sequence[int]) -> None:
    """A tick at each value, or at every second one where there are many."""
    chosen = list(values[:: 2 if len(values) > 7 else 1])
    axis.set_major_locator(FixedLocator(chosen))
    axis.set_major_formatter(FixedFormatter([f"{value:,}" for value in chosen]))
    axis.set_minor_locator(NullLocator())


def duration(seconds: float, _: object = None) -> str:
    """A tick label with its unit."""
    if seconds >= 1.0:
        return f"{seconds:,.0f} s"
    return f"{1e3 * seconds:g} ms"


def edges(values: Sequence[int]) -> Any:
    """Borders between `values` on a logarithmic scale."""
    logs = np.log(values)
    middles = (logs[1:] + logs[:-1]) / 2
    ends = logs[0] - (middles[0] - logs[0]), logs[-1] + (logs[-1] - middles[-1])
    return np.exp(np.concatenate([[ends[0]], middles, [ends[1]]]))
