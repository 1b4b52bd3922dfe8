"""``convbasis check``: the compiled core against the NumPy oracle, on this machine."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from typing import Any

from .. import __version__
from ._arguments import HELP_STYLE, add_json, add_num_threads, print_json, threads_of
from ._cases import Case
from ._progress import progress
from ._topics import TOPICS, Topic

EPILOG = """\
examples:
  convbasis check                      a few seconds; exit code 0 when all is well
  convbasis check --num-threads 1
  convbasis check --json > check.json  every case with its error and its budget

Errors are relative, ||got - want|| / ||want|| of the worst head, against the float64 oracle
'convbasis.reference'. In float64 the budget is 1e-11; in float32 it is twice the error of plain
float32 NumPy code on the same numbers, plus two roundings (2.4e-07). What must agree bit by bit has
the budget 0, and its error is the number of entries that differ. A line shows the case that comes
closest to its budget.
"""


@dataclass(frozen=True)
class Outcome:
    """What came of one topic."""

    title: str
    cases: tuple[Case, ...]
    failure: str | None = None  # the exception that ended the topic, if any

    @property
    def passed(self) -> bool:
        return self.failure is None and all(case.passed for case in self.cases)

    @property
    def worst(self) -> Case | None:
        """The case closest to its budget, or farthest beyond it."""
        return max(self.cases, key=lambda case: case.share, default=None)


def add_to(commands: Any) -> None:
    """Add the subcommand to the command's parser."""
    parser = commands.add_parser(
        "check",
        help="compiled core against the NumPy oracle on this machine; exit code",
        description="Compare the compiled core with the NumPy oracle on this machine.",
        epilog=EPILOG,
        formatter_class=HELP_STYLE,
    )
    add_num_threads(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry out the subcommand; the exit code."""
    threads = threads_of(arguments)
    began = time.perf_counter()
    width = max(len(topic.title) for topic in TOPICS)
    outcomes = []
    with progress(len(TOPICS)) as shown:
        for topic in TOPICS:
            shown.step(topic.title)
            outcomes.append(outcome_of(topic, threads))
            if not arguments.json:
                shown.line(line(outcomes[-1], width))
    seconds = time.perf_counter() - began
    failed = [outcome for outcome in outcomes if not outcome.passed]
    if arguments.json:
        print_json(as_dict(outcomes, threads, seconds))
    else:
        print(summary(outcomes, len(failed), threads, seconds))
    return 1 if failed else 0


def outcome_of(topic: Topic, threads: int) -> Outcome:
    """Run one topic. An exception fails it; the others go on."""
    cases: list[Case] = []
    try:
        cases.extend(topic.cases(threads))
    except Exception as error:
        return Outcome(topic.title, tuple(cases), f"{type(error).__name__}: {error}")
    return Outcome(topic.title, tuple(cases))


def line(outcome: Outcome, width: int) -> str:
    """One line on a topic, and one for each of its cases that failed."""
    verdict = "ok  " if outcome.passed else "FAIL"
    start = f"{verdict}  {outcome.title:{width}}"
    if outcome.failure is not None:
        return f"{start}  {outcome.failure}"
    worst = outcome.worst
    if worst is None:
        return start
    others = [case for case in outcome.cases if not case.passed and case is not worst]
    return "\n".join(
        [
            f"{start}  {len(outcome.cases):3} cases  error {number(worst.error)}  "
            f"budget {number(worst.budget)}  {worst.name if worst.error else ''}".rstrip(),
            *(
                f"      {case.name}: error {number(case.error)}, budget {number(case.budget)}"
                for case in others
            ),
        ]
    )


def number(value: float) -> str:
    """Two digits, seven columns."""
    return f"{value:7.1e}" if value else f"{0:7}"


def summary(outcomes: list[Outcome], failed: int, threads: int, seconds: float) -> str:
    """The last line."""
    cases = sum(len(outcome.cases) for outcome in outcomes)
    done = (
        f"{cases} cases in {len(outcomes)} topics, convbasis {__version__}, "
        f"{threads} thread{'s' if threads > 1 else ''}, {seconds:.1f} s"
    )
    if not failed:
        return f"all well: {done}"
    return (
        f"{failed} of {len(outcomes)} topics FAILED: {done}\n"
        "Results of this installation cannot be trusted. Please report this with the output of "
        "'convbasis info'."
    )


def as_dict(outcomes: list[Outcome], threads: int, seconds: float) -> dict[str, Any]:
    """The content of ``--json``."""
    return {
        "version": __version__,
        "passed": all(outcome.passed for outcome in outcomes),
        "num_threads": threads,
        "seconds": seconds,
        "topics": [
            {
                "title": outcome.title,
                "passed": outcome.passed,
                "failure": outcome.failure,
                "cases": [{**asdict(case), "passed": case.passed} for case in outcome.cases],
            }
            for outcome in outcomes
        ],
    }
