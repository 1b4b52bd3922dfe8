"""The work of `convbasis demo`: solve one structured problem, measure its error and its time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..attention import conv_attention, exact_attention
from ..basis import ConvBasis
from ..problems import Problem, conv_problem
from ..recover import RecoverOptions, recover_basis
from ..report import Report
from ._arguments import CommandError
from ._names import CONV, EXACT, PLAIN, TORCH
from ._plain import FLOAT64_BUDGET, budget, plain_attention, relative_error, row_errors
from ._timing import ROUNDS, Seconds, interleaved, torch_attention

#: Stages that `solve` reports.
STAGES = 6 + ROUNDS

#: Rows on which plain NumPy is run for comparison.
PLAIN_ROWS = 256

#: Asked for where the demonstration has the call estimate its own error.
TOLERANCE = 1e-3

#: conv_attention with this tolerance.
JUDGED = f"{CONV}, tol"


@dataclass(frozen=True)
class Setup:
    """What is asked for."""

    n: int
    head_dim: int
    num_bases: int
    dtype: str
    seed: int
    num_threads: int


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of it. Errors are relative to exact attention in float64."""

    setup: Setup
    problem: Problem
    basis: ConvBasis  # recovered
    report: Report
    row_errors: NDArray[np.float64]  # (n,)
    errors: dict[str, float]  # by name of the function, and "plain NumPy"
    budget: float  # for the error of conv_attention
    truth_error: float  # disagreement of the float64 truth with plain NumPy, on some rows
    seconds: dict[str, Seconds]
    torch: str | None  # its version

    @property
    def starts(self) -> NDArray[np.int64]:
        """Starts of the recovered strips."""
        return self.basis.starts[: self.basis.num_bases]

    @property
    def starts_equal(self) -> bool:
        return np.array_equal(self.starts, self.problem.starts)

    @property
    def error(self) -> float:
        return self.errors[CONV]

    @property
    def passed(self) -> bool:
        """Starts as planted, by strips, within the budget, and measured against the truth."""
        return (
            self.starts_equal
            and self.report.heads_exact == 0
            and self.error <= self.budget
            and self.truth_error <= FLOAT64_BUDGET
        )

    def speedup(self, baseline: str) -> float:
        """How many times longer `baseline` takes than conv_attention."""
        return self.seconds[baseline].median / self.seconds[CONV].median


def build(setup: Setup) -> Problem:
    """The problem, one head.

    Raises
    ------
    CommandError
        If there is none with these sizes.
    """
    dtype = np.dtype(setup.dtype)
    try:
        return conv_problem(setup.n, setup.head_dim, setup.num_bases, seed=setup.seed, dtype=dtype)
    except ValueError as error:
        raise CommandError(
            f"there is no such problem: {error}; give fewer --num-bases, a larger --head-dim or "
            "another --seed"
        ) from error


def solve(setup: Setup, step: Callable[[str], None]) -> Outcome:
    """Do everything but the picture; ``step(text)`` is told of `STAGES` stages.

    The first runs of each function, which measure its error, are its warm-up.
    """
    step("building the problem")
    problem = build(setup)
    arrays = problem.query, problem.key, problem.value
    common: Any = {"is_causal": True, "scale": problem.scale, "num_threads": setup.num_threads}
    options = RecoverOptions()  # nothing is told about the strips

    step("conv_attention")
    basis = recover_basis(
        problem.query,
        problem.key,
        scale=problem.scale,
        options=options,
        num_threads=setup.num_threads,
    )
    conv_attention(*arrays, options=options, **common)  # so that the report's times are warm
    out, report = conv_attention(
        *arrays, options=options, tol=TOLERANCE, on_miss="keep", return_report=True, **common
    )
    step("exact attention in float64, the truth")
    doubles: Any = [array.astype(np.float64) for array in arrays]
    truth = exact_attention(*doubles, **common)
    step(f"exact attention in {setup.dtype}")
    functions: dict[str, Callable[[], Any]] = {
        CONV: lambda: conv_attention(*arrays, options=options, **common),
        JUDGED: lambda: conv_attention(*arrays, options=options, tol=TOLERANCE, **common),
        EXACT: lambda: exact_attention(*arrays, **common),
    }
    errors = {CONV: relative_error(out, truth), EXACT: relative_error(functions[EXACT](), truth)}
    step("plain NumPy on some rows")
    rows = np.unique(np.linspace(0, setup.n - 1, PLAIN_ROWS).astype(np.int64))
    plain = plain_attention(*arrays, scale=problem.scale, is_causal=True, rows=rows)
    errors[PLAIN] = relative_error(plain, truth[rows])
    sure = plain_attention(*doubles, scale=problem.scale, is_causal=True, rows=rows)
    step("torch, if it is installed")
    found = torch_attention(problem, setup.num_threads)
    if found is not None:
        functions[TORCH] = found[1]
        errors[TORCH] = relative_error(found[1](), truth)
    return Outcome(
        setup,
        problem,
        basis,
        report,
        row_errors(out, truth),
        errors,
        budget(errors[PLAIN], problem.query.dtype),
        relative_error(sure, truth[rows]),
        interleaved(functions, step),
        found[0] if found is not None else None,
    )
