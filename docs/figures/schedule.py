"""Draws schedule.png: how the blocked schedule cuts a product with a conv basis.

    python docs/figures/schedule.py

The example has two levels and four strips. Colours are told apart by every common colour vision;
the card behind them is opaque, so that the picture reads on dark pages too.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle

N, OUTER, INNER = 64, 16, 4  # rows, block lengths of the two levels
STARTS = (0, 11, 26, 45)  # of the strips
PIECE = (16, 26)  # columns of the highlighted piece: strip 1 inside block 1
BLOCK = (48, 64)  # rows of the highlighted output block

CARD, INK, FAINT, HOT = "#fbfaf6", "#22252b", "#8a8f98", "#c2410c"
OUTER_TINTS, INNER_TINTS = ("#8fc1e3", "#b8d9ef"), ("#f0b84a", "#f6d18a")
DIRECT = "#00795c"
PANEL, RIGHT = 80, 131  # the column of steps


def pieces(begin: int, end: int, block: int) -> Iterator[tuple[int, int, int]]:
    """Strip, begin and end of the pieces in [begin, end): strips cut at block borders."""
    cuts = sorted({*range(begin, end, block), *(s for s in STARTS if begin < s < end), end})
    for first, last in pairwise(cuts):
        yield sum(start <= first for start in STARTS) - 1, first, last


def fill_level(ax: Axes, span: range, block: int, tints: tuple[str, str]) -> None:
    """Every piece with every later block of the span."""
    for strip, first, last in pieces(span.start, span.stop, block):
        for row in range((first // block + 1) * block, span.stop, block):
            ax.add_patch(
                Rectangle((first, row), last - first, block, fc=tints[strip % 2], ec=CARD, lw=0.9)
            )


def draw_matrix(ax: Axes) -> None:
    fill_level(ax, range(N), OUTER, OUTER_TINTS)
    for begin in range(0, N, OUTER):
        fill_level(ax, range(begin, begin + OUTER), INNER, INNER_TINTS)
    for i in range(0, N, INNER):
        corners = [(i, i), (i, i + INNER), (i + INNER, i + INNER)]
        ax.add_patch(Polygon(corners, fc=DIRECT, ec=CARD, lw=0.5))
    for start in STARTS[1:]:
        ax.plot([start, start], [start, N], color=INK, lw=1.5, ls=(0, (4, 2)), zorder=3)
    ax.add_patch(Polygon([(0, 0), (0, N), (N, N)], fill=False, ec=INK, lw=1.2, zorder=3))
    for r, (first, last) in enumerate(zip(STARTS, (*STARTS[1:], N), strict=True)):
        ax.text((first + last) / 2, N + 2.0, f"strip {r}", ha="center", color=INK, size=9.5)
    ax.text(-2.2, N / 2, "n rows", ha="center", va="center", rotation=90, color=INK, size=9.5)
    ax.text(N / 2, N + 4.8, "n columns, k = 4 strips", ha="center", color=INK, size=9.5)
    hot = Rectangle((PIECE[0], BLOCK[0]), PIECE[1] - PIECE[0], OUTER, fill=False, ec=HOT, lw=2.6)
    ax.add_patch(hot).set_zorder(5)


def draw_vectors(ax: Axes) -> None:
    """V above the matrix, Y beside it, both cut as the outer level cuts them."""
    for strip, first, last in pieces(0, N, OUTER):
        ax.add_patch(
            Rectangle((first, -8), last - first, 4, fc=OUTER_TINTS[strip % 2], ec=CARD, lw=0.9)
        )
    for row in range(0, N, OUTER):
        ax.add_patch(Rectangle((N + 3, row), 4, OUTER, fc="#d9dce1", ec=CARD, lw=0.9))
    for corner, width, height in (
        ((PIECE[0], -8), PIECE[1] - PIECE[0], 4),
        ((N + 3, BLOCK[0]), 4, OUTER),
    ):
        ax.add_patch(Rectangle(corner, width, height, fill=False, ec=HOT, lw=2.6, zorder=5))
    ax.text(-1.5, -6, "V", ha="right", va="center", size=13, style="italic", color=INK)
    ax.text(N + 5, -1.6, "Y", ha="center", va="center", size=13, style="italic", color=INK)
    guide = {"color": HOT, "lw": 1, "ls": ":", "zorder": 4}
    for column in PIECE:
        end = column if column in STARTS else BLOCK[0]  # from there the strip border goes on
        ax.plot([column, column], [-4, end], **guide)
    for row in (BLOCK[0] + 0.15, BLOCK[1] - 0.15):
        ax.plot([PIECE[1], N + 3], [row, row], **guide)


def draw_step(ax: Axes, top: float, height: float, number: int, title: str, text: str) -> None:
    box = FancyBboxPatch(
        (PANEL, top), RIGHT - PANEL, height, boxstyle="round,pad=0,rounding_size=1.4"
    )
    ax.add_patch(box).set(fc="white", ec="#d5d7dc", lw=1)
    ax.text(PANEL + 2.2, top + 2.6, str(number), size=12, weight="bold", color=HOT, va="center")
    ax.text(PANEL + 5.4, top + 2.6, title, size=11, weight="bold", color=INK, va="center")
    ax.text(PANEL + 5.4, top + 5, text, size=9, color=INK, va="top", linespacing=1.45)


def draw_product(ax: Axes, top: float) -> None:
    """Y_f = W_f X_f for a stack of frequencies."""
    cell, cut = 2.0, list(pieces(0, N, OUTER))
    names = (("$W_f$", len(cut)), ("$X_f$", 3), ("$Y_f$", 3))
    words = ("kernels:\nblocks by pieces", "pieces by\nchannels", "blocks by\nchannels")
    lefts, rows = (PANEL + 6, PANEL + 27, PANEL + 39.5), (N // OUTER, len(cut), N // OUTER)
    for (name, width), word, left, count in zip(names, words, lefts, rows, strict=True):
        corner = top + (len(cut) - count) * cell / 2
        for shift in (1.6, 0.8, 0):
            ax.add_patch(
                Rectangle(
                    (left + shift, corner - shift), width * cell, count * cell,
                    fc="white", ec=FAINT, lw=0.7,
                )
            )  # fmt: skip
        for i in range(count):
            for p in range(width):
                strip, first, _ = cut[p if name == "$W_f$" else i]
                if name == "$W_f$" and first // OUTER >= i:
                    continue
                tint = "#d9dce1" if name == "$Y_f$" else OUTER_TINTS[strip % 2]
                corner_of_cell = (left + p * cell, corner + i * cell)
                ax.add_patch(Rectangle(corner_of_cell, cell, cell, fc=tint, ec="white", lw=0.6))
        center = left + width * cell / 2
        ax.text(center, top + 16, name, ha="center", va="center", size=12, color=INK)
        ax.text(center, top + 19.8, word, ha="center", va="center", size=8, color=INK)
    piece = [first for _, first, _ in cut].index(PIECE[0])
    block = BLOCK[0] // OUTER
    middle = top + (len(cut) - N // OUTER) * cell / 2
    for corner, width in (
        ((lefts[0] + piece * cell, middle + block * cell), cell),
        ((lefts[1], top + piece * cell), 3 * cell),
        ((lefts[2], middle + block * cell), 3 * cell),
    ):
        ax.add_patch(Rectangle(corner, width, cell, fill=False, ec=HOT, lw=1.8, zorder=5))
    for left, sign in ((PANEL + 23.6, r"$\times$"), (PANEL + 36.2, "=")):
        ax.text(left, top + 7, sign, size=13, ha="center", va="center", color=INK)


def draw_steps(ax: Axes) -> None:
    draw_step(
        ax, -9.5, 12.5, 1, "FFT of each piece",
        "length L, every channel; each row of V is\ntransformed once, however many strips",
    )  # fmt: skip
    draw_step(
        ax, 7.5, 35, 2, "one small product per frequency f",
        "every piece with every later block; the sum\nover the pieces is taken before going back",
    )  # fmt: skip
    draw_product(ax, 19.8)
    draw_step(
        ax, 47, 12.5, 3, "inverse FFT of each block of Y",
        "length L, every channel; added to what\ninner level and direct tiles give",
    )  # fmt: skip
    style = {"arrowstyle": "-|>", "mutation_scale": 15, "color": HOT, "lw": 1.8, "zorder": 6}
    middle = (PANEL + RIGHT) / 2
    ax.add_patch(
        FancyArrowPatch(
            ((PIECE[0] + PIECE[1]) / 2, -8.2), (PANEL - 0.4, -6),
            connectionstyle="arc3,rad=-0.12", **style,
        )
    )  # fmt: skip
    for tail, head in (
        ((middle, 3), (middle, 7.3)),
        ((middle, 42.5), (middle, 46.8)),
        ((PANEL, 53.25), (N + 7.4, 53.25)),
    ):
        ax.add_patch(FancyArrowPatch(tail, head, shrinkA=0, shrinkB=0, **style))


def draw_legend(ax: Axes) -> None:
    """In the empty upper triangle."""
    entries = (
        (OUTER_TINTS, "outer level: blocks of L = n/4 rows"),
        (INNER_TINTS, "inner level: the same with L/4,\ninside each outer diagonal block"),
        ((DIRECT, DIRECT), "tiles on the diagonal: summed directly"),
    )
    for i, ((left, right), text) in enumerate(entries):
        y = 4.5 + 5.4 * i
        ax.add_patch(Rectangle((27, y), 1.7, 2.6, fc=left, ec="none"))
        ax.add_patch(Rectangle((28.7, y), 1.7, 2.6, fc=right, ec="none"))
        ax.text(32, y + 1.3, text, size=9.5, va="center", color=INK, linespacing=1.3)


def draw() -> Figure:
    """The picture."""
    figure = Figure(figsize=(11.2, 6.8), dpi=150, facecolor="none")
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(-6, 134), ylim=(71, -14), aspect="equal")
    ax.axis("off")
    card = FancyBboxPatch((-5.6, -13.6), 139.2, 84.2, boxstyle="round,pad=0,rounding_size=2.5")
    ax.add_patch(card).set(fc=CARD, ec="#c9ccd2", lw=1, zorder=-1)
    draw_matrix(ax)
    draw_vectors(ax)
    draw_legend(ax)
    draw_steps(ax)
    return figure


if __name__ == "__main__":
    draw().savefig(Path(__file__).with_suffix(".png"), metadata={"Software": None})
