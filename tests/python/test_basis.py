"""ConvBasis, decompose and the products, against the oracle and by their algebra."""

import copy
import os
import pickle
from fractions import Fraction

import numpy as np
import pytest

import convbasis as cb
from convbasis import reference

SIZES = [1, 2, 3, 5, 7, 15, 16, 17, 31, 33, 63, 65, 97, 127, 128, 130]


def lower_triangular(n, num_bases, rng, dtype=np.float64):
    """A dense matrix with exactly `num_bases` strips, whose entries are small integers."""
    starts = np.sort(rng.choice(n, num_bases, replace=False))
    dense = np.zeros((n, n), dtype)
    kernel = np.zeros(n)
    for r, start in enumerate(starts):
        step = rng.integers(-3, 4, size=n).astype(float)
        step[0] = rng.choice([-2.0, -1.0, 1.0, 2.0])  # differs even where one entry is left
        kernel = kernel + step
        for j in range(start, n if r + 1 == num_bases else starts[r + 1]):
            dense[j:, j] = kernel[: n - j]
    return dense, starts


def test_decompose_finds_the_planted_strips():
    rng = np.random.default_rng(0)
    for n in [1, 2, 3, 7, 16, 33, 64]:
        for num_bases in {1, min(2, n), min(5, n), n}:
            dense, starts = lower_triangular(n, num_bases, rng)
            basis = cb.decompose(dense)
            assert basis.num_bases == num_bases
            np.testing.assert_array_equal(basis.starts, starts)
            np.testing.assert_array_equal(basis.to_dense(), dense)


def test_decompose_of_random_dense_matrices_needs_every_column():
    dense = np.tril(np.random.default_rng(1).normal(size=(3, 40, 40)))
    basis = cb.decompose(dense)
    np.testing.assert_array_equal(basis.num_bases, 40)
    np.testing.assert_array_equal(basis.to_dense(), dense)


def test_decompose_agrees_with_exact_rationals():
    rng = np.random.default_rng(2)
    for n in range(1, 7):
        dense, _ = lower_triangular(n, rng.integers(1, n + 1), rng)
        exact = np.array([[Fraction(entry) for entry in row] for row in dense])
        want, basis = reference.decompose(exact), cb.decompose(dense)
        np.testing.assert_array_equal(basis.starts, want.starts)
        np.testing.assert_array_equal(basis.kernels, want.kernels.astype(float))
        np.testing.assert_array_equal(basis.differences, reference.differences(want).astype(float))


def test_decompose_with_atol_is_within_atol():
    rng = np.random.default_rng(3)
    dense, starts = lower_triangular(60, 4, rng)
    noisy = dense + np.tril(rng.uniform(-1e-3, 1e-3, size=dense.shape))
    basis = cb.decompose(noisy, atol=2e-3)
    np.testing.assert_array_equal(basis.starts, starts)
    assert 0 < np.abs(basis.to_dense() - noisy).max() <= 2e-3


def test_decompose_of_batches_zeros_and_nothing():
    rng = np.random.default_rng(4)
    stack = np.stack([lower_triangular(12, k, rng)[0] for k in (1, 5, 12, 3)]).reshape(2, 2, 12, 12)
    stack[0, 1] = 0.0
    basis = cb.decompose(stack)
    np.testing.assert_array_equal(basis.num_bases, [[1, 0], [12, 3]])
    np.testing.assert_array_equal(basis.to_dense(), stack)
    np.testing.assert_array_equal(basis.starts[0, 1], 12)
    assert cb.decompose(np.zeros((5, 5))).num_bases == 0
    assert cb.decompose(np.zeros((0, 0))).shape == (0, 0)
    assert cb.decompose(np.zeros((0, 4, 4))).to_dense().shape == (0, 4, 4)


def test_decompose_needs_a_lower_triangular_matrix():
    dense = np.tril(np.ones((4, 4)))
    dense[1, 3] = 1e-300
    with pytest.raises(
        ValueError,
        match=r"^\[decompose\] matrix has entries above the diagonal; "
        r"expected .*; got 1e-300 at \(1, 3\)$",
    ):
        cb.decompose(dense)


def test_the_sum_of_the_papers_basis_is_the_matrix(random_basis):
    basis = random_basis(33, 6)
    dense = sum(
        reference.conv(vector, size)
        for vector, size in zip(basis.differences, basis.sizes, strict=True)
    )
    np.testing.assert_allclose(dense, basis.to_dense(), rtol=0, atol=1e-13)
    np.testing.assert_array_equal(basis.sizes, 33 - basis.starts)


@pytest.mark.parametrize("first", [0, 3])
def test_exp_and_dense_agree_with_the_oracle(first, random_basis, oracle_basis):
    basis = random_basis(21, 5, lead=(2, 3), first=first)
    weights = basis.exp()
    for head in np.ndindex(2, 3):
        one = oracle_basis(basis, head)
        np.testing.assert_array_equal(basis.to_dense()[head], reference.basis_to_dense(one))
        np.testing.assert_allclose(
            weights.to_dense()[head], np.tril(np.exp(reference.basis_to_dense(one))), rtol=1e-15
        )
    np.testing.assert_array_equal(weights.num_bases, basis.num_bases + (first > 0))


def test_exp_of_a_batch_where_only_some_heads_start_late():
    starts, kernels = np.array([[0, 4], [2, 4], [4, 4]]), np.zeros((3, 2, 4))
    kernels[0, 0], kernels[1, 0, :2] = 1.0, 2.0
    basis = cb.ConvBasis(starts, [1, 1, 0], kernels)
    weights = basis.exp()
    np.testing.assert_array_equal(weights.num_bases, [1, 2, 1])
    np.testing.assert_array_equal(weights.starts, [[0, 4, 4], [0, 2, 4], [0, 4, 4]])
    np.testing.assert_allclose(weights.to_dense(), np.tril(np.exp(basis.to_dense())))


def test_exp_says_when_it_overflows():
    basis = cb.ConvBasis([0], 1, np.full((1, 3), 100.0, np.float32))
    with pytest.raises(ValueError, match=r"^\[ConvBasis.exp\] kernels .*; expected .*; got 100"):
        basis.exp()


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products_and_row_sums(n, dtype, random_basis, row_error):
    basis = random_basis(n, 4, lead=(2,), dtype=dtype, seed=n)
    dense = basis.to_dense().astype(np.float64)
    x = np.random.default_rng(n).normal(size=(2, n, 3)).astype(dtype)
    scale = np.abs(dense).max() * np.abs(x).max() * n
    limit = 20 * np.finfo(dtype).eps
    for transpose in (False, True):
        got = cb.conv_matmul(basis, x, transpose=transpose)
        want = (np.swapaxes(dense, 1, 2) if transpose else dense) @ x
        assert got.dtype == dtype
        assert np.any(got)
        assert np.abs(got - want).max() <= limit * scale
    np.testing.assert_allclose(
        basis.row_sums(), dense.sum(axis=-1), rtol=0, atol=limit * np.abs(dense).sum(axis=-1).max()
    )


@pytest.mark.parametrize("num_columns", [1, 9, 40])
def test_products_of_matrices_with_fewer_columns(num_columns, random_basis):
    basis = random_basis(40, 5, num_columns=num_columns)
    dense, rng = basis.to_dense(), np.random.default_rng(0)
    assert dense.shape == basis.shape == (40, num_columns)
    right, left = rng.normal(size=(num_columns, 2)), rng.normal(size=(40, 2))
    np.testing.assert_allclose(cb.conv_matmul(basis, right), dense @ right, atol=1e-12)
    np.testing.assert_allclose(
        cb.conv_matmul(basis, left, transpose=True), dense.T @ left, atol=1e-12
    )
    np.testing.assert_allclose(basis.row_sums(), dense.sum(axis=1), atol=1e-12)


def test_products_with_vectors_and_out(random_basis):
    basis = random_basis(50, 3, lead=(2,))
    x = np.random.default_rng(0).normal(size=(2, 50))
    want = np.einsum("hij,hj->hi", basis.to_dense(), x)
    np.testing.assert_allclose(cb.conv_matmul(basis, x), want, atol=1e-12)
    out = np.empty((2, 100))[:, ::2]
    assert cb.conv_matmul(basis, x, out=out) is out
    np.testing.assert_allclose(out, want, atol=1e-12)
    matrix_out = np.empty((2, 1, 50)).swapaxes(1, 2)
    assert cb.conv_matmul(basis, x[..., None], out=matrix_out) is matrix_out
    np.testing.assert_allclose(matrix_out[..., 0], want, atol=1e-12)


@pytest.mark.parametrize("lead", [(), (3,), (2, 2, 2)])
@pytest.mark.parametrize("transpose", [False, True])
def test_toeplitz_matmul(lead, transpose):
    rng = np.random.default_rng(5)
    column, x = rng.normal(size=(*lead, 70)), rng.normal(size=(*lead, 70, 4))
    dense = np.zeros((*lead, 70, 70))
    for head in np.ndindex(lead):
        dense[head] = reference.conv(column[head])
    want = (np.swapaxes(dense, -1, -2) if transpose else dense) @ x
    np.testing.assert_allclose(cb.toeplitz_matmul(column, x, transpose=transpose), want, atol=1e-12)
    np.testing.assert_allclose(
        cb.toeplitz_matmul(column, x[..., 0], transpose=transpose), want[..., 0], atol=1e-12
    )


def test_products_of_nothing():
    empty = cb.decompose(np.zeros((0, 0)))
    assert cb.conv_matmul(empty, np.zeros((0, 3))).shape == (0, 3)
    assert cb.toeplitz_matmul(np.zeros((2, 0)), np.zeros((2, 0, 3))).shape == (2, 0, 3)
    assert empty.row_sums().shape == (0,)
    zero = cb.decompose(np.zeros((6, 6)))
    np.testing.assert_array_equal(cb.conv_matmul(zero, np.ones((6, 2))), np.zeros((6, 2)))
    np.testing.assert_array_equal(zero.row_sums(), np.zeros(6))


def test_a_basis_cannot_be_changed(random_basis):
    source = np.ones((1, 3))
    basis = cb.ConvBasis([0], 1, source)
    source[:] = 5.0
    np.testing.assert_array_equal(basis.kernels, 1.0)
    for array in (basis.starts, basis.kernels, random_basis(9, 2, lead=(2,)).num_bases):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    with pytest.raises(AttributeError):
        basis.kernels = source
    with pytest.raises(AttributeError):
        basis.anything = 1
    recovered = cb.recover_basis(np.ones((20, 2)), np.ones((20, 2)))
    assert not recovered.kernels.flags.writeable


def test_properties_of_single_matrices_and_batches(random_basis):
    single, batch = random_basis(9, 2), random_basis(9, 2, lead=(2, 1))
    assert type(single.num_bases) is int
    assert single.complete is True
    assert single.shape == (9, 9)
    assert batch.num_bases.shape == batch.complete.shape == batch.lead == (2, 1)
    assert repr(single) == "ConvBasis(shape=(9, 9), num_bases=2, dtype=float64)"
    assert repr(batch).startswith("ConvBasis(shape=(2, 1, 9, 9), num_bases=")


def test_equality_copy_and_pickle(random_basis):
    basis = random_basis(9, 2, lead=(2,))
    for twin in (copy.copy(basis), copy.deepcopy(basis), pickle.loads(pickle.dumps(basis))):
        assert twin == basis
        assert not twin.kernels.flags.writeable
    assert basis != random_basis(9, 2, lead=(2,), seed=1)
    assert basis != random_basis(9, 2, lead=(2,), dtype=np.float32)
    assert basis != "basis"


def test_save_and_load(tmp_path, random_basis):
    path = tmp_path / "basis"
    for basis in (
        random_basis(30, 4, lead=(2, 3), num_columns=20, dtype=np.float32),
        random_basis(5, 2),
        cb.decompose(np.zeros((3, 3))),
    ):
        basis.save(path)
        assert os.listdir(tmp_path) == ["basis"]
        assert cb.ConvBasis.load(path) == basis
        assert cb.ConvBasis.load(str(path)).num_columns == basis.num_columns


def test_a_failed_save_leaves_the_old_file(tmp_path, random_basis, monkeypatch):
    path, basis = tmp_path / "basis.npz", random_basis(5, 2)
    basis.save(path)

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        random_basis(6, 2).save(path)
    assert os.listdir(tmp_path) == ["basis.npz"]
    assert cb.ConvBasis.load(path) == basis


def test_load_refuses_other_files(tmp_path, random_basis):
    path = tmp_path / "other.npz"
    message = r"^\[ConvBasis.load\] path .*; expected .*; got .*other\.npz"
    path.write_bytes(b"no zip file")
    with pytest.raises(ValueError, match=message):
        cb.ConvBasis.load(path)
    np.savez(path, a=np.ones(3))
    with pytest.raises(ValueError, match=message):
        cb.ConvBasis.load(path)
    with open(path, "wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(ValueError, match=message):
        cb.ConvBasis.load(path)
    with open(path, "wb") as file:
        pickle.dump({"starts": 1}, file)
    with pytest.raises(ValueError, match=message):
        cb.ConvBasis.load(path)
    random_basis(5, 2).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=message):
        cb.ConvBasis.load(path)
    with pytest.raises(FileNotFoundError):
        cb.ConvBasis.load(tmp_path / "missing")


def test_load_refuses_a_newer_format(tmp_path, random_basis):
    path, basis = tmp_path / "newer.npz", random_basis(5, 2)
    np.savez(
        path,
        format="convbasis.ConvBasis",
        version=2,
        starts=basis.starts,
        num_bases=basis.num_bases,
        kernels=basis.kernels,
        num_columns=5,
        complete=True,
    )
    with pytest.raises(ValueError, match=r"another format version; expected 1; got 2"):
        cb.ConvBasis.load(path)


GOOD = {"starts": [0, 2], "num_bases": 2, "kernels": np.array([[1.0, 2.0, 3.0], [9.0, 0.0, 0.0]])}


@pytest.mark.parametrize(
    ("change", "argument", "error"),
    [
        ({"kernels": [[1.0]]}, "kernels", TypeError),
        ({"kernels": np.ones((2, 3), int)}, "kernels", TypeError),
        ({"kernels": np.ones((2, 3), np.float16)}, "kernels", TypeError),
        ({"kernels": np.ones(3)}, "kernels", ValueError),
        ({"kernels": np.array([[1.0, np.nan, 3.0], [9.0, 0.0, 0.0]])}, "kernels", ValueError),
        ({"kernels": np.ones((2, 3))}, "kernels", ValueError),
        ({"starts": [0]}, "starts", ValueError),
        ({"starts": [0.0, 2.0]}, "starts", TypeError),
        ({"starts": [2, 0]}, "starts", ValueError),
        ({"starts": [0, 0]}, "starts", ValueError),
        ({"starts": [-1, 2]}, "starts", ValueError),
        ({"starts": [0, 3]}, "starts", ValueError),
        ({"num_bases": 1}, "starts", ValueError),
        ({"num_bases": 3}, "num_bases", ValueError),
        ({"num_bases": -1}, "num_bases", ValueError),
        ({"num_bases": [1, 1]}, "num_bases", ValueError),
        ({"num_bases": 1.0}, "num_bases", TypeError),
        ({"num_columns": 4}, "num_columns", ValueError),
        ({"num_columns": -1}, "num_columns", ValueError),
        ({"num_columns": 2}, "starts", ValueError),
        ({"num_columns": 3.0}, "num_columns", TypeError),
        ({"complete": 1}, "complete", TypeError),
        ({"complete": [True, False]}, "complete", ValueError),
    ],
)
def test_the_constructor_checks_its_arrays(change, argument, error):
    assert cb.ConvBasis(**GOOD).num_bases == 2
    with pytest.raises(error, match=rf"^\[ConvBasis\] {argument} .*; expected .*; got "):
        cb.ConvBasis(**{**GOOD, **change})


def test_residual_is_the_largest_deviation(qkv, oracle_basis):
    query, key, _ = qkv(45, lead=(2, 4), kv_heads=2)
    basis = cb.recover_basis(query, key, enable_gqa=True, options=cb.RecoverOptions(num_bases=3))
    got = basis.residual(query, key, enable_gqa=True)
    logits = reference.attention_logits(query, key, enable_gqa=True)
    want = [
        [reference.logit_deviation(logits[b, h], oracle_basis(basis, (b, h))) for h in range(4)]
        for b in range(2)
    ]
    np.testing.assert_allclose(got, want, rtol=1e-12)
    sampled = basis.residual(query, key, enable_gqa=True, samples=8)
    assert np.all(sampled <= got)
    assert np.all(sampled > 0)
    drawn = basis.residual(query, key, enable_gqa=True, samples=8, rng=np.random.default_rng(1))
    assert np.any(drawn != sampled)
    np.testing.assert_array_equal(basis.residual(query, key, enable_gqa=True, samples=45), got)


def test_residual_of_one_matrix_is_a_number(qkv):
    query, key, _ = qkv(30, lead=())
    basis = cb.recover_basis(query, key, scale=0.1)
    assert float(basis.residual(query, key, scale=0.1)) >= 0.0
    with pytest.raises(ValueError, match=r"^\[ConvBasis.residual\] query .*; expected .*; got "):
        basis.residual(query[:20], key[:20])
    with pytest.raises(TypeError, match=r"^\[ConvBasis.residual\] query .*; expected .*; got "):
        basis.residual(query.astype(np.float32), key.astype(np.float32))
    with pytest.raises(ValueError, match=r"^\[ConvBasis.residual\] samples .*; expected .*; got 0"):
        basis.residual(query, key, samples=0)


def test_exp_of_a_single_matrix_whose_columns_start_late():
    basis = cb.ConvBasis([1], 1, np.array([[2.0, 3.0, 0.0]]))
    weights = basis.exp()
    assert weights.num_bases == 2
    expected = np.tril(np.exp(basis.to_dense()))
    np.testing.assert_allclose(weights.to_dense(), expected, rtol=1e-15)
    np.testing.assert_allclose(weights.row_sums(), expected.sum(1), rtol=1e-15)
