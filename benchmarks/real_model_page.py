"""docs/real-models.md and docs/should-i-use-this.md, from the files of results of real_model.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from real_model_page_reviews import reviews_section
from real_model_plots import PICTURES, draw
from real_model_text import percent, table

EXACT = "exact (torch SDPA)"
TARGET_LOSSES = (0.005, 0.02, 0.05)  # of perplexity, in the table of the best settings


class Results(NamedTuple):
    """All parts, merged: prose by length, reviews, and where they were measured."""

    prose: list[dict[str, Any]]
    reviews: dict[str, Any] | None
    settings: dict[str, dict[str, Any]]
    header: dict[str, Any]


def merged(found: list[dict[str, Any]]) -> Results:
    """Of each length and part the last result counts."""
    prose: dict[int, dict[str, Any]] = {}
    reviews, settings = None, {}
    for content in found:
        settings[content["part"]] = content["settings"]
        if content["part"] == "prose":
            prose |= {entry["n"]: entry for entry in content["results"]}
        else:
            reviews = content["results"][0]
    lengths = [prose[n] for n in sorted(prose)]
    return Results(lengths, reviews, settings, found[-1])


def write_pages(found: list[dict[str, Any]], docs: Path) -> list[Path]:
    """Write everything; the paths."""
    results = merged(found)
    written = []
    (docs / "figures").mkdir(parents=True, exist_ok=True)
    for name, content in draw(results).items():
        written.append(docs / "figures" / PICTURES[name])
        written[-1].write_bytes(content)
    for name, lines in (
        ("real-models.md", page(results)),
        ("should-i-use-this.md", advice(results)),
    ):
        written.append(docs / name)
        written[-1].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return written


def loss(entry: dict[str, Any], run: dict[str, Any]) -> float:
    """Perplexity above exact attention's, as a share of it."""
    return run["perplexity"] / entry["runs"][EXACT]["perplexity"] - 1.0


def speedup(entry: dict[str, Any], run: dict[str, Any]) -> float:
    return entry["runs"][EXACT]["median_seconds"] / run["median_seconds"]


def approximate(entry: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The runs with a tolerance, by growing tolerance."""
    found = [(label, run) for label, run in entry["runs"].items() if "tol" in run]
    return sorted(found, key=lambda item: item[1]["tol"])


def where(results: Results) -> str:
    """Machine and versions."""
    versions = ", ".join(
        f"{name} {version}" for name, version in results.header["versions"].items()
    )
    threads = results.header["settings"]["num_threads"]
    return f"{results.header['machine']['processor']}, {threads} threads, float32; {versions}"


def page(results: Results) -> list[str]:
    """The page of measurements."""
    lines = [
        "# Real models, measured",
        "",
        "Written by `benchmarks/real_model.py page` from its own runs: do not edit.",
        "",
        f"{results.header['settings']['model']}. {where(results)}. Other programs share the "
        "machine: compare times within a length only.",
        "",
    ]
    if results.prose:
        lines += prose_section(results)
    if results.reviews is not None:
        lines += reviews_section(results.reviews, results.settings["reviews"])
    return [*lines, "## Again", "", "```", *commands(), "```"]


def commands() -> list[str]:
    return [
        "python benchmarks/real_model.py prose --text FILE --json prose.json",
        "python benchmarks/real_model.py reviews --json reviews.json",
        "python benchmarks/real_model.py page prose.json reviews.json",
    ]


def prose_section(results: Results) -> list[str]:
    """Perplexity, time, coverage."""
    rounds = results.settings["prose"]["rounds"]
    rows = []
    for entry in results.prose:
        ordered = [(EXACT, entry["runs"][EXACT]), *approximate(entry)]
        ordered += [item for item in entry["runs"].items() if item not in ordered]
        for label, run in ordered:
            rows.append(
                [
                    f"{entry['n']:,}: {label}",
                    f"{run['perplexity']:.3f}",
                    "-" if label == EXACT else f"{100 * loss(entry, run):+.2f} %",
                    percent(run.get("heads_approximated")),
                    percent(run.get("blocks_approximated")),
                    percent(run.get("exact_share")),
                    f"{run['median_seconds']:.2f} ({min(run['seconds']):.2f} to "
                    f"{max(run['seconds']):.2f})",
                    "baseline" if label == EXACT else f"{speedup(entry, run):.2f}x as fast",
                ]
            )
    names = ["n: attention", "perplexity", "against exact", "heads", "row blocks"]
    names += ["logits computed", "attention seconds", "against SDPA"]
    return [
        "## Long prose",
        "",
        f"One prefill of the first n tokens of {results.settings['prose']['text']}. Attention "
        f"seconds are those inside the attention function, summed over layers: median (range) of "
        f"{rounds} rounds, exact and approximate passes in turn. *Heads* and *row blocks*: the "
        "share that was approximated. *Logits computed*: of all that exact attention "
        "computes. The ways without a tolerance compute as many as the first tolerance measured, "
        "the same number in every head; those with heavy keys, which 128 sampled rows choose, are "
        "written plainly, so that their time says nothing.",
        "",
        *table(names, rows),
        "",
        f"![perplexity against attention time](figures/{PICTURES['frontier']})",
        "",
        "### Is the error known?",
        "",
        "Each head with the exact model's inputs: the true relative error of what `conv_attention` "
        "returned, against the interval of its report. Heads that were computed exactly as a whole "
        "are not counted.",
        "",
        *table(
            ["n", "tol", "heads judged", "within the interval", "below it", "error above tol"],
            [coverage_row(entry) for entry in results.prose],
        ),
        "",
        f"![estimated and true errors, by head](figures/{PICTURES['coverage']})",
        "",
    ]


def coverage_row(entry: dict[str, Any]) -> list[str]:
    found = entry["coverage"]
    judged = max(found["judged"], 1)
    return [
        f"{entry['n']:,}",
        f"{found['tol']:g}",
        f"{found['judged']} of {found['heads']}",
        percent(found["inside"] / judged, 1),
        percent(found["below_interval"] / judged, 1),
        percent(found["above_tol"] / found["heads"], 1),
    ]


def advice(results: Results) -> list[str]:
    """The page that answers by numbers."""
    rows = []
    for entry in results.prose:
        for _, run in approximate(entry):
            rows.append(
                [
                    f"{entry['n']:,}",
                    f"{run['tol']:g}",
                    percent(run["heads_approximated"]),
                    percent(run["blocks_approximated"]),
                    f"{speedup(entry, run):.2f}x",
                    f"{100 * loss(entry, run):+.2f} %",
                ]
            )
    names = ["n", "tol", "heads approximated", "row blocks", "attention time", "perplexity"]
    return [
        "# Should I use this?",
        "",
        "Written by `benchmarks/real_model.py page` from its own runs: do not edit.",
        "",
        "| your model | use | because |",
        "|---|---|---|",
        "| logits depend on the lag alone (position embeddings in place of content, periodic data) "
        "| `conv_attention(...)`, strips | exact up to rounding, almost linear time: README |",
        "| a pretrained language model, long prefill on CPUs, rotary embedding | "
        '`attn_implementation="conv_basis"` | the table below |',
        "| the same, short inputs or decoding alone | what you have | nothing to gain: one row "
        "at a time is linear already |",
        "| not causal, sliding windows, training, GPUs | what you have | `CalibrateOptions` "
        "raises; plain strips know all but windows |",
        "| small heads, small logits | `polynomial_attention` | [polynomial.md](polynomial.md) |",
        "",
        "## A pretrained language model",
        "",
        f"{results.header['settings']['model']} on English prose. {where(results)}. *Attention "
        "time* is how many times as fast as torch's in the same run, all layers, a whole prefill; "
        "*perplexity* against exact attention's. [More](real-models.md).",
        "",
        *table(names, rows),
        "",
        *best(results),
        "",
        "Another model has other heads: `convbasis analyze` says what yours allow, in a minute, "
        "and `convbasis.transformers.statistics()` what a run did. Keep `tol`: without it a "
        "few heads that look things up carry all of the loss.",
    ]


def best(results: Results) -> list[str]:
    """The fastest measured setting within each loss, by length."""
    names = ["n", *(f"at most {100 * wanted:+.1f} %" for wanted in TARGET_LOSSES)]
    rows = []
    for entry in results.prose:
        cells = [f"{entry['n']:,}"]
        for wanted in TARGET_LOSSES:
            runs = [run for _, run in approximate(entry) if loss(entry, run) <= wanted]
            fastest = max(runs, key=lambda run: speedup(entry, run), default=None)
            cells.append(
                "-"
                if fastest is None
                else f"{speedup(entry, fastest):.2f}x (tol {fastest['tol']:g}, "
                f"{100 * loss(entry, fastest):+.2f} %)"
            )
        rows.append(cells)
    return ["The fastest setting measured, by what perplexity may lose:", "", *table(names, rows)]
