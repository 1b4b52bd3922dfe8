"""The work of `convbasis bench`: run the methods of a contest in turn, with their errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..attention import conv_attention
from ..backward import conv_attention_backward
from ..basis import ConvBasis
from ..problems import Problem, conv_problem
from ..recover import RecoverOptions
from ._arguments import CommandError
from ._bench_backward import GRADIENT_OF, Judge, backward_peers, output_gradient
from ._bench_cases import GROWTH_TARGET, MEMORY, MEMORY_TARGET, Contest, Settings, Target
from ._bench_memory import NotMeasured, memory_growth
from ._bench_peers import (
    Peers,
    attention_peers,
    attention_truth,
    product_peers,
    product_truth,
)
from ._names import CONV, EXACT
from ._plain import relative_error
from ._timing import Seconds, interleaved

Step = Callable[[str], None]

#: Entries of the matrix that are formed in float64 to measure errors: all of them up to n = 2,048,
#: and at least so many rows.
TRUTH_ENTRIES, TRUTH_ROWS = 2**22, 128


@dataclass(frozen=True)
class Score:
    """One method in a contest."""

    seconds: Seconds
    error: float  # relative, against float64


@dataclass(frozen=True)
class Result:
    """What came of a contest."""

    contest: Contest
    scores: dict[str, Score]
    baseline: str | None  # None where no other method than ours is installed
    error_rows: int
    rows_exact: int | None = None  # that methods through strips computed directly
    by_strips: bool | None = None  # and whether it used strips at all

    def speedup(self, method: str) -> float | None:
        """How many times as fast as the baseline a method is."""
        if self.baseline is None:
            return None
        return self.scores[self.baseline].seconds.median / self.scores[method].seconds.median

    def met(self, method: str) -> bool | None:
        """Whether the target is met; None without one, or where another peer is its baseline."""
        target: Target | None = self.contest.targets.get(method)
        speedup = self.speedup(method)
        if target is None or speedup is None or self.baseline != self.contest.baseline:
            return None
        return speedup >= target.factor if method != self.baseline else None


@dataclass(frozen=True)
class Growth:
    """How the time of conv_attention grows with n."""

    results: list[Result]
    has_target: bool

    @property
    def exponent(self) -> float:
        """The power of n: least squares of the logarithms of the medians."""
        lengths = np.log([result.contest.n for result in self.results])
        medians = np.log([result.scores[CONV].seconds.median for result in self.results])
        return float(np.polyfit(lengths, medians, 1)[0])

    @property
    def met(self) -> bool | None:
        return self.exponent <= GROWTH_TARGET if self.has_target else None


@dataclass(frozen=True)
class Memory:
    """How much one call of a method needs at its peak."""

    method: str
    n: int
    num_bases: int
    mebibytes: float | None
    reason: str | None  # why it could not be measured
    has_target: bool

    @property
    def met(self) -> bool | None:
        if self.mebibytes is None or not self.has_target:
            return None
        return self.mebibytes < MEMORY_TARGET


@dataclass
class Outcome:
    """Everything that was measured."""

    settings: Settings
    results: list[Result]
    growth: Growth | None = None
    memory: list[Memory] = field(default_factory=list)
    grid: list[Result] = field(default_factory=list)


def stages(contests: tuple[Contest, ...], repeats: int) -> int:
    """Stages that `measure` reports for all of them."""
    return len(contests) * (2 + repeats)


def measure(
    contest: Contest, settings: Settings, step: Step, *, repeats: int, seconds: float
) -> Result:
    """Warm up, measure errors, and time all methods in turn.

    Parameters
    ----------
    contest : Contest
    settings : Settings
    step : function
        Told of ``2 + repeats`` stages.
    repeats : int
        Rounds of fast methods.
    seconds : float
        Shared by the methods; see `interleaved`.
    """
    tell: Step = lambda text: step(f"{contest}: {text}")  # noqa: E731
    tell("building the problem")
    problem = build(contest, settings)
    rows = sample_rows(contest.n, settings.seed)
    prepared = {"product": prepare_product, "backward": prepare_backward}.get(
        contest.what, prepare_attention
    )(contest, settings, problem, rows)
    peers, baseline = taking_part(contest, prepared.peers)
    tell("errors")
    errors = {name: prepared.error(name, run()) for name, run in peers.items()}  # warms up
    times = interleaved(peers, tell, rounds=repeats, seconds=seconds)
    scores = {name: Score(times[name], errors[name]) for name in peers}
    if not settings.has_targets:
        contest = replace(contest, targets={})
    return Result(contest, scores, baseline, rows.size, **prepared.account)


@dataclass(frozen=True)
class Prepared:
    """The methods of a contest, the error of what one of them returned, and what strips did."""

    peers: Peers
    error: Callable[[str, Any], float]
    account: dict[str, Any] = field(default_factory=dict)


def prepare_product(
    contest: Contest, settings: Settings, problem: Problem, rows: NDArray[np.int64]
) -> Prepared:
    """Products of the problem's basis with its value."""
    basis = ConvBasis(problem.starts, contest.num_bases, problem.kernels.astype(settings.dtype))
    truth = product_truth(basis, problem.value, rows)
    peers = product_peers(basis, problem.value, settings.num_threads)
    return Prepared(peers, lambda _, got: relative_error(got[rows], truth))


def prepare_attention(
    contest: Contest, settings: Settings, problem: Problem, rows: NDArray[np.int64]
) -> Prepared:
    """Causal attention, recovery included."""
    options = options_for(contest, problem)
    truth = attention_truth(problem, rows)
    return Prepared(
        attention_peers(problem, options, settings.num_threads),
        lambda _, got: relative_error(got[rows], truth),
        account_of(conv_attention, problem, options, settings.num_threads),
    )


def prepare_backward(
    contest: Contest, settings: Settings, problem: Problem, rows: NDArray[np.int64]
) -> Prepared:
    """Gradients of causal attention, for a random gradient by its output."""
    options, threads = options_for(contest, problem), settings.num_threads
    grad = output_gradient(problem, settings.seed)
    # Both gradients go through the same strips and spoiled rows; "basis" tells of them sooner.
    backward = partial(conv_attention_backward, grad_output=grad, gradient="basis")
    return Prepared(
        backward_peers(problem, grad, options, threads),
        Judge(problem, grad, options, rows, threads).error,
        account_of(backward, problem, options, threads),
    )


def taking_part(contest: Contest, peers: Peers) -> tuple[Peers, str | None]:
    """The methods of the contest that are installed, and the baseline."""
    wanted = list(contest.methods)
    baseline: str | None = contest.baseline
    if baseline not in peers:
        baseline = EXACT if EXACT in peers else None
        if contest.baseline in wanted and EXACT in peers:
            wanted.append(EXACT)
    if baseline not in wanted:
        baseline = None
    return {name: run for name, run in peers.items() if name in wanted}, baseline


def build(contest: Contest, settings: Settings) -> Problem:
    """The problem, with random numbers of its own.

    Raises
    ------
    CommandError
        If there is none with these sizes.
    """
    n, k, head_dim = contest.n, contest.num_bases, settings.head_dim
    seed = np.random.SeedSequence([settings.seed, n, k])
    try:
        return conv_problem(n, head_dim, k, seed=seed, dtype=np.dtype(settings.dtype))
    except ValueError as error:
        raise CommandError(
            f"there is no such problem: {error}; give a larger --head-dim or another --seed"
        ) from error


def options_for(contest: Contest, problem: Problem) -> RecoverOptions:
    """Nothing is told about the strips, unless the contest demands them."""
    if not contest.demands_strips:
        return RecoverOptions()
    last = contest.n - int(problem.starts[-1])  # rows of the shortest strip
    return RecoverOptions(num_bases=contest.num_bases, window=min(RecoverOptions().window, last))


def account_of(
    function: Callable[..., Any], problem: Problem, options: RecoverOptions, threads: int
) -> dict[str, Any]:
    """What conv_attention, or its backward pass, reports of itself."""
    *_, report = function(
        problem.query,
        problem.key,
        problem.value,
        is_causal=True,
        scale=problem.scale,
        options=options,
        return_report=True,
        num_threads=threads,
    )
    return {"rows_exact": int(report.rows_exact), "by_strips": report.heads_exact == 0}


def sample_rows(n: int, seed: int) -> NDArray[np.int64]:
    """Rows on which errors are measured, increasing: all where that does not take long."""
    count = min(n, max(TRUTH_ENTRIES // n, TRUTH_ROWS))
    rows = np.random.default_rng(seed).choice(n, count, replace=False)
    return np.sort(rows).astype(np.int64)


def measure_memory(method: str, settings: Settings) -> Memory:
    """Peak memory of a method at the sizes of `MEMORY`."""
    n, num_bases = MEMORY
    has_target = settings.has_targets and method == CONV
    try:
        mebibytes = memory_growth(
            n,
            settings.head_dim,
            num_bases,
            dtype=settings.dtype,
            seed=settings.seed,
            num_threads=settings.num_threads,
            gradient=GRADIENT_OF.get(method),
        )
    except NotMeasured as error:
        return Memory(method, n, num_bases, None, str(error), has_target)
    return Memory(method, n, num_bases, mebibytes, None, has_target)
