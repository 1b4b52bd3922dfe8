"""Rows that rounding would spoil: their error stays within what the report says."""

import dataclasses

import numpy as np
import pytest

import convbasis as cb

EPS = float(np.finfo(np.float32).eps)


@pytest.fixture(autouse=True)
def ordinary_model():
    """Schedules of an ordinary machine, whatever this one is busy with."""
    kept = cb.cost_model()
    cb.set_cost_model(cb.CostModel(0.11, 0.065, 0.017, 0.026, 4.0))
    yield
    cb.set_cost_model(kept)


def attend(kernels, value, starts=(0,)):
    """Output and report for given logits; query and key are not looked at."""
    kernels = np.asarray(kernels, value.dtype)
    basis = cb.ConvBasis(np.asarray(starts), len(starts), kernels)
    unused = np.zeros((len(value), 1), value.dtype)
    return cb.conv_attention(unused, unused, value, is_causal=True, basis=basis, return_report=True)


@pytest.mark.parametrize("size", [1e-44, 1e-37, 1e-19, 1e-10, 1.0, 1e37])
def test_the_mean_of_equal_values_is_that_value(size):
    """Weights of e^-60 beside others of 1, times tiny values: products would vanish."""
    value = np.full((64, 16), size, np.float32)
    logits = np.full((1, 64), -60.0)
    logits[0, 32:] = 0.0
    out, _ = attend(logits, value)
    np.testing.assert_allclose(out, value, rtol=4 * EPS)


@pytest.mark.parametrize("size", [1e30, 1e36, 1e37, 1e38])
@pytest.mark.parametrize("spread", [30, 50, 60, 80])
def test_rows_that_transforms_would_make_infinite_are_summed_directly(size, spread):
    n = 256
    cb.set_cost_model(cb.CostModel(1e-6, 1e-6, 1e3, 1.0, 1.0))  # transforms wherever possible
    kernels = np.zeros((2, n))
    kernels[0] = -spread
    kernels[0, 64:96] = kernels[0, 160:] = 0.0
    kernels[1, : n - 32] = -spread
    value = (size * np.random.default_rng(0).uniform(-1, 1, (n, 16))).astype(np.float32)
    out, report = attend(kernels, value, (0, 32))
    assert report.block_lengths[-1] == 32
    assert np.isfinite(out).all()
    assert np.abs(out).max() > 0.01 * size
    assert np.abs(out).max() <= np.abs(value).max() * (1 + 100 * EPS)


@pytest.mark.parametrize(("direct", "block", "least"), [(1e-3, 256, 4), (1.0, 32, 10)])
def test_the_bound_holds_for_rows_of_one_channel(direct, block, least):
    """Similar pieces err alike, and one channel does not average: the worst of many problems."""
    cb.set_cost_model(dataclasses.replace(cb.cost_model(), direct=direct))
    n, k = 256, 40
    worst = 0.0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        starts = np.r_[0, np.sort(rng.choice(np.arange(1, n), k - 1, replace=False))]
        kernels = np.zeros((k, n))
        for row, start in zip(kernels, starts, strict=True):
            row[: n - start] = np.round(np.linspace(-49, 0, n - start))
        out, report = attend(kernels, np.ones((n, 1), np.float32), starts)
        error = np.abs(out - 1.0).max()
        assert report.block_lengths[-1] == block
        assert error <= report.rounding_bound <= 1e-4
        worst = max(worst, error)
    assert worst > least * EPS  # the bound has something to hold


@pytest.mark.parametrize("factor", [1.0, 1.7])
def test_the_bound_covers_sums_that_grow_steadily(factor):
    n = 65536
    value = np.full((n, 16), 1 / 3, np.float32)
    value[n // 2 :] *= np.float32(factor)
    out, report = attend(np.zeros((1, n)), value)
    want = np.cumsum(value[:, 0].astype(np.float64)) / np.arange(1, n + 1)
    error = np.abs(out[:, 0] / want - 1.0).max()
    assert EPS / 4 < error <= report.rounding_bound
    assert report.rows_exact == 0
