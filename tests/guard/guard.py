"""Instruction counts of fixed kernels, compared with those of the last accepted state.

A count is the same on every run, so that a loop which got slower by a few per cent shows, however
busy the machine is. It says nothing about caches, threads or clock rates: for these there are
benchmarks. Valgrind shows every program the same processor, one without AVX-512, so what is counted
is the AVX2 build, on any newer machine too.

    cmake --workflow --preset release
    python tests/guard/guard.py              # exit code 1 when a case needs over 5 % more
    python tests/guard/guard.py --update     # accept the counts of this tree
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
PROGRAM = HERE.parents[1] / "build/release/tests/guard/convbasis_guard"
BASELINE = HERE / "baseline.json"
LIMIT = 0.05
COUNTED = "convbasis_guard_counted"  # main.cpp: the function that is counted


class State(NamedTuple):
    """Counts, and what they depend on besides the library's source."""

    compiler: str  # name and major version
    simd: str  # the instruction set that ran
    blas: str
    instructions: dict[str, int]  # by case


class Row(NamedTuple):
    """One case of the comparison."""

    case: str
    before: int | None
    now: int | None
    verdict: str
    fails: bool = False


def count(program: Path, case: str) -> tuple[dict[str, str], int]:
    """What one case prints about itself, and its instructions."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "callgrind.out"
        command = [
            "valgrind",
            "--tool=callgrind",
            f"--toggle-collect={COUNTED}",
            f"--callgrind-out-file={file}",
            str(program),
            case,
        ]
        # OpenBLAS starts a thread a core when it is loaded, whether or not it is given work.
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
        run = subprocess.run(command, capture_output=True, text=True, env=environment)
        if run.returncode != 0:
            raise SystemExit(f"[guard] {' '.join(command)} failed:\n{run.stdout}{run.stderr}")
        about = dict(line.split(": ", 1) for line in run.stdout.splitlines())
        totals = [line for line in file.read_text().splitlines() if line.startswith("totals:")]
    return about, int(totals[0].split()[1])


def measure(program: Path) -> State:
    """Count every case of the program, several at a time."""
    names = subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = list(pool.map(lambda name: count(program, name), names))
    instructions = {name: number for name, (_, number) in zip(names, runs, strict=True)}
    return State(**runs[0][0], instructions=instructions)


def differences(baseline: State, now: State) -> list[str]:
    """What makes the counts of two states incomparable; empty when like meets like."""
    return [
        f"{name} is {getattr(now, name)}; the baseline has {getattr(baseline, name)}"
        for name in ("compiler", "simd")
        if getattr(now, name) != getattr(baseline, name)
    ]


def judge(case: str, before: int | None, now: int | None) -> Row:
    """The verdict on one case; a case that only one side has fails."""
    if before is None:
        return Row(case, before, now, "FAILS: not in the baseline", True)
    if now is None:
        return Row(case, before, now, "FAILS: no longer counted", True)
    change = now / before - 1
    if change > LIMIT:
        return Row(case, before, now, f"FAILS: over +{LIMIT:.0%}", True)
    if change < -LIMIT:
        return Row(case, before, now, "better: update the baseline")
    return Row(case, before, now, "ok")


def compare(baseline: State, now: State) -> list[Row]:
    """A row for every case that either side has."""
    comparable = not differences(baseline, now)
    old, new = baseline.instructions, now.instructions
    if not comparable:
        return [Row(case, None, number, "not compared") for case, number in new.items()]
    return [judge(case, old.get(case), new.get(case)) for case in new | old]


def table(rows: list[Row]) -> str:
    """The comparison as text."""

    def number(count: int | None) -> str:
        return "-" if count is None else f"{count:,}"

    def change(row: Row) -> str:
        return "-" if row.before is None or row.now is None else f"{row.now / row.before - 1:+.2%}"

    cells = [("case", "baseline", "now", "change", "verdict")]
    cells += [
        (row.case, number(row.before), number(row.now), change(row), row.verdict) for row in rows
    ]
    wide = [max(len(line[column]) for line in cells) for column in range(5)]
    return "\n".join(
        f"{case:<{wide[0]}}  {before:>{wide[1]}}  {now:>{wide[2]}}  {change:>{wide[3]}}  {verdict}"
        for case, before, now, change, verdict in cells
    )


def report(baseline: State, now: State) -> int:
    """Print the comparison; the exit code."""
    rows = compare(baseline, now)
    print(table(rows))
    for line in differences(baseline, now):
        print(f"NOT COMPARED: {line}")
    if now.blas != baseline.blas:
        print(f"note: blas is {now.blas}; the baseline has {baseline.blas}")
    failures = sum(row.fails for row in rows)
    if failures:
        print(f"{failures} of {len(rows)} cases fail; if that is the price of something better,")
        print("accept it: python tests/guard/guard.py --update")
    return 1 if failures else 0


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--program", type=Path, default=PROGRAM, help="convbasis_guard, built")
    parser.add_argument("--baseline", type=Path, default=BASELINE, help="the accepted counts")
    parser.add_argument("--update", action="store_true", help="accept the counts of this tree")
    options = parser.parse_args(arguments)
    if shutil.which("valgrind") is None:
        parser.error("valgrind is not installed; expected it on PATH (Debian package valgrind)")
    if not options.program.is_file():
        parser.error(f"--program is {options.program}; expected a file: build it first")

    now = measure(options.program)
    if options.update:
        options.baseline.write_text(json.dumps(now._asdict(), indent=2) + "\n")
        print(table([Row(case, None, number, "accepted") for case, number in now[3].items()]))
        return 0
    return report(State(**json.loads(options.baseline.read_text())), now)


if __name__ == "__main__":
    sys.exit(main())
