"""What the pictures of the command have in common: colours, style, a page as a PNG."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib.style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter

from .. import __version__

# Colours that stay apart for every kind of colour vision (Okabe and Ito), and paler ones.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#707070"
LIGHT_BLUE, PALE = "#66AAD2", "#CCCCCC"
THOUSANDS = FuncFormatter(lambda value, _: f"{value:,.0f}")

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


@contextmanager
def page(width: float, height: float) -> Iterator[tuple[Any, io.BytesIO]]:
    """An empty figure, in inches, and where its PNG is found afterwards."""
    with matplotlib.style.context(["default", STYLE]):
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.03, hspace=0.03)
        figure = Figure(figsize=(width, height), dpi=150, layout=layout)
        FigureCanvasAgg(figure)
        stream = io.BytesIO()
        yield figure, stream
        figure.savefig(stream, format="png", metadata={"Software": f"convbasis {__version__}"})


def headline(figure: Any, title: str, note: str) -> None:
    """A title above, and how the picture was made below."""
    figure.suptitle(title, fontsize=14, fontweight="bold", x=0.012, ha="left")
    figure.supxlabel(note, fontsize=9, color="#555555", x=0.012, ha="left")
