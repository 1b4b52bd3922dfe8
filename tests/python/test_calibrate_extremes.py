"""Calibrated attention of numbers that are far apart: what a row gives to far keys, and sizes."""

import numpy as np
import pytest

import convbasis as cb

N = 2048
NOTHING_SHARED = {"sinks": 0, "heavy_keys": 0, "retrieval_blocks": 0}


def attend(arrays, **call):
    call = {"is_causal": True, "scale": 1.0, "options": cb.CalibrateOptions(), **call}
    return cb.conv_attention(*arrays, return_lse=True, return_report=True, **call)


def exactly(arrays):
    return cb.exact_attention(*arrays, is_causal=True, scale=1.0, return_lse=True)


@pytest.fixture
def far_heads(qkv):
    """Rows from 1300 on see nothing but keys below 1000: others weigh less than exp tells from 0"""
    query, key, value = (array.astype(np.float32) for array in qkv(N, 8, lead=(1, 2)))
    query[:], key[..., 1:] = 0.0, key[..., 1:] / 8.0
    query[..., 1], query[:, :, 1300:, 0] = 1.0, 1.0
    key[..., 0] = np.where(np.arange(N) < 1000, 1000.0, 0.0)
    return query, key, value


@pytest.mark.parametrize("call", [{}, {"tol": 0.2}, {"tol": 0.2, "on_miss": "keep"}])
def test_rows_whose_exact_keys_vanish_beside_far_ones(far_heads, call):
    out, lse, report = attend(far_heads, options=cb.CalibrateOptions(**NOTHING_SHARED), **call)
    want, want_lse = exactly(far_heads)
    assert report.has_far.all()
    assert (report.exact_share < 0.4).all()
    assert np.linalg.norm(out - want) < 0.2 * np.linalg.norm(want)
    np.testing.assert_allclose(lse, want_lse, atol=1.0)


def test_rows_with_one_key_far_away():
    """It has all of the weight, and is another one in each row: no basis has that."""
    rng = np.random.default_rng(0)
    key = rng.normal(size=(1, 1, N, 64))
    key *= 30.0 / np.linalg.norm(key, axis=-1, keepdims=True)
    query = key[:, :, [rng.integers(0, max(i - 200, 1)) for i in range(N)]]
    arrays = [array.astype(np.float32) for array in (query, key, rng.normal(size=(1, 1, N, 8)))]
    want, _ = exactly(arrays)
    for options in (cb.CalibrateOptions(), cb.CalibrateOptions(**NOTHING_SHARED)):
        out, lse, report = attend(arrays, options=options)
        assert np.isfinite(out).all()
        assert np.isfinite(lse).all()
        assert np.abs(out).max() <= 1.001 * np.abs(arrays[2]).max()  # weights are not negative
        assert report.error_interval[0, 0, 1] > 0.5
        met, _, report = attend(arrays, options=options, tol=0.2)
        np.testing.assert_allclose(met, want, rtol=1e-4, atol=1e-5)
        assert report.exact_mask.all()


def test_queries_near_the_largest_number(content_heads):
    arrays = content_heads(N, 2, dtype=np.float32)
    query, key, value = arrays
    power = np.float32(2.0**124)
    large = query * power, key / power, value
    assert large[0].sum(axis=2, dtype=np.float64).max() > np.finfo(np.float32).max
    np.testing.assert_allclose(attend(large)[0], attend(arrays)[0], atol=1e-4)


@pytest.mark.parametrize("power", [2.0**700, 2.0**-700])
def test_values_whose_squares_are_no_numbers(content_heads, power):
    query, key, value = content_heads(N, 2)
    want, _, report = attend((query, key, value), tol=0.3)
    out, _, scaled = attend((query, key, value * power), tol=0.3)
    np.testing.assert_allclose(out / power, want, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(scaled.sample_error, report.sample_error, rtol=1e-9)
    np.testing.assert_array_equal(scaled.blocks_exact, report.blocks_exact)


@pytest.mark.parametrize("tol", [None, 0.2])
@pytest.mark.parametrize(("place", "row"), [(0, 3), (0, 700), (1, 0), (1, 700), (2, 700)])
def test_nan_that_is_not_looked_for_stays_in_its_head(content_heads, tol, place, row):
    arrays = content_heads(N, 2)
    want = attend(arrays, tol=tol)[0]
    arrays[place][0, 0, row, 1] = np.nan
    out = attend(arrays, tol=tol, check_finite=False)[0]
    assert np.isnan(out[0, 0, row]).any()
    np.testing.assert_array_equal(out[0, 1], want[0, 1])
