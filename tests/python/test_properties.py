"""Mathematics as tests: what must hold whatever the numbers are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import convbasis as cb
from convbasis import problems

SIZES = [1, 2, 3, 5, 7, 15, 16, 17, 31, 33, 63, 65, 97, 127, 128, 130]
OPTIONS = cb.RecoverOptions(num_bases=4, window=4)
DTYPES = [np.float32, np.float64]


def conv(query, key, value, **call):
    return cb.conv_attention(query, key, value, **{"options": OPTIONS, **call})


FUNCTIONS = [conv, cb.exact_attention]


@pytest.mark.parametrize("dtype", [*DTYPES, np.float16])
@pytest.mark.parametrize("n", [33, 130, 600])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_the_future_leaves_the_past_alone(dtype, n, num_threads, qkv):
    """With a given basis, later value rows change no bit of earlier output rows."""
    query, key, value = qkv(n, dtype=dtype, lead=(2,))
    basis = cb.recover_basis(query, key, options=OPTIONS)
    call = {"is_causal": True, "basis": basis, "return_lse": True, "num_threads": num_threads}
    out, lse = cb.conv_attention(query, key, value, **call)
    rng = np.random.default_rng(1)
    assert np.any(out)
    for first in sorted({1, n // 3, n // 2, n - 1}):
        changed = value.copy()
        changed[:, first:] = (rng.normal(size=changed[:, first:].shape) * 100).astype(dtype)
        other, other_lse = cb.conv_attention(query, key, changed, **call)
        np.testing.assert_array_equal(other[:, :first], out[:, :first])
        np.testing.assert_array_equal(other_lse, lse)
        assert np.any(other[:, first:] != out[:, first:])


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_future_of_exact_attention(function, qkv):
    query, key, value = qkv(100)
    out = cb.exact_attention(query, key, value, is_causal=True)
    for array in (key, value):
        array[:, :, 60:] = 5.0
    other = cb.exact_attention(query, key, value, is_causal=True)
    assert np.any(out)
    np.testing.assert_array_equal(other[:, :, :60], out[:, :, :60])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("n", [31, 300, 1030])
def test_the_number_of_threads_changes_no_bit(dtype, is_causal, n, qkv):
    query, key, value = qkv(n, lead=(3,), dtype=dtype)
    for function in FUNCTIONS:
        results = [
            function(query, key, value, is_causal=is_causal, return_lse=True, num_threads=t)
            for t in (1, 2, 3, 7, None)
        ]
        assert np.any(results[0][0])
        for out, lse in results[1:]:
            np.testing.assert_array_equal(out, results[0][0])
            np.testing.assert_array_equal(lse, results[0][1])
    basis = cb.recover_basis(query, key, options=OPTIONS)
    assert basis == cb.recover_basis(query, key, options=OPTIONS, num_threads=1)
    for transpose in (False, True):
        product = cb.conv_matmul(basis, value, transpose=transpose, num_threads=1)
        assert np.any(product)
        np.testing.assert_array_equal(
            cb.conv_matmul(basis, value, transpose=transpose, num_threads=3), product
        )
    np.testing.assert_array_equal(basis.row_sums(num_threads=1), basis.row_sums(num_threads=3))
    np.testing.assert_array_equal(
        basis.residual(query, key, num_threads=1), basis.residual(query, key, num_threads=3)
    )


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("is_causal", [True, False])
def test_permuted_heads_give_permuted_results(function, is_causal, qkv):
    arrays = qkv(90, lead=(5,))
    order = np.array([3, 0, 4, 1, 2])
    out = function(*arrays, is_causal=is_causal)
    assert np.any(out)
    np.testing.assert_array_equal(
        function(*(a[order] for a in arrays), is_causal=is_causal), out[order]
    )


def test_permuted_heads_give_permuted_reports():
    """Up to the rows that are sampled, which depend on the place of a head."""
    problem = problems.conv_problem(300, 8, 3, batch=(6,), epsilon=1e-2, seed=1)
    order = np.array([3, 0, 5, 4, 1, 2])
    call = {
        "is_causal": True,
        "options": cb.RecoverOptions(num_bases=3, delta=0.5),
        "return_report": True,
        "scale": problem.scale,
    }
    arrays = problem.query, problem.key, problem.value
    _, report = cb.conv_attention(*arrays, **call)
    ends = np.sort(report.error_interval[:, 1])
    gap = np.argmax(ends[1:] / ends[:-1])
    call["tol"] = float(np.sqrt(ends[gap] * ends[gap + 1]))
    out, report = cb.conv_attention(*arrays, **call)
    permuted, other = cb.conv_attention(*(a[order] for a in arrays), **call)
    assert 0 < report.heads_exact < 6
    np.testing.assert_array_equal(permuted, out[order])
    for name in ("num_bases", "exact_mask"):
        np.testing.assert_array_equal(getattr(other, name), getattr(report, name)[order])
    for name in ("error_estimate", "error_interval", "unseen_share", "logit_deviation"):
        np.testing.assert_allclose(getattr(other, name), getattr(report, name)[order], rtol=0.25)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_ones_give_ones(function, is_causal, n, dtype, qkv):
    query, key, value = qkv(n, lead=(2,), dtype=dtype)
    out = function(query, key, np.ones_like(value), is_causal=is_causal)
    np.testing.assert_allclose(out, 1.0, rtol=0, atol=100 * np.finfo(dtype).eps)


@pytest.mark.parametrize("is_causal", [True, False])
def test_a_constant_added_to_all_logits_changes_nothing(is_causal, qkv, row_error):
    """An extra dimension of ones in the query and of a constant in the key adds that constant."""
    query, key, value = qkv(120, lead=(2,))
    scale, constant = 0.3, 40.0
    longer_query = np.concatenate([query, np.ones((2, 120, 1))], axis=-1)
    longer_key = np.concatenate([key, np.full((2, 120, 1), constant / scale)], axis=-1)
    call = {"is_causal": is_causal, "scale": scale, "return_lse": True}
    for function, options in [
        (cb.exact_attention, {}),
        (cb.conv_attention, {"options": cb.RecoverOptions(num_bases=120, window=1)}),
    ]:
        out, lse = function(query, key, value, **call, **options)
        shifted, shifted_lse = function(longer_query, longer_key, value, **call, **options)
        assert np.any(out)
        assert row_error(shifted, out) <= 1e-12
        np.testing.assert_allclose(shifted_lse, lse + constant, rtol=1e-13)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("n", [5, 97, 256])
def test_attention_is_linear_in_the_value(is_causal, n, qkv, row_error):
    query, key, value = qkv(n)
    other = qkv(n, seed=1)[2]
    for function in FUNCTIONS:

        def attend(v, function=function):
            return function(query, key, v, is_causal=is_causal)

        want = 2.0 * attend(value) - 3.0 * attend(other)
        assert row_error(attend(2.0 * value - 3.0 * other), want) <= 1e-10


@pytest.mark.parametrize("is_causal", [True, False])
def test_outputs_stay_within_the_values(is_causal, qkv):
    query, key, value = qkv(200, spread=4.0)
    for function in FUNCTIONS:
        out = function(query, key, value, is_causal=is_causal)
        assert np.all(out <= value.max(axis=2, keepdims=True) + 1e-9)
        assert np.all(out >= value.min(axis=2, keepdims=True) - 1e-9)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_transposed_product_is_the_adjoint(n, dtype, random_basis):
    basis = random_basis(n, 4, lead=(2,), dtype=dtype, num_columns=max(1, n - 2), seed=n)
    rng = np.random.default_rng(n)
    x = rng.normal(size=(2, basis.num_columns, 3)).astype(dtype)
    y = rng.normal(size=(2, n, 3)).astype(dtype)
    forward = np.vdot(cb.conv_matmul(basis, x).astype(np.float64), y)
    backward = np.vdot(x.astype(np.float64), cb.conv_matmul(basis, y, transpose=True))
    size = np.linalg.norm(basis.kernels) * np.linalg.norm(x) * np.linalg.norm(y)
    assert abs(forward) > 1e-6 * size
    assert abs(forward - backward) <= 20 * np.finfo(dtype).eps * size


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 200),
    num_bases=st.integers(1, 6),
    channels=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
)
def test_products_are_linear_and_agree_with_the_matrix(n, num_bases, channels, seed):
    rng = np.random.default_rng(seed)
    dense = np.zeros((n, n))
    kernel = np.zeros(n)
    starts = np.sort(rng.choice(n, min(num_bases, n), replace=False))
    for start in starts:
        kernel = kernel + rng.normal(size=n)
        for j in range(start, n):
            dense[j:, j] = kernel[: n - j]
    basis = cb.decompose(dense)
    assert basis.num_bases == len(starts)
    x, y = rng.normal(size=(2, n, channels))
    size = np.abs(dense).sum(axis=1).max() * max(np.abs(x).max(), np.abs(y).max())
    product = cb.conv_matmul(basis, x)
    np.testing.assert_allclose(product, dense @ x, atol=1e-13 * size)
    np.testing.assert_allclose(
        cb.conv_matmul(basis, x - 2 * y), product - 2 * cb.conv_matmul(basis, y), atol=1e-12 * size
    )


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 80),
    d=st.integers(1, 12),
    value_dim=st.integers(1, 12),
    is_causal=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_all_columns_as_strips_are_exact_attention(n, d, value_dim, is_causal, seed):
    rng = np.random.default_rng(seed)
    query, key = rng.normal(size=(2, n, d))
    value = rng.normal(size=(n, value_dim))
    out, lse = cb.conv_attention(
        query,
        key,
        value,
        is_causal=is_causal,
        return_lse=True,
        options=cb.RecoverOptions(num_bases=n, window=1),
    )
    want, want_lse = cb.exact_attention(query, key, value, is_causal=is_causal, return_lse=True)
    np.testing.assert_allclose(out, want, atol=1e-12)
    np.testing.assert_allclose(lse, want_lse, atol=1e-12)
