"""The section on film reviews in docs/real-models.md."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from real_model_plots import PICTURES
from real_model_text import percent, table

GOOD = 0.05  # squared relative error of a head that counts as small
ALIKE = 0.95  # share of the answers of exact attention


def reviews_section(found: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """The paper's experiment."""
    names = ["attention", "logits computed", "squared error: median", "mean", f"below {GOOD:g}"]
    names += ["accuracy", "answers as exact", "area under ROC", "margins: deviation", "correlation"]
    return [
        "## Film reviews: the experiment of the Conv-Basis paper",
        "",
        "The paper (arXiv 2405.05219) lets a language model judge IMDB reviews with sequences of "
        "2,048 tokens, and draws the relative error of attention and the accuracy against the "
        "number of bases k, up to k = n, which is exact. Here is the same with this model, and, "
        "beside plain strips, the calibrated method against its tolerance.",
        "",
        *task(found, settings),
        "",
        "*k* strips are k columns of the logits at equal distances, each moved along the "
        "diagonals up to the next; k = n is exact attention. *tol* is `conv_attention` with "
        "`CalibrateOptions()`. *Logits computed*: of all that exact attention computes; for "
        "strips, k columns. *Squared errors* are relative, `||Y - Y~||^2 / ||Y||^2`, of "
        "each head with the exact model's inputs, in "
        f"{min(settings['error_prompts'], len(found['lengths']))} of the prompts, and the share of "
        f"heads below {GOOD:g}. The other columns are with the method in all layers at once. A "
        '*margin* is the logit of " positive" less that of " negative"; the area under its ROC '
        "needs no bias, and is 0.5 for chance. The *deviation* of margins from "
        "exact attention's is a root mean square, in standard deviations of exact margins: 1 is "
        "as good as their mean alone. In brackets: 95 % intervals (Wilson), "
        "as if reviews of one prompt were independent.",
        "",
        *table(names, [row(label, entry, found) for label, entry in found["methods"].items()]),
        "",
        f"![error and accuracy against strips and tol](figures/{PICTURES['reviews']})",
        "",
        *conclusions(found),
        "",
    ]


def task(found: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """What was asked, and how that was chosen."""
    lengths, positive = found["lengths"], found["positive"]
    tried = "; ".join(
        f"`{question.strip()}` {percent(entry['accuracy'])} right, bias {entry['bias']:+.2f}"
        for question, entry in found["tuning"].items()
    )
    apart = next(iter(found["tuning"].values()))["reviews"]
    cut = len(lengths) < settings["prompts"]
    ended = f" The run was ended after {len(lengths)} of {settings['prompts']} prompts."
    return [
        f"Few reviews are so long. So each of {len(lengths)} prompts, of {min(lengths):,} to "
        f"{max(lengths):,} tokens, is {settings['reviews']} reviews without labels, half of them "
        "positive, no review in two prompts. It is read in one prefill with the attention under "
        "test. The reviews that end in its second half are judged, "
        f"{len(positive)} in all, {percent(float(np.mean(positive)))} of them positive: behind "
        "each, a question goes on from the cache, its few rows by exact attention, as whenever "
        "text is generated; that is kinder than a question in the prompt, where every method would "
        'compute it. The answer is " positive" if that scores higher than " negative" as '
        "the next token by more than a bias, the median. Bias and wording of the question were "
        f"chosen with exact attention on {apart} reviews apart: {tried}. It is "
        f"`{found['question'].strip()}`.{ended if cut else ''}",
    ]


def row(label: str, entry: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """One line of the table."""
    errors = np.ravel(entry.get("squared_errors", [0.0]))
    return [
        "exact, k = n" if label == "exact" else label,
        percent(computed(label, entry, float(np.median(found["lengths"])))),
        f"{np.median(errors):.2g}",
        f"{errors.mean():.2g}",
        percent((errors < GOOD).mean()),
        ranged(entry, "accuracy"),
        ranged(entry, "agreement"),
        number(area(entry["margins"], found["positive"])),
        number(entry["deviation"]),
        number(entry["correlation"]),
    ]


def computed(label: str, entry: dict[str, Any], n: float) -> float:
    """Share of the causal logits that were computed."""
    if label.startswith("k = "):
        k = min(float(label.split()[-1]), n)
        return k * (n + n / k) / 2 / (n * (n + 1) / 2)  # columns at equal distances, from 0 on
    return float(entry.get("exact_share", 1.0))


def ranged(entry: dict[str, Any], name: str) -> str:
    """A share and its interval."""
    low, high = entry[f"{name}_interval"]
    return f"{percent(entry[name])} ({100 * low:.0f} to {100 * high:.0f})"


def area(margins: list[float], positive: list[bool]) -> float:
    """How often a positive review has a higher margin than a negative one; NaN without either."""
    got, right = np.array(margins), np.array(positive, bool)
    if right.all() or not right.any():
        return math.nan
    above = got[right][:, None] - got[~right]
    return float(np.mean((np.sign(above) + 1) / 2))


def number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.2f}"


def conclusions(found: dict[str, Any]) -> list[str]:
    """What the numbers say, in words."""
    methods, positive = found["methods"], found["positive"]
    lines = [
        f"- Exact attention: right in {ranged(methods['exact'], 'accuracy')}, area under the ROC "
        f"{number(area(methods['exact']['margins'], positive))}."
    ]
    for prefix, name in (("k = ", "Plain strips"), ("tol ", "The calibrated method")):
        chosen = {label: entry for label, entry in methods.items() if label.startswith(prefix)}
        if not chosen:
            continue
        right = [entry["accuracy"] for entry in chosen.values()]
        areas = [area(entry["margins"], positive) for entry in chosen.values()]
        errors = [median_error(entry) for entry in chosen.values()]
        alike = [label for label, entry in chosen.items() if entry["agreement"] >= ALIKE]
        small = [label for label, entry in chosen.items() if median_error(entry) < GOOD]
        lines += [
            f"- {name}: right in {100 * min(right):.0f} to {percent(max(right))}, "
            f"area {number(min(areas))} to {number(max(areas))}. Answers are those of exact "
            f"attention in {percent(ALIKE)} or more at {listed(alike)}. The median squared error "
            f"of a head is {min(errors):.2g} to {max(errors):.2g}, depending on the setting; it is "
            f"below {GOOD:g} at {listed(small)}."
        ]
    return lines


def median_error(entry: dict[str, Any]) -> float:
    return float(np.median(np.ravel(entry["squared_errors"])))


def listed(labels: list[str]) -> str:
    return ", ".join(labels) if labels else "none of these settings"
