"""The oracle's recovery (Algorithms 2 and 3), attention through a basis, and the bounds."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convbasis import reference

SIZES = [1, 2, 3, 5, 7, 16, 17]
SEARCHES = ["scan", "bisect"]


def planted_basis(rng, n, num_bases, window, *, scale=1.0, first_start=None):
    """A basis whose strips all have at least `window` rows, and its true ``delta``."""
    candidates = n - window + 1
    starts = np.sort(rng.choice(candidates, size=num_bases, replace=False))
    if first_start is not None:
        starts[0] = first_start
    basis = reference.Basis(starts, scale * rng.normal(size=(num_bases, n)), n)
    return basis, reference.non_degeneracy(basis, window)


@st.composite
def noisy_logits(draw):
    """``H``, ``H + R`` and the options that Algorithm 3 is guaranteed for."""
    window = draw(st.integers(1, 6))
    n = draw(st.integers(window, 24))
    num_bases = draw(st.integers(1, min(5, n - window + 1)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    basis, delta = planted_basis(rng, n, num_bases, window)
    delta *= 1 - 1e-9  # room for rounding
    epsilon = draw(st.floats(0.0, 1.0)) * (delta / (5 * window))
    noise = np.tril(rng.choice([-1.0, 1.0], size=(n, n))) * epsilon  # the largest there is
    options = {"window": window, "delta": delta, "epsilon": epsilon}
    return basis, reference.basis_to_dense(basis) + noise, options


# --- recovery -----------------------------------------------------------------------------------


@pytest.mark.parametrize("search", SEARCHES)
def test_recovery_by_hand(search):
    # Kernel (1, 2, 3, 4, 5) from column 0 on, (1, 4, 9, ...) from column 2 on.
    dense = reference.conv([1.0, 2.0, 3.0, 4.0, 5.0])
    dense[2:, 2:] = reference.conv([1.0, 4.0, 9.0])
    basis, complete = reference.recover_logits(dense, window=2, search=search)
    assert basis.starts.tolist() == [0, 2]
    assert basis.kernels.tolist() == [[1, 2, 3, 4, 5], [1, 4, 9, 0, 0]]
    assert complete
    # One entry cannot tell the strips apart.
    basis, complete = reference.recover_logits(dense, window=1, search=search)
    assert basis.starts.tolist() == [0]
    assert complete


@pytest.mark.parametrize("search", SEARCHES)
def test_recovery_in_exact_rationals(search):
    kernels = np.empty((2, 5), dtype=object)
    kernels[0] = [Fraction(t + 1, 3) for t in range(5)]
    kernels[1] = [Fraction(2 * t + 1, 7) for t in range(5)]
    planted = reference.Basis([1, 3], kernels, 5)
    dense = reference.basis_to_dense(planted)
    basis, _ = reference.recover_logits(dense, window=2, delta=Fraction(1, 4), search=search)
    assert basis.starts.tolist() == [1, 3]
    assert np.all(basis.kernels == planted.kernels)


@settings(max_examples=150, deadline=None)
@given(noisy_logits(), st.sampled_from(SEARCHES))
def test_recovery_within_the_papers_limits_finds_the_true_starts(problem, search):
    planted, logits, options = problem
    for num_bases in (None, planted.num_bases):
        if num_bases == planted.num_rows - options["window"] + 1:
            continue  # every column is a strip of its own then
        basis, complete = reference.recover_logits(
            logits, num_bases=num_bases, search=search, **options
        )
        assert basis.starts.tolist() == planted.starts.tolist()
        assert complete
        for start, kernel in zip(basis.starts, basis.kernels, strict=True):
            np.testing.assert_allclose(
                kernel[: len(logits) - start], logits[start:, start], rtol=1e-12, atol=1e-13
            )
        deviation = reference.logit_deviation(logits, basis)
        assert deviation <= 2 * options["epsilon"] + 1e-13 * np.max(np.abs(logits))


@pytest.mark.parametrize("search", SEARCHES)
def test_the_threshold_is_delta_minus_two_t_epsilon_and_is_reached(search):
    # Head distance of column 2 from column 0 is exactly 1; T = 2.
    dense = reference.conv([1.0, 1.0, 1.0, 1.0])
    dense[2:, 2:] += reference.conv([1.0, 0.0])
    for delta, epsilon, found in [
        (1.0, 0.0, True),
        (1.0 + 2**-40, 0.0, False),
        (1.25, 0.0625, True),
        (1.25, 0.0625 - 2**-40, False),
    ]:
        basis, _ = reference.recover_logits(
            dense, window=2, delta=delta, epsilon=epsilon, search=search
        )
        assert basis.starts.tolist() == ([0, 2] if found else [0])


@pytest.mark.parametrize("search", SEARCHES)
def test_truncated_recovery_says_so(search):
    planted, delta = planted_basis(np.random.default_rng(5), 30, 4, 4, first_start=0)
    dense = reference.basis_to_dense(planted)
    for num_bases in (1, 2, 3, 4, 5):
        basis, complete = reference.recover_logits(
            dense, num_bases=num_bases, window=4, delta=delta, search=search
        )
        kept = min(num_bases, 4)
        assert basis.starts.tolist() == planted.starts[:kept].tolist()
        np.testing.assert_allclose(basis.kernels, planted.kernels[:kept], rtol=1e-12)
        assert complete == (num_bases >= 4)


def test_scan_sees_what_bisection_may_miss():
    # Strip 3 repeats strip 1: the basis is degenerate, and alpha is not monotone.
    kernel = np.ones(9)
    planted = reference.Basis([0, 3, 4], np.stack([kernel, 2 * kernel, kernel]), 9)
    dense = reference.basis_to_dense(planted)
    assert not reference.is_non_degenerate(planted, 2, 0.01)
    scan, _ = reference.recover_logits(dense, window=2, search="scan")
    bisect, _ = reference.recover_logits(dense, window=2, search="bisect")
    assert scan.starts.tolist() == [0, 3, 4]
    assert bisect.starts.tolist() == [0]


@pytest.mark.parametrize("search", SEARCHES)
def test_no_start_after_n_minus_window(search):
    dense = np.tril(np.random.default_rng(7).normal(size=(8, 8)))
    basis, complete = reference.recover_logits(dense, window=3, search=search)
    assert basis.starts.tolist() == [0, 1, 2, 3, 4, 5]
    assert not complete  # the last columns are not what their strip says
    # A window longer than the matrix counts as n: column 0 alone is searched.
    basis, complete = reference.recover_logits(dense, window=50, search=search)
    assert basis.starts.tolist() == [0]
    assert basis.kernels[0].tolist() == dense[:, 0].tolist()
    assert not complete
    # Columns that go on as the last strip does are told.
    _, complete = reference.recover_logits(reference.conv(dense[:, 0]), window=3, search=search)
    assert complete


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("search", SEARCHES)
def test_as_many_bases_as_columns_give_every_column(n, search):
    rng = np.random.default_rng(n)
    query, key = rng.normal(size=(n, 4)), rng.normal(size=(n, 4))
    basis, complete = reference.recover(query, key, num_bases=n, window=1, search=search)
    assert complete
    assert basis.num_bases == n
    logits = reference.attention_logits(query, key)
    assert np.any(logits)
    np.testing.assert_array_equal(reference.basis_to_dense(basis), np.tril(logits))
    # Even where columns are equal.
    basis, _ = reference.recover(np.ones((n, 1)), np.ones((n, 1)), num_bases=n, window=1)
    assert basis.num_bases == n
    # The number of columns searched counts, not n.
    basis, _ = reference.recover(query, key, num_bases=n, window=3, search=search)
    assert basis.num_bases == max(n - 3, 0) + 1


@pytest.mark.parametrize("search", SEARCHES)
def test_zero_logits_have_no_bases(search):
    for n in (0, 1, 5, 17):
        basis, complete = reference.recover_logits(np.zeros((n, n)), search=search)
        assert basis.num_bases == 0
        assert complete
        out, _ = reference.conv_attention(basis, np.arange(1.0, n + 1.0)[:, None])
        np.testing.assert_allclose(out[:, 0], [(i + 2) / 2 for i in range(n)], rtol=1e-14)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (0, 3), (3, 0)])
def test_lengths_that_differ(shape, search):
    n_q, n_kv = shape
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(n_q, 3)), rng.normal(size=(n_kv, 3))
    value = rng.normal(size=(n_kv, 2))
    basis, _ = reference.recover(query, key, window=1, delta=1e-9, search=search)
    assert (basis.num_rows, basis.num_columns) == shape
    assert basis.num_bases == min(shape)
    out, lse = reference.conv_attention(basis, value)
    expected, expected_lse = reference.attention(query, key, value, is_causal=True)
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_bases": 0}, "num_bases is too small"),
        ({"window": 0}, "window is too small"),
        ({"delta": -1.0}, "delta is negative"),
        ({"delta": float("nan")}, "delta is negative"),
        ({"epsilon": -1e-9}, "epsilon is out of range"),
        ({"delta": 1.0, "window": 4, "epsilon": 0.0501}, "epsilon is out of range"),
        ({"search": "guess"}, "search is unknown"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        reference.recover_logits(np.ones((4, 4)), **options)


# --- attention through a basis ------------------------------------------------------------------


@pytest.mark.parametrize("n", SIZES)
def test_attention_is_that_of_the_bases_logits(n):
    """Against the formula of the strips: numerators and row sums from ``exp(u_r)``."""
    rng = np.random.default_rng(n)
    for num_bases in {1, (n + 1) // 2, n}:
        basis, _ = planted_basis(rng, n, num_bases, 1)
        value = rng.normal(size=(n, 3))
        weights = reference.exp_basis(basis)
        sums = reference.row_sums(weights)
        expected = reference.basis_to_dense(weights) @ value / sums[:, None]
        out, lse = reference.conv_attention(basis, value)
        np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(lse, np.log(sums), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("n", SIZES)
def test_both_halves_give_attention_that_is_not_causal(n):
    rng = np.random.default_rng(n)
    query, key, value = (rng.normal(size=(n, 4)) for _ in range(3))
    options = {"num_bases": n, "window": 1}
    lower, _ = reference.recover(query, key, **options)
    upper, _ = reference.recover(query[::-1], key[::-1], **options)
    out, lse = reference.conv_attention(lower, value, upper=upper)
    expected, expected_lse = reference.attention(query, key, value)
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-12)
    # Numerators and row sums of both halves, added; lag 0 of the upper half is not used.
    kernels = upper.kernels.copy()
    kernels[:, 0] = 1e6
    changed = reference.Basis(upper.starts, kernels, n)
    np.testing.assert_array_equal(reference.conv_attention(lower, value, upper=changed)[0], out)
    below = reference.basis_to_dense(reference.exp_basis(lower))
    above = reference.basis_to_dense(reference.exp_basis(upper))[::-1, ::-1]
    weights = below + np.triu(above, 1)
    np.testing.assert_allclose(
        weights @ value / weights.sum(axis=1)[:, None], expected, rtol=1e-12, atol=1e-14
    )


def test_attention_by_hand():
    # Weights 2^t / 3^t in the strips (0, 1), (2,): rows 1 | 2 1 | 4 2 1.
    kernels = np.log([[1.0, 2.0, 4.0], [1.0, 3.0, 9.0]])
    basis = reference.Basis([0, 2], kernels, 3)
    out, lse = reference.conv_attention(basis, [[3.0], [6.0], [15.0]])
    np.testing.assert_allclose(out[:, 0], [3.0, 4.0, 39.0 / 7.0], rtol=1e-14)
    np.testing.assert_allclose(np.exp(lse), [1.0, 3.0, 7.0], rtol=1e-14)


def test_halves_that_do_not_belong_together():
    square = reference.Basis([0], np.ones((1, 3)), 3)
    wide = reference.Basis([0], np.ones((1, 3)), 4)
    with pytest.raises(ValueError, match="two square matrices"):
        reference.conv_attention(square, np.ones((3, 1)), upper=wide)
    with pytest.raises(ValueError, match="two square matrices"):
        reference.conv_attention(wide, np.ones((4, 1)), upper=wide)
    with pytest.raises(ValueError, match="value does not match"):
        reference.conv_attention(square, np.ones((4, 1)))


# --- bounds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("search", SEARCHES)
def test_theorem_bound_over_random_problems(search):
    """Error below the bound in every problem, and within a factor of it in the hardest."""
    rng = np.random.default_rng(11)
    largest_share = 0.0
    for _ in range(200):
        window = int(rng.integers(1, 9))
        n = int(rng.integers(max(window, 2), 40))
        num_bases = int(rng.integers(1, min(4, n - window + 1) + 1))
        basis, delta = planted_basis(rng, n, num_bases, window, scale=rng.uniform(0.1, 4.0))
        epsilon = rng.uniform(0.1, 1.0) * delta / (5 * window)
        logits = reference.basis_to_dense(basis) + rng.choice([-epsilon, epsilon], size=(n, n))
        value = rng.choice([-1.0, 1.0], size=(n, 3)) * rng.uniform(0.5, 2.0)
        found, complete = reference.recover_logits(
            logits,
            window=window,
            delta=delta * (1 - 1e-12),
            epsilon=epsilon * (1 - 1e-12),
            search=search,
        )
        assert complete
        assert found.starts.tolist() == basis.starts.tolist()
        weights, _ = reference.masked_softmax(logits, np.tri(n, dtype=bool))
        error = np.max(np.abs(weights @ value - reference.conv_attention(found, value)[0]))
        deviation = reference.logit_deviation(logits, found)
        posterior = reference.a_posteriori_bound(deviation, value)
        theorem = reference.theorem_bound(epsilon, value)
        assert error <= posterior * (1 + 1e-12)
        assert posterior <= theorem * (1 + 1e-9)
        largest_share = max(largest_share, error / theorem)
    assert 0.1 < largest_share < 1.0


def test_bounds_by_hand():
    value = [[1.0, -3.0], [2.0, 0.0]]
    assert reference.a_posteriori_bound(np.log(2.0), value) == pytest.approx(6.0, rel=1e-14)
    assert reference.theorem_bound(np.log(2.0), value) == pytest.approx(18.0, rel=1e-14)
    assert reference.a_posteriori_bound(1e-12, value) == pytest.approx(6e-12, rel=1e-9)
    assert reference.theorem_bound(1.0, np.empty((0, 2))) == 0.0


def test_logit_deviation_by_hand():
    basis = reference.Basis([1], [[5.0, 6.0, 0.0]], 3)
    logits = np.array([[0.5, 99.0, 99.0], [0.0, 5.0, 99.0], [0.0, 4.0, 5.0]])
    assert reference.logit_deviation(logits, basis) == 2.0
    logits[2, 0] = -3.0  # columns before the first start stand for 0
    assert reference.logit_deviation(logits, basis) == 3.0
    empty, _ = reference.recover_logits(np.empty((0, 0)))
    assert reference.logit_deviation(np.empty((0, 0)), empty) == 0.0


def test_non_degeneracy_by_hand():
    kernels = [[1.0, 1.0, 1.0, 1.0], [1.0, 3.0, 0.0, 0.0], [0.5, 1.5, 0.0, 0.0]]
    basis = reference.Basis([0, 1, 2], kernels, 4)
    # Heads (0,0), (1,1), (1,3), (.5,1.5): the nearest pair is 1 apart, (1,1) and (.5,1.5).
    assert reference.non_degeneracy(basis, 2) == 1.0
    assert reference.is_non_degenerate(basis, 2, 1.0)
    assert not reference.is_non_degenerate(basis, 2, 1.01)
    assert reference.non_degeneracy(basis, 1) == 0.0
    assert not reference.is_non_degenerate(basis, 3, 0.0)  # the last strip has 2 rows
    with pytest.raises(ValueError, match="window is longer than a strip"):
        reference.non_degeneracy(basis, 3)


def test_non_degeneracy_is_that_of_the_papers_sums():
    rng = np.random.default_rng(13)
    basis, delta = planted_basis(rng, 20, 5, 4)
    vectors = reference.differences(basis)[:, :4]
    sums = [np.abs(vectors[j : i + 1].sum(axis=0)).sum() for i in range(5) for j in range(i + 1)]
    assert min(sums) == pytest.approx(delta, rel=1e-12)
