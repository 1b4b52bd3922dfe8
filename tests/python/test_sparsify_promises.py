"""What sparsification promises, on thousands of small random problems and on chosen ones."""

import numpy as np
import pytest
from scipy import sparse

import convbasis as cb
from convbasis import reference as ref

WAYS = [
    {"method": "bss"},
    {"method": "leverage", "scores": "exact"},
    {"method": "leverage", "scores": "sketched"},
]
NAMES = ["bss", "exact", "sketched"]
SAMPLING = pytest.mark.parametrize("scores", ["exact", "sketched"])
ways = pytest.mark.parametrize("way", WAYS, ids=NAMES)


def problem(rng, *, d=None):
    """A small x of any kind: full or not, dense or sparse, even or uneven, with copies."""
    n = int(rng.integers(1, 9))
    d = d or int(rng.integers(n + 12, 80))
    x = rng.normal(size=(n, d)) * np.exp(rng.normal(size=d) * rng.choice([0.0, 1.0, 3.0]))
    kind = rng.integers(5)
    if kind == 0:
        x *= rng.random((n, d)) < 0.3
    elif kind == 1:
        rank = int(rng.integers(1, n + 1))
        x = rng.normal(size=(n, rank)) @ x[:rank]
    elif kind == 2:
        x[:, 1::2] = x[:, : d - d % 2 : 2]
    elif kind == 3:
        x[:, : d // 2] = 0.0
    return 0.1 * x


def test_bss_never_breaks_its_promise():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        x = problem(rng)
        rank = np.linalg.matrix_rank(x, tol=1e-9)
        num_columns = rank + 1 + int(rng.integers(10))
        found = cb.sparsify_features(x, method="bss", num_columns=num_columns, num_threads=1)
        assert found.epsilon <= found.epsilon_promised * (1 + 1e-9)
        rounding = 1e-13 * (1 + found.radius)
        assert found.error <= found.error_bound * (1 + 1e-9) + rounding
        assert found.logit_deviation <= found.epsilon * found.radius * (1 + 1e-6) + rounding


@SAMPLING
def test_draws_break_their_promise_in_a_share_of_delta_at_most(scores):
    rng, rounds, delta, broken = np.random.default_rng(1), 2000, 0.2, 0
    for _ in range(rounds):
        x = problem(rng, d=120)
        found = cb.sparsify_features(
            x, num_columns=90, delta=delta, rng=rng, scores=scores, num_threads=1
        )
        broken += found.epsilon > found.epsilon_promised
        assert found.error <= found.error_bound * (1 + 1e-9) + 1e-13 * (1 + found.radius)
    assert broken <= rounds * delta


@SAMPLING
def test_an_epsilon_is_missed_in_a_share_of_delta_at_most(scores):
    x, rounds, delta = np.random.default_rng(2).normal(size=(4, 3000)), 300, 0.3
    missed = 0
    for seed in range(rounds):
        found = cb.sparsify_features(
            x, epsilon=0.7, delta=delta, rng=seed, scores=scores, num_threads=1
        )
        assert found.epsilon_promised <= 0.7
        missed += found.epsilon > 0.7
    assert missed <= rounds * delta


@SAMPLING
def test_the_mean_over_seeds_is_x(scores):
    rng, rounds = np.random.default_rng(3), 2000
    x = rng.normal(size=(3, 60)) * np.exp(rng.normal(size=60))
    white, total = ref.whitening(x), 0.0
    for seed in range(rounds):
        found = cb.sparsify_features(x, num_columns=12, rng=seed, scores=scores, num_threads=1)
        assert found.is_sketched == (scores == "sketched")
        total = total + found.features @ found.features.T / rounds
    # Terms of norm at most k/m = 1/4: the mean of 2,000 sums errs by about sqrt(1/4 / 2000).
    assert np.abs(white @ total @ white.T - np.eye(3)).max() < 5 * np.sqrt(0.25 / rounds)


def test_sketched_draws_follow_the_exact_scores():
    rng, rounds = np.random.default_rng(4), 1500
    x = rng.normal(size=(3, 40)) * np.exp(0.5 * rng.normal(size=40))
    scores, seen = ref.leverage_scores(x), np.zeros(40)
    m = 4  # few: no column is kept for certain
    assert (m * scores < scores.sum()).all()
    for seed in range(rounds):
        found = cb.sparsify_features(x, num_columns=m, rng=seed, scores="sketched", num_threads=1)
        times = found.weights**2 * m * scores[found.indices] / scores.sum()
        np.testing.assert_allclose(times, np.round(times), atol=1e-6)
        seen[found.indices] += times
    want = rounds * m * scores / scores.sum()
    assert (np.abs(seen - want) < 5 * np.sqrt(want)).all()


def test_sketched_scores_of_the_paper_are_near_the_exact_ones():
    x = np.random.default_rng(5).normal(size=(5, 400))
    exact = ref.leverage_scores(x)
    rough = ref.sketched_scores(x, 3000, 200, np.random.default_rng(6))
    assert 0.5 < (rough / exact).min() < (rough / exact).max() < 2
    assert rough.sum() == pytest.approx(5, rel=0.3)


def test_a_count_sketch_is_x_in_the_mean():
    x, rng, rounds = np.random.default_rng(7).normal(size=(3, 20)), np.random.default_rng(8), 600
    sketches = [ref.count_sketch(x, 12, rng) for _ in range(rounds)]
    mean = sum(c @ c.T for c in sketches) / rounds
    white = ref.whitening(x)
    # A sketch is off by sqrt((k^2 + k) / width) = 1 in the root of the mean square at most.
    assert np.abs(white @ mean @ white.T - np.eye(3)).max() < 4 / np.sqrt(rounds)


@ways
@pytest.mark.parametrize("make", [np.asarray, sparse.csr_array])
def test_a_column_that_alone_spans_a_direction_is_kept(way, make):
    rng = np.random.default_rng(9)
    for seed in range(40):
        x = rng.normal(size=(6, 100))
        alone, row = int(rng.integers(100)), int(rng.integers(6))
        x[row] = 0.0
        x[row, alone] = 10.0 ** rng.integers(-12, 12)
        found = cb.sparsify_features(make(x), num_columns=18, rng=seed, **way)
        assert alone in found.indices
        assert found.epsilon < 1 or way["method"] == "leverage"


@ways
def test_columns_of_zeros_are_never_taken_and_copies_stand_for_each_other(way):
    x = np.random.default_rng(10).normal(size=(4, 30))
    x = np.hstack([x, np.zeros((4, 30)), x, x])
    for seed in range(20):
        found = cb.sparsify_features(x, num_columns=40, rng=seed, **way)
        assert not ((found.indices >= 30) & (found.indices < 60)).any()
        assert found.epsilon <= found.epsilon_promised


def test_columns_that_only_rounding_gives_a_score_are_not_drawn():
    for seed in range(60):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(2, 6))
        rows, _ = np.linalg.qr(rng.normal(size=(n, n)))
        kept = rows * 10.0 ** -rng.uniform(0, 5.5, n)  # scores of 1, but for rounding
        x = np.hstack([kept, 1e-161 * rng.normal(size=(n, 30))])
        found = cb.sparsify_features(x, num_columns=n + 3, rng=seed, scores="sketched")
        np.testing.assert_array_equal(found.indices, np.arange(n))
        np.testing.assert_array_equal(found.weights, 1.0)


@SAMPLING
def test_a_delta_that_nearly_vanishes(scores):
    x = np.random.default_rng(13).normal(size=(4, 300))
    found = cb.sparsify_features(x, num_columns=30, delta=5e-324, scores=scores, rng=0)
    assert found.epsilon < 1


@ways
def test_a_progress_that_raises_ends_the_call(way):
    x = np.random.default_rng(11).normal(size=(8, 400))

    def stop(chosen, num_columns):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cb.sparsify_features(x, num_columns=40, progress=stop, rng=0, **way)


def test_a_bar_is_shown_where_there_is_a_terminal(capsys, monkeypatch):
    x = np.random.default_rng(12).normal(size=(4, 200))
    cb.sparsify_features(x, method="bss", num_columns=40, progress=True)
    assert capsys.readouterr().err == ""  # no terminal
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("convbasis.cli._progress.rich_bar", lambda: None)
    cb.sparsify_features(x, method="bss", num_columns=40, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 20
    assert lines[-1] == "[20/20] 39 of 40 columns chosen"
