"""The picture of `convbasis demo`: four panels on one page, drawn by matplotlib."""

from __future__ import annotations

import numpy as np

from .. import __version__, build_info
from ._demo_job import Outcome
from ._names import EXACT
from ._plot_panels import errors_panel, kernels_panel, matrix_panel, stages_panel, times_panel
from ._plot_style import headline, page


def draw(outcome: Outcome) -> bytes:
    """The picture as the content of a PNG file."""
    with page(13, 10.4) as (figure, stream):
        grid = figure.add_gridspec(2, 2, height_ratios=(1.25, 1))
        matrix_panel(figure, figure.add_subplot(grid[0, 0]), outcome)
        kernels_panel(figure.add_subplot(grid[0, 1]), outcome)
        errors_panel(figure.add_subplot(grid[1, 0]), outcome)
        clocks = grid[1, 1].subgridspec(2, 1, height_ratios=(1, 1))
        times_panel(figure.add_subplot(clocks[0]), outcome)
        stages_panel(figure.add_subplot(clocks[1]), outcome)
        headline(figure, title(outcome), note(outcome))
    return stream.getvalue()


def title(outcome: Outcome) -> str:
    """What the page shows."""
    setup, count = outcome.setup, outcome.starts.size
    return (
        f"Causal attention through {count} recovered strip{'s' if count > 1 else ''}: "
        f"n = {setup.n:,}, head_dim {setup.head_dim}, {setup.dtype}"
    )


def note(outcome: Outcome) -> str:
    """How it was made."""
    setup = outcome.setup
    threads = f"{setup.num_threads} thread{'s' if setup.num_threads > 1 else ''}"
    return (
        f"convbasis {__version__}, {threads}, SIMD {build_info()['simd']}, NumPy {np.__version__}, "
        f"seed {setup.seed}.  Relative error {outcome.error:.1e} (budget {outcome.budget:.1e}), "
        f"{outcome.speedup(EXACT):.1f} times as fast as exact attention."
    )
