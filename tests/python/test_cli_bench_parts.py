"""The parts of `convbasis bench`: methods, errors, verdicts, rounds, memory."""

import math

import numpy as np
import pytest

from convbasis import reference
from convbasis.basis import ConvBasis
from convbasis.cli import (
    _bench_backward,
    _bench_cases,
    _bench_job,
    _bench_memory,
    _bench_peers,
    _timing,
)
from convbasis.cli._bench_cases import GROWTH, QUICK_TABLE, TABLE, Contest, Target
from convbasis.cli._plain import plain_attention, relative_error
from convbasis.problems import conv_problem
from convbasis.recover import RecoverOptions

CONTEST = Contest(
    "attention",
    256,
    3,
    ("conv_attention", "torch SDPA", "exact_attention"),
    {"conv_attention": Target(12), "exact_attention": _bench_cases.AS_FAST},
)
OPTIONS = RecoverOptions(num_bases=5, window=16)


def test_peers_agree_in_float64():
    fft = pytest.importorskip("scipy.fft")
    problem = conv_problem(300, 16, 5, seed=1)
    x, rows = problem.value, np.array([0, 1, 17, 150, 298, 299])
    basis = ConvBasis(problem.starts, 5, problem.kernels)
    truth = _bench_peers.product_truth(basis, x, rows)
    dense = np.tril(problem.scale * problem.query @ problem.key.T)
    assert relative_error(truth, (dense @ x)[rows]) < 1e-12
    for run in _bench_peers.product_peers(basis, x, 1).values():
        assert relative_error(run()[rows], truth) < 1e-12
    got = _bench_peers.attention_by_strip(fft, problem, RecoverOptions(), 1)
    truth = _bench_peers.attention_truth(problem, np.arange(300))
    assert relative_error(got, truth) < 1e-11
    plain = plain_attention(
        problem.query, problem.key, x, scale=problem.scale, is_causal=True, rows=rows
    )
    assert relative_error(plain, truth[rows]) < 1e-14


def backward_case(dtype, seed=2):
    problem = conv_problem(300, 16, 5, seed=seed, dtype=dtype)
    grad = _bench_backward.output_gradient(problem, seed)
    rows = np.array([0, 1, 17, 150, 298, 299])
    judge = _bench_backward.Judge(problem, grad, OPTIONS, rows, 1)
    return problem, grad, judge


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_gradients_of_the_errors_are_the_oracle_s(dtype):
    problem, grad, judge = backward_case(dtype)
    arrays = [array.astype(np.float64) for array in (problem.query, problem.key, problem.value)]
    common = {"scale": problem.scale, "is_causal": True}
    exact = reference.attention_backward(*arrays, grad, **common)
    for got, want in zip(judge.exact_truth, exact, strict=True):
        assert relative_error(got, want[judge.rows]) < 1e-12
    basis, _ = reference.recover(*arrays[:2], scale=problem.scale, num_bases=5, window=16)
    assert np.array_equal(basis.starts, problem.starts)
    strips = reference.conv_attention_backward(basis, *arrays, grad, scale=problem.scale)
    for got, want in zip(judge.basis_truth, strips, strict=True):
        assert relative_error(got, want) < 1e-11


def test_backward_peers_agree_and_errors_see_every_gradient():
    problem, grad, judge = backward_case(np.float64)
    peers = _bench_backward.backward_peers(problem, grad, OPTIONS, 1)
    for name, run in peers.items():
        got = run()
        assert judge.error(name, got) < 1e-10
        for place in range(0 if name == _bench_backward.FORWARD else 3):
            wrong = [array + (number == place) for number, array in enumerate(got)]
            assert judge.error(name, wrong) > 1e-3


def test_torch_is_differentiated_alone():
    pytest.importorskip("torch")
    problem, grad, judge = backward_case(np.float32)
    run = _bench_backward.torch_backward(problem, grad, 2)
    first, again = run(), run()  # the graph is kept
    assert judge.error("torch SDPA", first) < 1e-5
    assert all(map(np.array_equal, first, again))


def test_rows_of_the_errors():
    assert np.array_equal(_bench_job.sample_rows(2048, 0), np.arange(2048))
    rows = _bench_job.sample_rows(2**17, 0)
    assert rows.size == _bench_job.TRUTH_ROWS
    assert np.all(np.diff(rows) > 0)
    assert rows[-1] < 2**17


def result_of(contest, medians, baseline="torch SDPA"):
    scores = {
        name: _bench_job.Score(_timing.Seconds((median,)), 1e-7) for name, median in medians.items()
    }
    return _bench_job.Result(contest, scores, baseline, 1)


def test_verdicts():
    contest = CONTEST
    result = result_of(
        contest, {"conv_attention": 1.0, "torch SDPA": 12.0, "exact_attention": 14.5}
    )
    assert result.speedup("conv_attention") == 12.0
    assert result.met("conv_attention") is True
    assert result.met("exact_attention") is False
    assert result.met("torch SDPA") is None
    alone = result_of(contest, {"conv_attention": 1.0}, baseline=None)
    assert (alone.speedup("conv_attention"), alone.met("conv_attention")) == (None, None)


def test_growth_is_the_slope_of_the_logarithms():
    results = [
        result_of(Contest("growth", n, 16, ("conv_attention",)), {"conv_attention": 3.0 * n**1.25})
        for n in (1024, 2048, 4096)
    ]
    assert _bench_job.Growth(results, True).exponent == pytest.approx(1.25, rel=1e-12)
    assert _bench_job.Growth(results, True).met is False
    assert _bench_job.Growth(results, False).met is None


def test_slow_functions_get_fewer_rounds(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(_timing.time, "perf_counter", lambda: now[0])

    def taking(seconds):
        def function():
            now[0] += seconds

        return function

    functions = {"slow": taking(5.0), "fast": taking(0.25)}
    found = _timing.interleaved(functions, lambda _: None, rounds=7, seconds=4.0)
    assert found["slow"].runs == (5.0, 5.0)
    assert found["fast"].runs == (0.25,) * 7


def test_a_turn_of_a_fast_function_is_the_mean_of_several_calls(monkeypatch):
    now = [0.0]
    durations = iter([_timing.TURN / 2, _timing.TURN / 4, _timing.TURN / 2])
    monkeypatch.setattr(_timing.time, "perf_counter", lambda: now[0])

    def function():
        now[0] += next(durations)

    assert math.isclose(_timing.turn(function), 1.25 * _timing.TURN / 3)


@pytest.mark.skipif(not _bench_memory.RESET.exists(), reason="needs Linux")
def test_memory_is_measured_in_a_process_of_its_own():
    sizes = {"dtype": "float32", "seed": 0, "num_threads": 1}
    n, head_dim, num_bases = 32768, 16, 8
    grown = _bench_memory.memory_growth(n, head_dim, num_bases, **sizes)
    held = 4 * n * (head_dim + num_bases) / 2**20  # output and kernels
    assert held <= grown < 200
    backward = _bench_memory.memory_growth(n, head_dim, num_bases, gradient="basis", **sizes)
    assert 3 * 4 * n * head_dim / 2**20 <= backward < 200
    with pytest.raises(_bench_memory.NotMeasured, match="num_bases is out of range"):
        _bench_memory.memory_growth(10, head_dim, 11, **sizes)


def test_the_contests_of_the_targets_are_there():
    sizes = {(contest.what, contest.n, contest.num_bases) for contest in TABLE}
    assert {("attention", 131072, 16), ("attention", 4096, 512), ("product", 16384, 64)} <= sizes
    assert {("backward", 16384, 16), ("backward", 16384, 4), ("backward", 65536, 4)} <= sizes
    assert all(contest in TABLE for contest in QUICK_TABLE)
    assert max(contest.n for contest in QUICK_TABLE) == 16384
    assert [contest.n for contest in GROWTH] == [2**power for power in range(14, 19)]
    assert math.isclose(_bench_cases.AS_FAST.factor, 1 / 1.2)
