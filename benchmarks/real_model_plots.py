"""The pictures of docs/real-models.md, in the style of the command's."""

from __future__ import annotations

from typing import Any

import numpy as np

from convbasis.cli._plot_style import BLUE, GREEN, GREY, LIGHT_BLUE, ORANGE, RED, headline, page

PICTURES = {
    "frontier": "real-model-perplexity.png",
    "coverage": "real-model-coverage.png",
    "reviews": "real-model-reviews.png",
}
EXACT = "exact (torch SDPA)"
OTHERS = {"window and sinks": "s", "heavy keys": "^", "window 64, sinks, heavy keys": "D"}


def draw(results: Any) -> dict[str, bytes]:
    """PNG files, by the names of `PICTURES`."""
    found = {}
    if results.prose:
        found["frontier"] = frontier(results)
        found["coverage"] = coverage(results)
    if results.reviews is not None:
        found["reviews"] = reviews(results)
    return found


def frontier(results: Any) -> bytes:
    """Loss of perplexity against logits computed, and against time, a line for each length."""
    with page(12.5, 4.8) as (figure, stream):
        cost, clock = figure.subplots(1, 2)
        for entry, color in zip(results.prose, (GREEN, ORANGE, BLUE, RED, GREY), strict=False):
            runs = [run for run in entry["runs"].values() if "tol" in run]
            runs.sort(key=lambda run: run["tol"])
            exact = entry["runs"][EXACT]
            losses = [100 * (run["perplexity"] / exact["perplexity"] - 1) for run in runs]
            label = f"n = {entry['n']:,}"
            cost.plot([run["exact_share"] for run in runs], losses, "o-", color=color, label=label)
            clock.plot(
                [run["median_seconds"] / exact["median_seconds"] for run in runs],
                losses,
                "o-",
                color=color,
                label=label,
            )
            for x, y, run in zip([r["exact_share"] for r in runs], losses, runs, strict=True):
                cost.annotate(
                    f"{run['tol']:g}",
                    (x, y),
                    fontsize=7.5,
                    color=color,
                    xytext=(4, 3),
                    textcoords="offset points",
                )
            for name, marker in OTHERS.items():
                run = entry["runs"][name]
                worse = 100 * (run["perplexity"] / exact["perplexity"] - 1)
                cost.plot(run["exact_share"], worse, marker, color=color, markerfacecolor="none")
        for name, marker in OTHERS.items():
            cost.plot([], [], marker, color=GREY, markerfacecolor="none", label=name)
        for axes in (cost, clock):
            axes.set_yscale("symlog", linthresh=1.0)
            axes.axhline(0, color=GREY, linewidth=0.8)
            axes.set_ylabel("perplexity above exact attention's, %")
            axes.legend()
        cost.set(title="by work (numbers: tol)", xlabel="logits computed, of exact attention's")
        clock.set(title="by time", xlabel="attention time, of torch SDPA's")
        headline(figure, "What approximate attention costs, and what it loses", "")
    return stream.getvalue()


def coverage(results: Any) -> bytes:
    """Estimated against true errors, a panel for each length."""
    with page(4.6 * len(results.prose), 4.8) as (figure, stream):
        for axes, entry in zip(
            np.ravel(figure.subplots(1, len(results.prose))), results.prose, strict=True
        ):
            found = entry["coverage"]
            judged = ~np.array(found["exact"], bool)
            true = np.array(found["errors"])[judged]
            estimate = np.array(found["estimates"])[judged]
            reach = np.abs(np.array(found["intervals"])[judged] - estimate[:, None]).T
            axes.errorbar(
                true,
                estimate,
                reach,
                fmt=".",
                color=BLUE,
                ecolor=LIGHT_BLUE,
                elinewidth=0.6,
                markersize=3,
            )
            axes.axline((0.1, 0.1), slope=1, color=GREY, linewidth=0.8)
            axes.axvline(found["tol"], color=ORANGE, label=f"tol {found['tol']:g}")
            axes.set(
                xscale="log",
                yscale="log",
                xlabel="true relative error",
                ylabel="estimated, with its interval",
                title=f"n = {entry['n']:,}",
            )
            axes.legend()
        headline(figure, "Is the error of a head known?", "Heads that were not computed exactly.")
    return stream.getvalue()


def reviews(results: Any) -> bytes:
    """Error and accuracy against the number of strips, and against tol."""
    methods = results.reviews["methods"]
    with page(11, 6.4) as (figure, stream):
        panels = figure.subplots(2, 2, sharex="col", sharey="row")
        for column, (prefix, name) in enumerate((("k = ", "strips k"), ("tol ", "tol"))):
            chosen = {
                float(label.removeprefix(prefix)): entry
                for label, entry in methods.items()
                if label.startswith(prefix)
            }
            settings = sorted(chosen)
            errors, accuracy = panels[:, column]
            tables = [np.ravel(chosen[setting]["squared_errors"]) for setting in settings]
            errors.plot(settings, [np.median(t) for t in tables], "o-", color=BLUE, label="median")
            errors.plot(settings, [t.mean() for t in tables], "s-", color=ORANGE, label="mean")
            errors.set(xscale="log", yscale="log", title=f"against {name}")
            right = [chosen[setting]["accuracy"] for setting in settings]
            same = [chosen[setting]["agreement"] for setting in settings]
            accuracy.plot(settings, right, "o-", color=BLUE, label="accuracy")
            accuracy.plot(settings, same, "s-", color=GREEN, label="answers as exact")
            accuracy.axhline(methods["exact"]["accuracy"], color=GREY, label="exact attention")
            accuracy.set_xlabel(name)
            accuracy.set_xticks(settings, [f"{setting:g}" for setting in settings])
            accuracy.minorticks_off()
            accuracy.set_ylim(0.0, 1.02)
            errors.legend()
            accuracy.legend(loc="lower right")
        panels[0, 0].set_ylabel("squared relative error of a head")
        panels[1, 0].set_ylabel("share of reviews")
        lengths = results.reviews["lengths"]
        note = f"{len(lengths)} reviews of {min(lengths):,} to {max(lengths):,} tokens"
        headline(figure, "Sentiment of film reviews: plain strips, and conv_attention", note)
    return stream.getvalue()
