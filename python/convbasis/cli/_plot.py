"""The picture of `convbasis demo`: four panels on one page, drawn by matplotlib."""

from __future__ import annotations

import io
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from .. import __version__, build_info
from ._demo_job import EXACT, Outcome
from ._plot_panels import errors_panel, kernels_panel, matrix_panel, stages_panel, times_panel

STYLE = {
    "font.size": 9.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.labelcolor": "#333333",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
}


def draw(outcome: Outcome) -> bytes:
    """The picture as the content of a PNG file."""
    with matplotlib.style.context(["default", STYLE]):
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.03, hspace=0.03)
        figure = Figure(figsize=(13, 10.4), dpi=150, layout=layout)
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(2, 2, height_ratios=(1.25, 1))
        matrix_panel(figure, figure.add_subplot(grid[0, 0]), outcome)
        kernels_panel(figure.add_subplot(grid[0, 1]), outcome)
        errors_panel(figure.add_subplot(grid[1, 0]), outcome)
        clocks = grid[1, 1].subgridspec(2, 1, height_ratios=(1, 1))
        times_panel(figure.add_subplot(clocks[0]), outcome)
        stages_panel(figure.add_subplot(clocks[1]), outcome)
        headline(figure, outcome)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", metadata={"Software": f"convbasis {__version__}"})
    return stream.getvalue()


def headline(figure: Any, outcome: Outcome) -> None:
    """What the page shows, and how it was made."""
    setup, count = outcome.setup, outcome.starts.size
    figure.suptitle(
        f"Causal attention through {count} recovered strip{'s' if count > 1 else ''}: "
        f"n = {setup.n:,}, head_dim {setup.head_dim}, {setup.dtype}",
        fontsize=14,
        fontweight="bold",
        x=0.012,
        ha="left",
    )
    threads = f"{setup.num_threads} thread{'s' if setup.num_threads > 1 else ''}"
    figure.supxlabel(
        f"convbasis {__version__}, {threads}, SIMD {build_info()['simd']}, NumPy {np.__version__}, "
        f"seed {setup.seed}.  Relative error {outcome.error:.1e} (budget {outcome.budget:.1e}), "
        f"{outcome.speedup(EXACT):.1f} times as fast as exact attention.",
        fontsize=9,
        color="#555555",
        x=0.012,
        ha="left",
    )
