"""The oracle of feature sparsification, by the mathematics that it promises."""

import numpy as np
import pytest

from convbasis import reference as ref


def wide(n, d, *, rank=None, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * np.exp(rng.normal(size=d))
    if rank is not None:
        x = rng.normal(size=(n, rank)) @ rng.normal(size=(rank, n)) @ x
    return x


@pytest.mark.parametrize(("n", "d", "rank"), [(1, 1, 1), (3, 7, 3), (16, 100, 16), (17, 90, 5)])
def test_scores_sum_to_the_rank(n, d, rank):
    x = wide(n, d, rank=rank if rank < n else None)
    scores = ref.leverage_scores(x)
    assert scores.min() >= 0
    assert scores.max() <= 1 + 1e-12
    assert scores.sum() == pytest.approx(rank, rel=1e-9)
    np.testing.assert_allclose(scores, np.diag(x.T @ np.linalg.pinv(x @ x.T) @ x), atol=1e-6)


def test_scores_by_hand():
    x = np.array([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 5.0, 0.0]])
    np.testing.assert_allclose(ref.leverage_scores(x), [0.5, 0.5, 1.0, 0.0], atol=1e-15)
    np.testing.assert_array_equal(ref.leverage_scores(np.zeros((2, 3))), np.zeros(3))


def test_sampling_is_unbiased():
    x = wide(4, 30)
    scores, total, rounds = ref.leverage_scores(x), 0.0, 4000
    rng = np.random.default_rng(1)
    for _ in range(rounds):
        indices, weights = ref.leverage_sample(scores, 8, rng)
        total = total + (x[:, indices] * weights**2) @ x[:, indices].T / rounds
    white = ref.whitening(x)
    # Terms of norm at most k/m = 1/2: the mean of 4,000 sums errs by about sqrt(1/2 / 4000).
    assert np.abs(white @ total @ white.T - np.eye(4)).max() < 5 * np.sqrt(0.5 / rounds)


def test_sampling_keeps_its_promise():
    x, epsilon, delta = wide(8, 20_000, seed=3), 0.5, 0.05
    num_columns = ref.chernoff_columns(8, epsilon, delta)
    scores, missed = ref.leverage_scores(x), 0
    for seed in range(60):
        indices, weights = ref.leverage_sample(scores, num_columns, np.random.default_rng(seed))
        assert len(indices) <= num_columns
        missed += ref.spectral_epsilon(x, x[:, indices] * weights) > epsilon
    assert missed <= 60 * delta


def test_chernoff_by_hand():
    h = 1.5 * np.log(1.5) - 0.5
    assert ref.chernoff_columns(10, 0.5, 0.1) == np.ceil(10 * np.log(200) / h)
    assert ref.chernoff_columns(0, 0.5, 0.1) == 0


@pytest.mark.parametrize("choice", ["largest", "first"])
@pytest.mark.parametrize(("rank", "ratio"), [(None, 1.5), (None, 4), (5, 3), (1, 2)])
def test_barriers_keep_their_promise(choice, rank, ratio):
    x = wide(12, 200, rank=rank)
    k = 12 if rank is None else rank
    num_columns = int(np.ceil(ratio * k))
    indices, weights = ref.barrier_sample(x, num_columns, choice=choice)
    assert k <= len(indices) <= num_columns
    assert (weights > 0).all()
    low, high = ref.spectral_range(x, x[:, indices] * weights)
    root = np.sqrt(num_columns / k)
    assert high / low <= ((root + 1) / (root - 1)) ** 2
    epsilon = ref.spectral_epsilon(x, x[:, indices] * weights)
    assert epsilon <= ref.barrier_epsilon(num_columns / k) < 1
    assert epsilon == pytest.approx((high - low) / (high + low), abs=1e-9)


def test_the_largest_slack_does_better():
    x = wide(16, 600, seed=5)

    def condition(choice):
        indices, weights = ref.barrier_sample(x, 64, choice=choice)
        low, high = ref.spectral_range(x, x[:, indices] * weights)
        return high / low

    assert condition("largest") < condition("first")


def test_a_column_that_alone_spans_a_direction_is_kept():
    x = np.vstack([wide(5, 300), np.zeros(300)])
    x[5, 123] = 1e-3
    scores = ref.leverage_scores(x)
    assert scores[123] == pytest.approx(1.0)
    for seed in range(50):
        assert 123 in ref.leverage_sample(scores, 6, np.random.default_rng(seed))[0]
    assert 123 in ref.barrier_sample(x, 12)[0]


def test_zero_columns_are_never_taken_and_copies_share():
    x = wide(4, 50)
    x[:, ::2] = 0.0
    x[:, 3] = x[:, 5]
    scores = ref.leverage_scores(x)
    assert scores[3] == pytest.approx(scores[5])
    for indices in (
        ref.leverage_sample(scores, 40, np.random.default_rng(0))[0],
        ref.barrier_sample(x, 12)[0],
    ):
        assert (indices % 2 == 1).all()


def test_nothing_comes_of_nothing():
    x = np.zeros((3, 5))
    for indices, weights in (
        ref.barrier_sample(x, 4),
        ref.leverage_sample(ref.leverage_scores(x), 4, np.random.default_rng(0)),
    ):
        assert len(indices) == len(weights) == 0
    assert ref.spectral_epsilon(x, x) == 0.0


def test_the_same_seed_gives_the_same_columns():
    scores = ref.leverage_scores(wide(4, 200))
    first, again, other = (
        ref.leverage_sample(scores, 30, np.random.default_rng(seed)) for seed in (7, 7, 8)
    )
    np.testing.assert_array_equal(first[0], again[0])
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("spread", [0.05, 0.3, 1.0])
def test_the_softmax_stays_within_the_bound(spread):
    x = spread * wide(10, 400, seed=2) / np.sqrt(400)
    radius = np.abs(x @ x.T).max()
    indices, weights = ref.barrier_sample(x, 60)
    features = x[:, indices] * weights
    epsilon = ref.spectral_epsilon(x, features)
    assert np.abs(features @ features.T - x @ x.T).max() <= epsilon * radius * (1 + 1e-9)
    change = ref.softmax_change(x, features)
    assert 0 < change <= ref.sparsified_bound(epsilon, radius)
    assert change < ref.softmax_change(x, np.zeros((10, 1)))
