"""conv_attention against the oracle: recovery, both triangles, fallback, tolerance."""

import dataclasses

import numpy as np
import pytest

import convbasis as cb
from convbasis import problems, reference
from convbasis.recover import find_starts


def relative(got, want):
    return np.linalg.norm(got - want) / np.linalg.norm(want)


@pytest.mark.parametrize("num_bases", [1, 3, 16])
@pytest.mark.parametrize("search", ["scan", "bisect"])
def test_exact_conv_input_float64(num_bases, search):
    problem = problems.conv_problem(500, 16, num_bases, batch=(2,), seed=num_bases)
    options = cb.RecoverOptions(num_bases=num_bases, window=16, search=search)
    out, report = cb.conv_attention(
        problem.query,
        problem.key,
        problem.value,
        is_causal=True,
        scale=problem.scale,
        options=options,
        return_report=True,
    )
    want, _ = reference.attention(
        problem.query, problem.key, problem.value, is_causal=True, scale=problem.scale
    )
    np.testing.assert_array_equal(report.num_bases, num_bases)
    assert report.heads_exact == 0
    assert relative(out, want) <= 1e-11


@pytest.mark.parametrize("num_bases", [1, 3, 16])
def test_float32_is_as_good_as_plain_float32(num_bases, naive):
    problem = problems.dyadic_conv_problem(500, 18, num_bases, seed=num_bases, dtype=np.float32)
    arrays = problem.query, problem.key, problem.value
    out = cb.conv_attention(
        *arrays, is_causal=True, scale=problem.scale, options=cb.RecoverOptions(num_bases=num_bases)
    )
    want, _ = reference.attention(*arrays, is_causal=True, scale=problem.scale)
    plain = naive(*arrays, is_causal=True, scale=problem.scale)
    assert out.dtype == np.float32
    assert relative(out, want) <= 2 * relative(plain, want)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_both_triangles(dtype, row_error):
    problem = problems.dyadic_conv_problem(200, 10, 3, batch=(2, 2), dtype=dtype, seed=3)
    out, lse, report = cb.conv_attention(
        problem.query,
        problem.key,
        problem.value,
        scale=problem.scale,
        return_lse=True,
        options=cb.RecoverOptions(num_bases=3),
        return_report=True,
    )
    want, want_lse = reference.attention(
        problem.query, problem.key, problem.value, scale=problem.scale
    )
    np.testing.assert_array_equal(report.num_bases, 6)
    assert row_error(out, want) <= 1e3 * np.finfo(dtype).eps
    np.testing.assert_allclose(lse, want_lse, rtol=50 * np.finfo(dtype).eps, atol=0)


def test_a_given_basis_gives_the_same_bits():
    problem = problems.conv_problem(130, 8, 4, batch=(3,), seed=1)
    query, key = problem.query, problem.key
    options = cb.RecoverOptions(num_bases=6)
    common = {"scale": problem.scale, "options": options}
    lower = cb.recover_basis(query, key, **common)
    upper = cb.recover_basis(query[..., ::-1, :], key[..., ::-1, :], **common)
    for is_causal, basis in [(True, lower), (False, (lower, upper))]:
        recovered = cb.conv_attention(query, key, problem.value, is_causal=is_causal, **common)
        given = cb.conv_attention(query, key, problem.value, is_causal=is_causal, basis=basis)
        assert np.any(given)
        np.testing.assert_array_equal(given, recovered)


@pytest.mark.parametrize("n", [1, 2, 7, 33, 130])
@pytest.mark.parametrize("is_causal", [True, False])
def test_every_column_its_own_strip_is_exact_attention(n, is_causal, qkv, row_error):
    query, key, value = qkv(n, seed=n)
    out, lse = cb.conv_attention(
        query,
        key,
        value,
        is_causal=is_causal,
        return_lse=True,
        options=cb.RecoverOptions(num_bases=n, window=1),
    )
    want, want_lse = reference.attention(query, key, value, is_causal=is_causal)
    assert row_error(out, want) <= 1e-12
    np.testing.assert_allclose(lse, want_lse, rtol=1e-12, atol=1e-12)


def test_noise_stays_below_the_bound_of_the_theorem():
    window, delta = 16, 1e-2
    epsilon = delta / (5 * window)
    options = cb.RecoverOptions(window=window, delta=delta, epsilon=epsilon, num_bases=4)
    for seed in range(20):
        problem = problems.conv_problem(120, 8, 3, seed=seed, epsilon=epsilon)
        out = cb.conv_attention(
            problem.query,
            problem.key,
            problem.value,
            is_causal=True,
            scale=problem.scale,
            options=options,
        )
        basis = cb.recover_basis(problem.query, problem.key, scale=problem.scale, options=options)
        want, _ = reference.attention(
            problem.query, problem.key, problem.value, is_causal=True, scale=problem.scale
        )
        np.testing.assert_array_equal(basis.starts[: basis.num_bases], problem.starts)
        assert np.abs(out - want).max() <= reference.theorem_bound(epsilon, problem.value)


def test_heavy_logits_keep_every_row(row_error):
    problem = problems.dyadic_conv_problem(1024, 34, 3, spread=8.0, dtype=np.float32, seed=5)
    arrays = problem.query, problem.key, problem.value
    out, report = cb.conv_attention(
        *arrays,
        is_causal=True,
        scale=problem.scale,
        options=cb.RecoverOptions(num_bases=3),
        return_report=True,
    )
    want, _ = reference.attention(*arrays, is_causal=True, scale=problem.scale)
    assert row_error(out, want) <= 1e-4
    assert report.rounding_bound <= 1e-4


@pytest.mark.parametrize("factor", [1e-25, 1.0, 1e25])
def test_rows_that_transforms_would_spoil_are_summed_directly(factor, row_error):
    """Logits of standard deviation 8 reach over weights of more than e^50; so does the rounding."""
    n, k, rng = 1024, 4, np.random.default_rng(0)
    starts = np.arange(k) * n // k
    kernels = (8.0 * rng.normal(size=(k, n))).astype(np.float32)
    kernels[np.arange(n) >= (n - starts)[:, None]] = 0.0
    basis = cb.ConvBasis(starts, k, kernels)
    value = (factor * rng.normal(size=(n, 16))).astype(np.float32)
    unused = np.zeros((n, 4), np.float32)
    out, report = cb.conv_attention(
        unused, unused, value, is_causal=True, basis=basis, return_report=True
    )
    logits = np.where(np.tri(n, dtype=bool), basis.to_dense().astype(np.float64), -np.inf)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    want = (weights @ value.astype(np.float64)) / weights.sum(axis=1, keepdims=True)
    assert 0 < report.rows_exact < n // 2
    assert 0 < report.rounding_bound <= 1e-4
    # The bound is of the transforms alone; exponentials and sums add some eps of their own.
    assert row_error(out, want) <= 4 * report.rounding_bound + 50 * np.finfo(np.float32).eps


def test_columns_without_logits_weigh_one(row_error):
    problem = problems.conv_problem(140, 8, 2, first_start=20, seed=2)
    arrays = problem.query, problem.key, problem.value
    out, report = cb.conv_attention(
        *arrays,
        is_causal=True,
        scale=problem.scale,
        options=cb.RecoverOptions(num_bases=4),
        return_report=True,
    )
    want, _ = reference.attention(*arrays, is_causal=True, scale=problem.scale)
    assert report.num_bases == 2
    assert row_error(out, want) <= 1e-11


def test_no_logits_at_all_give_the_running_mean(row_error):
    zeros, value = np.zeros((100, 4)), np.random.default_rng(0).normal(size=(100, 3))
    out = cb.conv_attention(
        zeros, zeros, value, is_causal=True, options=cb.RecoverOptions(num_bases=5)
    )
    want = np.cumsum(value, axis=0) / np.arange(1, 101)[:, None]
    assert row_error(out, want) <= 1e-11


@pytest.mark.parametrize("n_kv", [40, 100, 160])
def test_causal_lengths_may_differ(n_kv, row_error):
    problem = problems.conv_problem(160, 8, 2, seed=4)
    query = problem.query[:100]
    key, value = problem.key[:n_kv], problem.value[:n_kv]
    out, lse, report = cb.conv_attention(
        query,
        key,
        value,
        is_causal=True,
        scale=problem.scale,
        return_lse=True,
        options=cb.RecoverOptions(num_bases=6, window=4),
        return_report=True,
        tol=1e-6,
    )
    want, want_lse = reference.attention(query, key, value, is_causal=True, scale=problem.scale)
    assert report.heads_exact == 0
    assert row_error(out, want) <= 1e-11
    np.testing.assert_allclose(lse, want_lse, rtol=1e-11)


@pytest.mark.parametrize("n_kv", [3, 9])
def test_lengths_that_differ_need_a_causal_call(n_kv, qkv):
    query, key, value = qkv(5, n_kv=n_kv)
    with pytest.raises(NotImplementedError, match=r"^\[conv_attention\] key .*exact_attention"):
        cb.conv_attention(query, key, value)


def test_no_keys_at_all(qkv):
    query, key, value = qkv(5, n_kv=0)
    out, lse = cb.conv_attention(query, key, value, is_causal=True, return_lse=True)
    np.testing.assert_array_equal(out, np.zeros((2, 3, 5, 8)))
    np.testing.assert_array_equal(lse, np.full((2, 3, 5), -np.inf))


def mixed_heads(n=256, d=8, seed=7):
    """Heads 0 and 2 have two strips, heads 1 and 3 have random logits."""
    problem = problems.conv_problem(n, d, 2, batch=(4,), seed=seed)
    query, key = problem.query.copy(), problem.key.copy()
    rng = np.random.default_rng(seed)
    query[1::2], key[1::2] = rng.normal(size=(2, 2, n, d)) * 1.5
    return query, key, problem.value


@pytest.mark.parametrize("n", [1, 2, 8, 16, 24, 64, 200])
@pytest.mark.parametrize("is_causal", [True, False])
def test_with_free_k_any_input_is_right(n, is_causal, qkv, row_error):
    query, key, value = qkv(n, seed=n)
    options = cb.RecoverOptions(delta=1e-12)
    out, report = cb.conv_attention(
        query, key, value, is_causal=is_causal, options=options, return_report=True
    )
    want, _ = reference.attention(query, key, value, is_causal=is_causal)
    assert row_error(out, want) <= 1e-10
    assert report.heads_exact == np.sum(report.exact_mask)


def test_heads_that_show_more_than_pays_are_computed_exactly(row_error, monkeypatch):
    query, key, value = mixed_heads()

    def at_most_four(query, key, value_dim, scale, options, threads):
        capped = dataclasses.replace(options, num_bases=4)
        return find_starts(query, key, value_dim, scale, capped, threads)

    monkeypatch.setattr(cb._plan, "find_starts", at_most_four)
    out, report = cb.conv_attention(query, key, value, is_causal=True, return_report=True)
    want, _ = reference.attention(query, key, value, is_causal=True)
    np.testing.assert_array_equal(report.exact_mask, [False, True, False, True])
    np.testing.assert_array_equal(report.complete, [True, False, True, False])
    np.testing.assert_array_equal(report.num_bases, [2, 4, 2, 4])
    np.testing.assert_array_equal(np.isnan(report.logit_deviation), report.exact_mask)
    np.testing.assert_array_equal(report.error_bound[1::2], 0.0)
    assert report.heads_exact == 2
    assert row_error(out, want) <= 1e-11
    _, report = cb.conv_attention(
        query[1::2], key[1::2], value[1::2], is_causal=True, return_report=True
    )
    assert report.method == "exact"
    assert report.block_lengths == ()


def test_tol_recomputes_the_heads_that_miss(row_error):
    query, key, value = mixed_heads()
    options = cb.RecoverOptions(num_bases=4)
    out, lse, report = cb.conv_attention(
        query,
        key,
        value,
        is_causal=True,
        options=options,
        tol=0.01,
        return_lse=True,
        return_report=True,
    )
    want, want_lse = reference.attention(query, key, value, is_causal=True)
    np.testing.assert_array_equal(report.exact_mask, [False, True, False, True])
    assert row_error(out, want) <= 1e-11
    np.testing.assert_allclose(lse, want_lse, rtol=1e-11)
    assert np.all(report.error_estimate <= 1e-11)
    assert np.all(report.strips_error[1::2] > 0.01)


def test_tol_missed_can_be_kept():
    query, key, value = mixed_heads()
    options = cb.RecoverOptions(num_bases=4)
    out, report = cb.conv_attention(
        query,
        key,
        value,
        is_causal=True,
        options=options,
        tol=0.01,
        on_miss="keep",
        return_report=True,
    )
    plain = cb.conv_attention(query, key, value, is_causal=True, options=options)
    np.testing.assert_array_equal(out, plain)
    assert report.heads_exact == 0
    assert np.all(report.error_interval[1::2, 1] > 0.01)
    want, _ = reference.attention(query, key, value, is_causal=True)
    true = np.linalg.norm(out - want, axis=(1, 2)) / np.linalg.norm(want, axis=(1, 2))
    assert np.all(report.error_interval[:, 0] <= 1.0001 * true + 1e-15)


def test_tol_missed_can_raise_before_anything_is_written():
    query, key, value = mixed_heads()
    out = np.full(value.shape, 7.0)
    with pytest.raises(
        cb.ToleranceMissed,
        match=r"^\[conv_attention\] tol is missed by 2 of 4 "
        r"heads; expected .* 0\.01; got head \(1,\): ",
    ):
        cb.conv_attention(
            query,
            key,
            value,
            is_causal=True,
            tol=0.01,
            on_miss="error",
            out=out,
            options=cb.RecoverOptions(num_bases=4),
        )
    np.testing.assert_array_equal(out, 7.0)
    assert issubclass(cb.ToleranceMissed, RuntimeError)


def test_tol_met_writes_out_with_on_miss_error(row_error):
    problem = problems.conv_problem(200, 8, 2, batch=(2,), seed=1)
    out = np.empty(problem.value.shape)
    result = cb.conv_attention(
        problem.query,
        problem.key,
        problem.value,
        is_causal=True,
        scale=problem.scale,
        tol=1e-6,
        on_miss="error",
        out=out,
        options=cb.RecoverOptions(num_bases=2),
    )
    want, _ = reference.attention(
        problem.query, problem.key, problem.value, is_causal=True, scale=problem.scale
    )
    assert result is out
    assert row_error(out, want) <= 1e-11


def test_the_number_of_strips_is_as_the_data_shows():
    for num_bases in (1, 2, 5):
        problem = problems.conv_problem(700, 8, num_bases, seed=num_bases)
        basis = cb.recover_basis(problem.query, problem.key, scale=problem.scale)
        assert basis.num_bases == num_bases
        assert basis.complete


@pytest.mark.parametrize("value_dim", [1, 64])
def test_the_cap_on_free_k_knows_the_value_dim(value_dim):
    """Wide values make strips dearer or cheaper: random logits stop at the cap, which tells it."""
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(2, 400, 8))
    value = rng.normal(size=(400, value_dim))
    _, report = cb.conv_attention(query, key, value, is_causal=True, return_report=True)
    assert report.num_bases == cb.break_even(400, 8, value_dim, "float64")
    assert report.num_bases > 0
    assert not report.complete
    assert report.method == "exact"


def test_the_cap_of_recover_basis_takes_head_dim_for_value_dim():
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(2, 400, 8))
    assert cb.recover_basis(query, key).num_bases == cb.break_even(400, 8, dtype="float64")
