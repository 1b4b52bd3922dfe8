"""Conv bases in the oracle: both forms, exp, row sums, decomposition."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convbasis import reference

SIZES = [1, 2, 3, 5, 7, 16, 17]


def fractions(*numbers):
    return np.array([Fraction(x) for x in numbers], dtype=object)


def random_basis(rng, n, num_bases, *, first_start=None, num_columns=None):
    """A basis with `num_bases` distinct strips and normal kernels."""
    num_columns = n if num_columns is None else num_columns
    starts = np.sort(rng.choice(min(n, num_columns), size=num_bases, replace=False))
    if first_start is not None:
        starts[0] = first_start
    return reference.Basis(starts, rng.normal(size=(num_bases, n)), num_columns)


@st.composite
def integer_bases(draw):
    """Small bases of nonzero integers, whose sums and differences are exact in float64."""
    n = draw(st.integers(1, 9))
    starts = sorted(draw(st.sets(st.integers(0, n - 1), min_size=1)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return reference.Basis(starts, rng.integers(1, 100, size=(len(starts), n)), n)


# --- conv and the two forms ---------------------------------------------------------------------


def test_conv_by_hand():
    assert reference.conv([1.0, 2.0, 3.0]).tolist() == [[1, 0, 0], [2, 1, 0], [3, 2, 1]]
    assert reference.conv([1.0, 2.0, 3.0], 1).tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert reference.conv([]).shape == (0, 0)


@pytest.mark.parametrize("n", SIZES)
def test_conv_is_the_causal_convolution(n):
    rng = np.random.default_rng(n)
    kernel, x = rng.normal(size=n), rng.normal(size=n)
    np.testing.assert_allclose(
        reference.conv(kernel) @ x, np.convolve(kernel, x)[:n], rtol=1e-12, atol=1e-13
    )
    for size in {1, (n + 1) // 2, n}:
        shifted = np.append(np.zeros(n - size), np.convolve(kernel, x[n - size :])[:size])
        np.testing.assert_allclose(
            reference.conv(kernel, size) @ x, shifted, rtol=1e-12, atol=1e-13
        )


def test_the_two_forms_by_hand():
    # conv((1,2,3), 3) + conv((10,20), 2): columns 1 and 2 have kernel (11, 22).
    expected = [[1, 0, 0], [2, 11, 0], [3, 22, 11]]
    basis = reference.Basis([0, 1], [[1.0, 2.0, 3.0], [11.0, 22.0, 77.0]], 3)
    assert basis.kernels[1].tolist() == [11, 22, 0]  # lag 2 falls past the last row
    assert basis.sizes.tolist() == [3, 2]
    assert basis.stops.tolist() == [1, 3]
    assert reference.differences(basis).tolist() == [[1, 2, 3], [10, 20, 0]]
    assert reference.basis_to_dense(basis).tolist() == expected
    vectors = [[1.0, 2.0, 3.0], [10.0, 20.0, 99.0]]
    assert reference.differences_to_dense(vectors, [3, 2]).tolist() == expected


@pytest.mark.parametrize("n", range(1, 7))
def test_the_two_forms_agree_in_exact_rationals(n):
    rng = np.random.default_rng(n)
    for num_bases in range(1, n + 1):
        starts = np.sort(rng.choice(n, size=num_bases, replace=False))
        kernels = np.empty((num_bases, n), dtype=object)
        for r in range(num_bases):
            kernels[r] = fractions(*(f"{a}/{b}" for a, b in rng.integers(1, 30, size=(n, 2))))
        basis = reference.Basis(starts, kernels, n)
        dense = reference.basis_to_dense(basis)
        assert isinstance(dense[-1, -1], Fraction)
        assert dense[n - 1, starts[-1]] == kernels[-1, n - 1 - starts[-1]]
        paper = reference.differences_to_dense(reference.differences(basis), basis.sizes)
        assert np.all(paper == dense)
        assert np.all(reference.row_sums(basis) == dense.sum(axis=1))


@settings(max_examples=60, deadline=None)
@given(integer_bases())
def test_strip_form_and_difference_form_agree(basis):
    dense = reference.basis_to_dense(basis)
    paper = reference.differences_to_dense(reference.differences(basis), basis.sizes)
    np.testing.assert_array_equal(paper, dense)
    for j in range(basis.num_rows):
        r = np.searchsorted(basis.starts, j, side="right") - 1
        for i in range(basis.num_rows):
            inside = i >= j >= basis.starts[0]
            assert dense[i, j] == (basis.kernels[r, i - j] if inside else 0)


# --- exp ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("late", [False, True])
def test_exp_acts_on_each_kernel(n, late):
    rng = np.random.default_rng(n)
    for num_bases in {1, (n + 1) // 2}:
        basis = random_basis(rng, n, num_bases, first_start=None if late else 0)
        lower = np.tri(n)
        expected = lower * np.exp(reference.basis_to_dense(basis))
        weights = reference.exp_basis(basis)
        assert weights.starts[0] == 0
        np.testing.assert_array_equal(reference.basis_to_dense(weights), expected)
        vectors, sizes = reference.exp_differences(basis)
        np.testing.assert_allclose(
            reference.differences_to_dense(vectors, sizes), expected, rtol=1e-12, atol=1e-13
        )


def test_exp_gives_columns_before_the_first_start_weight_one():
    basis = reference.Basis([1], [[np.log(2.0), np.log(3.0), 0.0]], 3)
    weights = reference.exp_basis(basis)
    np.testing.assert_allclose(
        reference.basis_to_dense(weights), [[1, 0, 0], [1, 2, 0], [1, 3, 2]], rtol=1e-15
    )
    vectors, sizes = reference.exp_differences(basis)
    assert sizes.tolist() == [3, 2]
    np.testing.assert_allclose(vectors, [[1, 1, 1], [1, 2, 0]], rtol=1e-15)


def test_exp_of_the_zero_matrix_is_the_mask():
    zero = reference.Basis(np.empty(0, dtype=int), np.empty((0, 4)), 4)
    assert np.array_equal(reference.basis_to_dense(reference.exp_basis(zero)), np.tri(4))
    empty = reference.exp_basis(reference.Basis([], np.empty((0, 0)), 0))
    assert reference.basis_to_dense(empty).shape == (0, 0)


# --- row sums -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("extra", [-1, 0, 3])
def test_row_sums_are_those_of_the_matrix(n, extra):
    num_columns = max(1, n + extra)
    rng = np.random.default_rng(n)
    for num_bases in range(1, min(n, num_columns) + 1):
        basis = random_basis(rng, n, num_bases, num_columns=num_columns)
        dense = reference.basis_to_dense(basis)
        assert dense.shape == (n, num_columns)
        assert dense.any()
        np.testing.assert_allclose(
            reference.row_sums(basis), dense.sum(axis=1), rtol=1e-12, atol=1e-13
        )


def test_row_sums_do_not_cancel():
    # A prefix sum over the first strip holds 1e16, beside which a lag of weight 1 disappears.
    kernel = np.array([1e16, 1.0, 1.0, 1.0])
    basis = reference.Basis([0, 1], np.stack([kernel, np.ones(4)]), 4)
    assert reference.row_sums(basis).tolist() == [1e16, 2.0, 3.0, 4.0]


# --- decompose ----------------------------------------------------------------------------------


def test_decompose_by_hand():
    matrix = [[1, 0, 0, 0], [2, 1, 0, 0], [3, 2, 7, 0], [4, 3, 2, 7]]
    basis = reference.decompose(matrix)
    assert basis.starts.tolist() == [0, 2]
    assert basis.kernels.tolist() == [[1, 2, 3, 4], [7, 2, 0, 0]]


@settings(max_examples=60, deadline=None)
@given(integer_bases())
def test_decompose_returns_the_planted_basis(planted):
    n, kernels = planted.num_rows, planted.kernels.copy()
    for r in range(1, planted.num_bases):  # no two neighbours alike, at lag 0
        kernels[r, 0] = kernels[r - 1, 0] + 1
    planted = reference.Basis(planted.starts, kernels, n)
    dense = reference.basis_to_dense(planted)
    found = reference.decompose(dense)
    assert found.starts.tolist() == planted.starts.tolist()
    np.testing.assert_array_equal(found.kernels, planted.kernels)
    np.testing.assert_array_equal(reference.basis_to_dense(found), dense)


def smallest_k(matrix):
    """Least number of strips by trying all sets of starts: a brute-force definition of k."""
    n = len(matrix)
    best = n
    for bits in range(2**n):
        starts = [j for j in range(n) if bits >> j & 1]
        kernels = np.array([np.append(matrix[s:, s], np.zeros(s)) for s in starts])
        basis = reference.Basis(starts, kernels.reshape(len(starts), n), n)
        if np.array_equal(reference.basis_to_dense(basis), matrix):
            best = min(best, len(starts))
    return best


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_decompose_is_minimal(n):
    rng = np.random.default_rng(n)
    seen = set()
    for _ in range(15):
        matrix = np.tril(rng.integers(0, 2, size=(n, n))).astype(float)
        if rng.integers(2):  # make it more conv-like
            matrix = reference.conv(matrix[:, 0]) + reference.conv(matrix[-1], n // 2)
        basis = reference.decompose(matrix)
        assert basis.num_bases == smallest_k(matrix)
        np.testing.assert_array_equal(reference.basis_to_dense(basis), matrix)
        seen.add(basis.num_bases)
    assert len(seen) > 1


@pytest.mark.parametrize("n", SIZES)
def test_decompose_of_a_random_matrix_needs_every_column(n):
    matrix = np.tril(np.random.default_rng(n).normal(size=(n, n)))
    basis = reference.decompose(matrix)
    assert basis.num_bases == n
    np.testing.assert_array_equal(reference.basis_to_dense(basis), matrix)


def test_decompose_of_nothing():
    assert reference.decompose(np.zeros((4, 4))).num_bases == 0
    assert reference.decompose(np.zeros((0, 0))).num_rows == 0


@pytest.mark.parametrize("shape", [(5, 3), (3, 5)])
def test_decompose_of_matrices_that_are_not_square(shape):
    matrix = np.tril(np.arange(1.0, 16.0).reshape(shape))
    basis = reference.decompose(matrix)
    assert basis.num_bases == 3
    np.testing.assert_array_equal(reference.basis_to_dense(basis), matrix)


def test_decompose_within_a_tolerance():
    rng = np.random.default_rng(3)
    planted = reference.Basis([0, 4], [np.full(9, 1.0), np.full(9, 2.0)], 9)
    noisy = reference.basis_to_dense(planted) + np.tril(rng.uniform(-0.01, 0.01, size=(9, 9)))
    assert reference.decompose(noisy).num_bases == 9
    basis = reference.decompose(noisy, atol=0.02)
    assert basis.starts.tolist() == [0, 4]
    assert np.max(np.abs(reference.basis_to_dense(basis) - noisy)) <= 0.02


def test_decompose_refuses_what_is_not_lower_triangular():
    with pytest.raises(ValueError, match="above the diagonal; expected 0 there; got 1"):
        reference.decompose([[1.0, 2.0], [0.0, 1.0]])
    with pytest.raises(ValueError, match="expected 2 dimensions"):
        reference.decompose([1.0, 2.0])


@pytest.mark.parametrize(
    ("starts", "kernels", "num_columns"),
    [
        ([0, 0], np.ones((2, 3)), 3),
        ([1, 0], np.ones((2, 3)), 3),
        ([-1], np.ones((1, 3)), 3),
        ([3], np.ones((1, 3)), 3),
        ([2], np.ones((1, 3)), 2),
        ([0], np.ones((2, 3)), 3),
    ],
)
def test_a_basis_checks_itself(starts, kernels, num_columns):
    with pytest.raises(ValueError, match=r"\[Basis\]"):
        reference.Basis(starts, kernels, num_columns)
