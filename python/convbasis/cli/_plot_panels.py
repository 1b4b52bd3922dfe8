"""The panels of the demonstration's picture, each drawn into given axes."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.colors import LogNorm

from ._demo_job import JUDGED, Outcome
from ._names import CONV, EXACT, TORCH
from ._plot_style import BLUE, GREEN, GREY, LIGHT_BLUE, ORANGE, PALE, RED, THOUSANDS

#: Rows and columns of the picture of the matrix.
PIXELS = 480

#: Strips and lags that are drawn as lines.
MAX_LINES, MAX_LAGS = 20, 128

STAGES = {
    "check": "check",
    "recover": "find strips",
    "kernels": "kernels",
    "attend": "attend",
    "estimate": "estimate error",
}


def weights_on_grid(outcome: Outcome) -> Any:
    """Softmax weights of evenly spaced rows, exactly; means over equally many key columns.

    A masked array, in units of ``1 / (i + 1)``, the weight if row i saw all its keys alike.
    """
    problem = outcome.problem
    query, key = problem.query.astype(np.float64), problem.key.astype(np.float64)
    n = len(query)
    pixels = min(PIXELS, n)
    edges = np.arange(pixels) * n // pixels
    widths = np.diff(np.append(edges, n))
    rows = edges + widths // 2
    image = np.zeros((pixels, pixels))
    for pixel, row in enumerate(rows):
        logits = problem.scale * (key[: row + 1] @ query[row])
        weights = np.zeros(n)
        weights[: row + 1] = np.exp(logits - logits.max())
        seen = np.clip(row + 1 - edges, 1, widths)
        sums = np.add.reduceat(weights, edges)
        image[pixel] = sums / seen * (row + 1) / weights.sum()
    return np.ma.masked_array(image, mask=edges[None, :] > rows[:, None])


def matrix_panel(figure: Any, axes: Any, outcome: Outcome) -> None:
    """The attention matrix with the starts of the strips."""
    n, starts = outcome.setup.n, outcome.starts
    image = weights_on_grid(outcome)
    low, high = np.percentile(image.compressed(), [0.5, 99.9])
    norm = LogNorm(min(low, 0.5), max(high, 2.0))
    shown = axes.imshow(image, norm=norm, cmap="magma", extent=(0, n, n, 0), aspect="auto")
    axes.vlines(starts[1:], starts[1:], n, color="white", linewidth=0.6, alpha=0.55)
    axes.plot(
        starts, starts, "v", color=BLUE, markersize=5, clip_on=False, label="recovered strip starts"
    )
    axes.legend(loc="upper right")
    axes.set(title="Attention matrix", xlabel="key column j", ylabel="query row i")
    axes.xaxis.set_major_formatter(THOUSANDS)
    axes.yaxis.set_major_formatter(THOUSANDS)
    bar = figure.colorbar(shown, ax=axes, pad=0.02, aspect=30)
    bar.set_label("weight, as a multiple of 1 / (keys seen)")
    bar.outline.set_visible(False)


def kernels_panel(axes: Any, outcome: Outcome) -> None:
    """Logit against lag, one line a strip above the other, over the planted kernels."""
    n, starts = outcome.setup.n, outcome.starts
    chosen = np.unique(np.linspace(0, starts.size - 1, min(starts.size, MAX_LINES)).astype(int))
    lags = min(MAX_LAGS, n)
    planted = {int(start): row for row, start in enumerate(outcome.problem.starts)}
    drawn = outcome.basis.kernels[chosen, :lags]
    step = 0.62 * np.ptp(drawn, axis=1).max() or 1.0
    colours = colour_map(chosen.size)
    heights = drawn - step * np.arange(chosen.size)[:, None]
    for place, (row, colour) in enumerate(zip(chosen, colours, strict=True)):
        count = min(lags, n - int(starts[row]))
        if int(starts[row]) in planted:
            truth = outcome.problem.kernels[planted[int(starts[row])], :count]
            axes.plot(truth - step * place, color=PALE, linewidth=4.0, solid_capstyle="round")
        axes.plot(heights[place, :count], color=colour, linewidth=1.2)
    axes.plot([], [], color=PALE, linewidth=4.0, label="planted")
    axes.plot([], [], color=colours[len(colours) // 2], linewidth=1.2, label="recovered")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0.2)
    axes.set_yticks(-step * np.arange(chosen.size), [f"{starts[row]:,}" for row in chosen])
    bottom, top = heights.min(), heights.max()
    axes.set(
        title="Kernels of the strips",
        xlabel=f"lag i - j, the first {lags} of {n:,}",
        ylabel="strip, by its first column",
        xlim=(0, lags * 1.08),
        ylim=(bottom - 0.03 * (top - bottom), top + 0.03 * (top - bottom)),
    )
    axes.spines["bottom"].set_bounds(0, lags)
    length, middle = nice(min(2 * step, (top - bottom) / 2)), (top + bottom) / 2
    ends = [middle - length / 2, middle + length / 2]
    axes.plot([lags * 1.04] * 2, ends, color="#333333", linewidth=2.0, clip_on=False)
    axes.text(lags * 1.05, middle, f"{length:g} in the logit", rotation=270, va="center")


def errors_panel(axes: Any, outcome: Outcome) -> None:
    """Relative error of each row, its median, and what the call estimates for the whole."""
    errors = np.maximum(outcome.row_errors, 1e-18)
    low, high = np.maximum(outcome.report.error_interval, 1e-18)
    axes.axhspan(low, high, color=ORANGE, alpha=0.2, linewidth=0)
    rows, size = np.arange(errors.size), np.clip(2e4 / errors.size, 2.5, 12.0)
    axes.scatter(rows, errors, s=size, color=BLUE, alpha=0.22, linewidths=0, rasterized=True)
    axes.plot([], [], "o", color=BLUE, markersize=4, label="one row")
    lines = (
        ("median of the rows", np.median(errors), LIGHT_BLUE, "-"),
        ("whole output", outcome.error, "black", "-"),
        ("the call's own estimate, with interval", outcome.report.error_estimate, RED, "--"),
        ("budget of the whole", outcome.budget, GREY, ":"),
    )
    for label, height, colour, dashes in lines:
        axes.axhline(height, color=colour, linestyle=dashes, linewidth=1.8, label=label)
    top = 1.5 * max(errors.max(), outcome.budget)
    bottom = min(np.percentile(errors, 1), outcome.error, outcome.report.error_estimate)
    bottom /= (top / bottom) ** 0.4  # room for the legend
    axes.set_yscale("log")
    axes.set(
        title="Relative error by row, against exact attention in float64",
        xlabel="query row i",
        ylabel="||y~ - y|| / ||y||",
        xlim=(0, errors.size),
        ylim=(bottom, top),
    )
    axes.xaxis.set_major_formatter(THOUSANDS)
    axes.legend(loc="lower center", ncols=2, fontsize=9)


def times_panel(axes: Any, outcome: Outcome) -> None:
    """Times of all functions, with their ranges."""
    names = list(outcome.seconds)
    colours = {CONV: BLUE, JUDGED: LIGHT_BLUE, EXACT: ORANGE, TORCH: GREEN}
    medians = [outcome.seconds[name].median for name in names]
    bars(axes, names, medians, [colours[x] for x in names])
    longest = 0.0
    for place, name in enumerate(names):
        runs = [1e3 * run for run in outcome.seconds[name].runs]
        longest = max(longest, *runs)
        axes.plot([min(runs), max(runs)], [place] * 2, color="#333333", linewidth=1.0)
        note = f"  {1e3 * outcome.seconds[name].median:,.3g} ms"
        if name in (EXACT, TORCH):
            note += f" ({outcome.speedup(name):.1f} times)"
        axes.text(max(runs), place, note, va="center", color="#333333")
    axes.set(title="Time: median, and range of interleaved runs")
    axes.set_xlim(0, longest * 1.45)


def stages_panel(axes: Any, outcome: Outcome) -> None:
    """Where conv_attention spends its time."""
    seconds = outcome.report.seconds
    names = [name for name in STAGES if name in seconds]
    colours = [LIGHT_BLUE if name == "estimate" else BLUE for name in names]
    bars(axes, [STAGES[name] for name in names], [seconds[name] for name in names], colours)
    for place, name in enumerate(names):
        note = f"  {1e3 * seconds[name]:.3g} ms"
        axes.text(1e3 * seconds[name], place, note, va="center", color="#333333")
    axes.set(title="Stages of one conv_attention call", xlabel="milliseconds")
    axes.set_xlim(0, 1.3e3 * max(seconds[name] for name in names))


def bars(axes: Any, labels: list[str], seconds: list[float], colours: list[str]) -> None:
    """Horizontal bars in milliseconds, the first at the top."""
    axes.barh(range(len(seconds)), [1e3 * entry for entry in seconds], color=colours, height=0.62)
    axes.set_yticks(range(len(seconds)), labels)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)


def colour_map(count: int) -> list[Any]:
    """`count` colours from dark to light, without the palest."""
    import matplotlib

    return list(matplotlib.colormaps["viridis"](np.linspace(0.0, 0.85, count)))


def nice(length: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is at most `length`."""
    power = 10.0 ** np.floor(np.log10(length))
    return float(max(step * power for step in (1, 2, 5) if step * power <= length))
