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
LEAST_ERROR = 1e-4  # that is drawn; heads computed exactly have far less
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
    """Error and answers against the number of strips, and against tol; exact attention beside."""
    methods, lengths = results.reviews["methods"], results.reviews["lengths"]
    n = float(np.median(lengths))
    with page(11.5, 7.2) as (figure, stream):
        panels = figure.subplots(2, 2, sharex="col", sharey="row")
        for column, (prefix, name) in enumerate((("k = ", "strips k"), ("tol ", "tol"))):
            chosen = {
                float(label.removeprefix(prefix)): entry
                for label, entry in methods.items()
                if label.startswith(prefix)
            }
            settings = sorted(chosen)
            errors, answers = panels[:, column]
            draw_errors(errors, settings, [chosen[each] for each in settings])
            if prefix == "tol ":
                errors.plot(settings, np.square(settings), "--", color=GREY, label="tol, squared")
            errors.legend(loc="lower left" if prefix == "k = " else "upper left")
            ends = {n: methods["exact"]} if prefix == "k = " else {}
            draw_answers(answers, chosen | ends)
            answers.axhline(0.5, color=GREY, linewidth=0.8, linestyle=":")
            accuracy = methods["exact"]["accuracy"]
            answers.axhline(accuracy, color=BLUE, linewidth=0.8, linestyle=":")
            errors.set_title(f"against {name}")
            ticks = {each: f"{each:g}" for each in settings} | dict.fromkeys(ends, "n")
            answers.set_xticks(list(ticks), list(ticks.values()))
            answers.set(xlabel=name, ylim=(-0.12, 1.05))
            answers.minorticks_off()
        panels[1, 1].legend(loc="lower left")
        panels[0, 0].set_ylabel("squared relative error of a head")
        panels[1, 0].set_ylabel("share of reviews; correlation")
        note = (
            f"{len(results.reviews['positive'])} reviews in {len(lengths)} prompts of "
            f"{min(lengths):,} to {max(lengths):,} tokens. Bars: 95 % intervals. Shaded: 10 to "
            "90 % of the heads. n: exact attention. Dotted: its accuracy, and chance."
        )
        headline(figure, "Sentiment of film reviews: plain strips, and the calibrated method", note)
    return stream.getvalue()


def draw_errors(axes: Any, settings: list[float], entries: list[dict[str, Any]]) -> None:
    """Median, mean and spread over heads."""
    tables = [np.ravel(entry["squared_errors"]) for entry in entries]
    axes.plot(settings, [np.median(t) for t in tables], "o-", color=BLUE, label="median head")
    axes.plot(settings, [t.mean() for t in tables], "s-", color=ORANGE, label="mean")
    low, high = np.transpose([np.quantile(t, (0.1, 0.9)) for t in tables])
    axes.fill_between(settings, low, high, color=LIGHT_BLUE, alpha=0.25, linewidth=0)
    axes.set(xscale="log", yscale="log", ylim=(LEAST_ERROR, None))


def draw_answers(axes: Any, chosen: dict[float, dict[str, Any]]) -> None:
    """Accuracy, agreement and correlation; lines are a little apart so that bars can be told."""
    settings = sorted(chosen)
    apart = (settings[-1] / settings[0]) ** 0.008
    for name, label, style, color, shift in (
        ("accuracy", "accuracy", "o-", BLUE, 1.0),
        ("agreement", "answers as exact", "s-", GREEN, apart),
    ):
        shares = np.array([chosen[each][name] for each in settings])
        ends = np.transpose([chosen[each][f"{name}_interval"] for each in settings])
        bars = np.abs(ends - shares)
        places = shift * np.array(settings)
        axes.errorbar(
            places, shares, bars, fmt=style, color=color, label=label, elinewidth=0.8, capsize=2
        )
    known = [each for each in settings if chosen[each]["correlation"] is not None]
    axes.plot(
        known,
        [chosen[each]["correlation"] for each in known],
        "^--",
        color=ORANGE,
        label="correlation of margins with exact ones",
    )
