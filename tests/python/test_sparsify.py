"""Few columns for many: against the oracle, by the mathematics, dense and sparse."""

import tracemalloc

import numpy as np
import pytest
from scipy import sparse

import convbasis as cb
from convbasis import reference as ref

METHODS = ["leverage", "bss"]


def wide(n, d, *, rank=None, share=None, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * np.exp(rng.normal(size=d))
    if rank is not None:
        x = rng.normal(size=(n, rank)) @ rng.normal(size=(rank, n)) @ x
    if share is not None:
        x *= rng.random((n, d)) < share
    return x.astype(dtype)


def dense(features):
    return features.toarray() if sparse.issparse(features) else features


@pytest.mark.parametrize(
    ("n", "d", "rank"), [(1, 1, None), (3, 40, None), (16, 300, None), (12, 90, 5)]
)
def test_the_same_columns_as_the_oracle(n, d, rank):
    x = wide(n, d, rank=rank)
    k = rank or n
    few = cb.sparsify_features(x, num_columns=3 * k, rng=7)
    if d > 3 * k:
        want = ref.leverage_sample(ref.leverage_scores(x), 3 * k, np.random.default_rng(7))
        np.testing.assert_array_equal(few.indices, want[0])
        np.testing.assert_allclose(few.weights, want[1], rtol=1e-6)
    bss = cb.sparsify_features(x, method="bss", num_columns=4 * k)
    if d > 4 * k:
        want = ref.barrier_sample(x, 4 * k)
        np.testing.assert_array_equal(bss.indices, want[0])
        np.testing.assert_allclose(bss.weights, want[1], rtol=1e-5)
    for found in (few, bss):
        assert found.rank == k
        np.testing.assert_allclose(found.features, x[:, found.indices] * found.weights, rtol=1e-15)
        want = ref.spectral_epsilon(x, found.features)
        assert found.epsilon == pytest.approx(want, abs=1e-6)


def test_a_list_of_the_best_columns_is_as_good_as_all():
    x = wide(12, 3000)  # far more than the 48 columns that are listed
    found = cb.sparsify_features(x, method="bss", num_columns=48)
    best, weights = ref.barrier_sample(x, 48)
    low, high = ref.spectral_range(x, x[:, best] * weights)
    assert found.condition_number <= 1.1 * high / low
    assert found.epsilon <= found.epsilon_promised == pytest.approx(0.8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("epsilon", [0.3, 0.8])
def test_epsilon_is_kept(method, epsilon):
    x = wide(6, 8000, seed=4)
    found = cb.sparsify_features(x, method=method, epsilon=epsilon, rng=0)
    assert found.epsilon_promised <= epsilon
    assert 0 < found.epsilon <= epsilon
    assert ref.spectral_epsilon(x, found.features) <= epsilon
    assert found.num_columns < 8000
    if method == "leverage":
        assert found.num_columns == ref.chernoff_columns(6, epsilon, 0.05)


def test_one_of_both_or_neither():
    x = wide(4, 2000)
    assert cb.sparsify_features(x, rng=0).epsilon_promised <= 0.5
    with pytest.raises(ValueError, match=r"\[sparsify_features\] epsilon is given beside"):
        cb.sparsify_features(x, num_columns=9, epsilon=0.5)


def test_bss_is_better_than_leverage():
    x = np.random.default_rng(0).normal(size=(32, 1024))
    bss = cb.sparsify_features(x, method="bss", num_columns=128)
    drawn = [cb.sparsify_features(x, num_columns=128, rng=seed) for seed in range(5)]
    assert bss.condition_number < 9
    assert bss.condition_number < 0.5 * np.median([found.condition_number for found in drawn])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [sparse.csr_array, sparse.csc_array, sparse.csr_matrix])
@pytest.mark.parametrize("share", [0.1, 0.9])
def test_sparse_is_as_dense(method, make, share):
    x = wide(10, 700, share=share)
    want = cb.sparsify_features(x, method=method, num_columns=40, rng=3)
    got = cb.sparsify_features(make(x), method=method, num_columns=40, rng=3)
    np.testing.assert_array_equal(got.indices, want.indices)
    np.testing.assert_allclose(got.weights, want.weights, rtol=1e-9)
    assert isinstance(got.features, make)
    np.testing.assert_allclose(got.features.toarray(), want.features, rtol=1e-9)
    assert got.epsilon == pytest.approx(want.epsilon, rel=1e-9)
    np.testing.assert_allclose(got.transform(make(x[:3])).toarray(), want.transform(x[:3]))


@pytest.mark.parametrize("method", METHODS)
def test_sparse_is_never_made_dense(method):
    rng, (n, d, nnz) = np.random.default_rng(0), (64, 100_000, 64_000)
    at = rng.integers(0, n, nnz), rng.integers(0, d, nnz)
    x = sparse.csr_array((rng.normal(size=nnz), at), shape=(n, d))
    tracemalloc.start()
    found = cb.sparsify_features(x, method=method, num_columns=160, rng=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.epsilon > 0
    assert peak < n * d * 8 / 4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [np.asarray, sparse.csc_array])
def test_columns_that_say_nothing_or_all(method, make):
    x = np.vstack([wide(5, 300), np.zeros((2, 300))])
    x[:, ::2] = 0.0
    x[:, 3] = x[:, 5]
    x[5, 122] = 1e-3  # alone in its direction; row 6 stays 0
    for seed in range(5):
        found = cb.sparsify_features(make(x), method=method, num_columns=26, rng=seed)
        assert found.rank == 6
        assert 122 in found.indices
        assert set(found.indices[found.indices % 2 == 0]) == {122}
        assert found.epsilon <= found.epsilon_promised


@pytest.mark.parametrize("method", METHODS)
def test_as_many_columns_as_there_are(method):
    x = wide(4, 9)
    x[:, 2] = 0.0
    for count in (9, 100):
        found = cb.sparsify_features(x, method=method, num_columns=count, rng=0)
        np.testing.assert_array_equal(found.indices, [0, 1, 3, 4, 5, 6, 7, 8])
        np.testing.assert_array_equal(found.features, x[:, found.indices])
        assert found.epsilon_promised == 0
        assert found.epsilon < 1e-12
        assert found.error < 1e-12
    nothing = cb.sparsify_features(np.zeros((3, 5)), method=method)
    assert nothing.features.shape == (3, 1)
    assert (nothing.rank, nothing.epsilon, nothing.error, nothing.error_bound) == (0, 0, 0, 0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [np.asarray, sparse.csr_array])
def test_the_same_seed_and_any_threads_give_the_same(method, make):
    x = make(wide(9, 2000, share=0.3))
    runs = [
        cb.sparsify_features(x, method=method, num_columns=40, rng=rng, num_threads=threads)
        for rng, threads in ((5, 1), (5, 3), (np.random.default_rng(5), None))
    ]
    for run in runs[1:]:
        np.testing.assert_array_equal(run.indices, runs[0].indices)
        np.testing.assert_array_equal(run.weights, runs[0].weights)
        np.testing.assert_array_equal(dense(run.features), dense(runs[0].features))
    other = cb.sparsify_features(x, method=method, num_columns=40, rng=6)
    assert np.array_equal(other.indices, runs[0].indices) == (method == "bss")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spread", [0.003, 0.02, 0.05])
def test_attention_by_the_features_is_within_the_bound(method, spread):
    x = spread * wide(24, 4000, seed=2)
    found = cb.sparsify_features(x, method=method, num_columns=300, rng=1)
    exact = cb.exact_attention(x, x, np.eye(24), scale=1.0)
    out = cb.exact_attention(found.features, found.features, np.eye(24), scale=1.0)
    change = np.abs(out / exact - 1).max()
    assert 0 < change <= found.error_bound
    assert found.error == pytest.approx(change, rel=1e-6)
    assert found.error_bound >= np.expm1(2 * found.epsilon * found.radius) * (1 - 1e-12)
    assert found.radius == pytest.approx(np.abs(x @ x.T).max())
    assert found.logit_deviation <= found.epsilon * found.radius * (1 + 1e-9)
    assert found.trivial_error == pytest.approx(np.abs(1 / 24 / exact - 1).max())
    assert found.trivial_error == pytest.approx(ref.softmax_change(x, np.zeros((24, 1))))
    causal = [
        cb.exact_attention(y, y, np.eye(24), is_causal=True, scale=1.0)[np.tril_indices(24)]
        for y in (found.features, x)
    ]
    assert np.abs(causal[0] / causal[1] - 1).max() <= found.error_bound


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_types_and_layouts(dtype, order):
    x = np.asarray(wide(6, 200, dtype=dtype), order=order)
    kept = x.copy()
    found = cb.sparsify_features(x, method="bss", num_columns=30)
    assert found.features.dtype == dtype
    np.testing.assert_array_equal(x, kept)
    want = cb.sparsify_features(x.astype(np.float64), method="bss", num_columns=30)
    np.testing.assert_array_equal(found.indices, want.indices)
    assert found.transform(np.stack([x, x])).shape == (2, 6, len(found.indices))
    strided = cb.sparsify_features(np.repeat(x, 2, axis=1)[:, ::2], method="bss", num_columns=30)
    np.testing.assert_array_equal(strided.indices, want.indices)


@pytest.mark.parametrize("method", METHODS)
def test_sizes_of_rows_do_not_matter(method):
    x = wide(8, 600)
    want = cb.sparsify_features(x, method=method, num_columns=40, rng=0)
    uneven = 10.0 ** np.arange(-7, 9, 2)[:, None] * x
    found = cb.sparsify_features(uneven, method=method, num_columns=40, rng=0)
    assert found.rank == 8
    np.testing.assert_array_equal(found.indices, want.indices)
    assert found.epsilon == pytest.approx(want.epsilon, rel=1e-6)


@pytest.mark.parametrize("rank", [1, 5, 20])
def test_bss_with_one_column_more_than_the_rank(rank):
    x = wide(20, 300, rank=rank if rank < 20 else None)
    found = cb.sparsify_features(x, method="bss", num_columns=rank + 1)
    assert found.epsilon <= found.epsilon_promised < 1


def test_too_few_draws_may_lose_a_direction_and_say_so():
    x = np.repeat(np.eye(6), 50, axis=1)
    found = cb.sparsify_features(x, num_columns=6, rng=0)
    assert found.epsilon >= 1
    assert found.condition_number == np.inf
    assert found.epsilon_promised > 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1e-160, 1e160])
def test_sizes_that_squares_do_not_reach(method, size):
    x = wide(5, 100)
    want = cb.sparsify_features(x, method=method, num_columns=20, rng=0)
    found = cb.sparsify_features(size * x, method=method, num_columns=20, rng=0)
    np.testing.assert_array_equal(found.indices, want.indices)
    assert found.epsilon == pytest.approx(want.epsilon, rel=1e-6)
    assert found.radius < 1e-300 if size < 1 else found.radius == np.inf


def test_progress():
    calls = []
    x = wide(3, 50)
    cb.sparsify_features(x, method="bss", num_columns=8, progress=lambda *at: calls.append(at))
    assert calls == [(step, 8) for step in range(1, 9)]
    cb.sparsify_features(x, num_columns=8, rng=0, progress=lambda *at: calls.append(at))
    assert calls[8:] == [(8, 8)]


def test_reports():
    found = cb.sparsify_features(wide(4, 100), method="bss", num_columns=16)
    assert (
        repr(found)
        == f"<Sparsified: {len(found.indices)} of 100 columns, epsilon {found.epsilon:.3g}>"
    )
    assert f"{len(found.indices)} of 100, rank 4" in str(found)
    assert "0.8 promised" in str(found)
    table = found.to_markdown().splitlines()
    assert len({line.count("|") for line in table}) == 1
    assert found.to_dict()["indices"] == found.indices.tolist()
    drawn = cb.sparsify_features(wide(4, 100), num_columns=16, rng=0)
    assert "with probability 1 - delta" in str(drawn)
    with pytest.raises(AttributeError):
        found.epsilon = 0.0


BAD = [
    ("list", [[1.0, 2.0]], {}, TypeError, r"x is not a NumPy array; .*; got list"),
    ("int", np.ones((2, 3), int), {}, TypeError, r"x has an unsupported dtype; .*; got int64"),
    ("coo", sparse.coo_array(np.ones((2, 3))), {}, ValueError, r"x has an unsupported sparse"),
    ("sparse int", sparse.csr_array(np.ones((2, 3), int)), {}, TypeError, r"x has an unsupported"),
    ("3-D", np.ones((2, 2, 3)), {}, ValueError, r"x is no matrix; .*; got shape \(2, 2, 3\)"),
    ("no rows", np.ones((0, 3)), {}, ValueError, r"x is no matrix"),
    ("tall", np.ones((4, 3)), {}, ValueError, r"x has fewer columns than rows.*d >= n = 4; got"),
    ("nan", np.array([[1.0, np.nan]]), {}, ValueError, r"x has NaN or infinite entries"),
    ("sparse inf", sparse.csr_array([[1.0, np.inf]]), {}, ValueError, r"x has NaN or infinite"),
    ("method", wide(2, 9), {"method": "svd"}, ValueError, r"method is unknown"),
    ("zero", wide(2, 9), {"num_columns": 0}, ValueError, r"num_columns is too small"),
    ("few", wide(3, 9), {"num_columns": 2}, ValueError, r".*rank 3; expected at least 3; got 2"),
    ("few bss", wide(3, 9), {"num_columns": 3, "method": "bss"}, ValueError, r".*at least 4"),
    ("float", wide(2, 9), {"num_columns": 4.0}, TypeError, r"num_columns is not an integer"),
    ("epsilon", wide(2, 9), {"epsilon": 1.0}, ValueError, r"epsilon is out of range"),
    ("delta", wide(2, 9), {"delta": 0.0}, ValueError, r"delta is out of range"),
    ("rng", wide(2, 9), {"rng": "seed"}, TypeError, r"rng is no source of random numbers"),
    ("seed", wide(2, 9), {"rng": -1}, ValueError, r"rng is too small"),
    ("threads", wide(2, 9), {"num_threads": 0}, ValueError, r"num_threads is too small"),
    ("progress", wide(2, 9), {"progress": 3}, TypeError, r"progress cannot be called"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("x", "call", "error", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD]
)
def test_bad_arguments(x, call, error, message):
    with pytest.raises(error, match=r"^\[sparsify_features\] " + message):
        cb.sparsify_features(x, **call)


def test_transform_checks_its_argument():
    found = cb.sparsify_features(wide(2, 9), num_columns=4, rng=0)
    with pytest.raises(
        ValueError, match=r"\[Sparsified.transform\] x_new has another number .* 9; "
    ):
        found.transform(np.ones((2, 8)))


def test_features_that_overflow_their_type_are_refused():
    x = (1e4 * wide(8, 500).clip(-5, 5)).astype(np.float16)
    with pytest.raises(ValueError, match=r"\[sparsify_features\] x has .* overflow float16 times"):
        cb.sparsify_features(x, num_columns=16, rng=1)
    found = cb.sparsify_features(x.astype(np.float32), num_columns=16, rng=1)
    assert (np.abs(found.features) > np.finfo(np.float16).max).any()
    for narrow in (x, sparse.csr_array(3e33 * x.astype(np.float32))):
        with pytest.raises(ValueError, match=r"\[Sparsified.transform\] x_new .* overflow float"):
            found.transform(narrow)
