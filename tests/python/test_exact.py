"""exact_attention against the oracle: every shape, type and extreme logit."""

import numpy as np
import pytest

import convbasis as cb
from convbasis import _core, reference

SIZES = [1, 2, 3, 5, 7, 15, 16, 17, 31, 33, 63, 65, 97, 127, 128, 130]


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("n", SIZES)
def test_nasty_sizes(n, is_causal, qkv, row_error):
    query, key, value = qkv(n, d=5, value_dim=3, lead=(2,), seed=n)
    out, lse = cb.exact_attention(query, key, value, is_causal=is_causal, return_lse=True)
    want, want_lse = reference.attention(query, key, value, is_causal=is_causal)
    assert row_error(out, want) <= 1e-13
    np.testing.assert_allclose(lse, want_lse, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("lengths", [(1, 9), (9, 1), (40, 129), (129, 40), (65, 64), (300, 7)])
def test_lengths_may_differ(lengths, is_causal, qkv, row_error):
    n_q, n_kv = lengths
    query, key, value = qkv(n_q, n_kv=n_kv, value_dim=11)
    out, lse = cb.exact_attention(query, key, value, is_causal=is_causal, return_lse=True)
    want, want_lse = reference.attention(query, key, value, is_causal=is_causal)
    assert row_error(out, want) <= 1e-13
    np.testing.assert_allclose(lse, want_lse, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("spread", [1.0, 8.0])
def test_float32_is_as_good_as_plain_float32(spread, is_causal, qkv, naive):
    query, key, value = qkv(400, d=64, lead=(2,), dtype=np.float32, spread=spread)
    scale = 1 / 8
    out, lse = cb.exact_attention(query, key, value, is_causal=is_causal, return_lse=True)
    want, want_lse = reference.attention(query, key, value, is_causal=is_causal)
    plain = naive(query, key, value, is_causal=is_causal, scale=scale)
    assert out.dtype == lse.dtype == np.float32
    assert np.linalg.norm(out - want) <= 2 * np.linalg.norm(plain - want)
    np.testing.assert_allclose(lse, want_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logits_of_any_size(dtype, qkv, row_error):
    query, key, value = qkv(100, d=4, lead=(), dtype=dtype, spread=1e4)
    out, lse = cb.exact_attention(query, key, value, is_causal=True, return_lse=True)
    want, want_lse = reference.attention(query, key, value, is_causal=True)
    assert np.isfinite(out).all()
    # A logit of size 1e5 is rounded to eps * 1e5; so much does each weight move.
    assert row_error(out, want) <= np.finfo(dtype).eps * 1e6
    np.testing.assert_allclose(lse, want_lse, rtol=1e-6)


@pytest.mark.parametrize("scale", [0.0, -0.7, 3.0])
def test_any_scale(scale, qkv, row_error):
    query, key, value = qkv(50)
    out = cb.exact_attention(query, key, value, scale=scale)
    want, _ = reference.attention(query, key, value, scale=scale)
    assert row_error(out, want) <= 1e-13


@pytest.mark.parametrize("is_causal", [True, False])
def test_no_keys_at_all(is_causal, qkv):
    query, key, value = qkv(4, n_kv=0)
    out, lse = cb.exact_attention(query, key, value, is_causal=is_causal, return_lse=True)
    np.testing.assert_array_equal(out, np.zeros((2, 3, 4, 8)))
    np.testing.assert_array_equal(lse, np.full((2, 3, 4), -np.inf))


def test_lse_normalises_the_weights(qkv):
    query, key, value = qkv(60, lead=())
    _, lse = cb.exact_attention(query, key, value, return_lse=True)
    weights = np.exp(reference.attention_logits(query, key) - lse[:, None])
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-13)


def test_nothing_but_the_output_without_lse(qkv):
    assert isinstance(cb.exact_attention(*qkv(4)), np.ndarray)


@pytest.mark.parametrize("is_causal", [True, False])
def test_unchecked_nan_stays_nan_in_listed_rows_too(is_causal):
    query, key, value = np.random.default_rng(0).normal(size=(3, 1, 1, 200, 4))
    query[0, 0, 150, 2] = np.nan
    rows = np.array([[[10, 150]]])
    out, lse = np.empty((1, 1, 2, 4)), np.empty((1, 1, 2))
    _core.attention_rows(query, key, value, rows, out, lse, 0.5, is_causal, None, None, 2)
    whole, whole_lse = cb.exact_attention(
        query, key, value, is_causal=is_causal, scale=0.5, check_finite=False, return_lse=True
    )
    assert np.isnan(out[0, 0, 1]).all()
    assert np.isnan(lse[0, 0, 1])
    assert np.isnan(whole_lse[0, 0, 150])
    np.testing.assert_allclose(out[0, 0, 0], whole[0, 0, 10], rtol=1e-13)
