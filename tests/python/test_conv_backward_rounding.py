"""conv_attention_backward where transforms round coarsely, and with numbers of any size."""

import dataclasses

import numpy as np
import pytest

import convbasis as cb

NAMES = ("query", "key", "value")
both = pytest.mark.parametrize("gradient", ["basis", "attention"])
MODEL = cb.CostModel(transform=0.1, product=0.05, direct=0.01, exact=0.04, entry=4.0)


@pytest.fixture(autouse=True)
def as_before():
    """Other tests see the model that was measured."""
    kept = {dtype: cb.cost_model(dtype) for dtype in ("float32", "float64")}
    yield
    for dtype, model in kept.items():
        cb.set_cost_model(model, dtype)


# What a row may lose that the transforms are trusted with (float32).
ROW_BUDGET = 1e-4


def check_beside_plain(head, gradient, exactly=NAMES):
    """At most 3 times the error of dense formulas in the same type, and the budget of others."""
    *got, report = head.backward(gradient=gradient, return_report=True)
    plain, want = head.plain(gradient), head.oracle(gradient)
    for name, one, other, right in zip(NAMES, got, plain, want, strict=True):
        error, size = np.linalg.norm(one - right), np.linalg.norm(right)
        assert error < 0.1 * size, name
        allowed = 0.0 if name in exactly else ROW_BUDGET
        assert error <= 3 * np.linalg.norm(other - right) + allowed * size, name
    return report


@both
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("spread", [30.0, 200.0])
def test_rows_that_transforms_would_spoil_are_computed_one_by_one(
    spread, is_causal, gradient, strip_head
):
    """Rows with sums of every order of magnitude; logits of some hundred, whose lse is rounded."""
    cb.set_cost_model(MODEL)
    head = strip_head(
        1024, [0, 300, 800], None if is_causal else [0, 500], spread=spread, dtype=np.float32
    )
    report = check_beside_plain(head, gradient, exactly=("value",) if spread > 100 else ())
    assert 0 < report.rows_exact <= 1024


def falling_kernels(n, starts, fall, low):
    """The first strip falls from 0 to nothing within its first lags, all others are at `low`."""
    kernels = np.full((len(starts), n), low, np.float32)
    kernels[0] = np.maximum(-np.arange(n) / fall, 2 * low)
    kernels[np.arange(n) >= (n - np.array(starts))[:, None]] = 0.0
    return kernels


@both
@pytest.mark.parametrize("size", [1.0, 1e10, 1e20])
def test_small_sums_and_large_values(size, gradient, strip_head):
    """Rows of a sum of e^-55 have large shares: their products with values may not overflow."""
    cb.set_cost_model(MODEL)
    starts = [0, 1000]
    head = strip_head(
        2048, starts, kernels=falling_kernels(2048, starts, 5.0, -55.0), dtype=np.float32
    )
    query, key, value, grad = head.arrays
    head = dataclasses.replace(head, arrays=(query, key, value * np.float32(size), grad))
    check_beside_plain(head, gradient)


@both
@pytest.mark.parametrize("direct", [1e-9, 0.01])
def test_blocks_of_the_gradient_are_judged_too(direct, gradient, strip_head):
    """The gradient "attention" has a schedule of its own, which rounds other rows than forward."""
    cb.set_cost_model(dataclasses.replace(MODEL, direct=direct, exact=1e9))
    starts = [0, 100]
    head = strip_head(
        2048, starts, kernels=falling_kernels(2048, starts, 5.0, -30.0), dtype=np.float32
    )
    check_beside_plain(head, gradient)


@both
def test_values_of_zero_do_not_hide_small_sums(gradient, strip_head):
    """Nothing in the forward pass depends on the weights then; the gradient by the values does."""
    cb.set_cost_model(MODEL)
    head = strip_head(1024, [0, 300, 800], spread=30.0, dtype=np.float32)
    want = head.oracle(gradient)[2]
    query, key, value, grad = head.arrays
    *got, report = head.backward(
        gradient=gradient, arrays=(query, key, np.zeros_like(value), grad), return_report=True
    )
    assert report.rows_exact > 0
    for zero in got[:2]:
        np.testing.assert_array_equal(zero, np.zeros_like(zero))
    assert np.linalg.norm(got[2] - want) <= ROW_BUDGET * np.linalg.norm(want)


@both
@pytest.mark.parametrize(
    ("of_value", "of_grad"),
    [(1e30, 1e-30), (1e-30, 1e30), (1e30, 1.0), (1.0, 1e30), (1e-30, 1.0), (1.0, 1e-30)],
)
def test_numbers_of_any_size(of_value, of_grad, gradient, strip_head):
    """Gradients of scaled values are scaled gradients, without overflow on the way."""
    head = strip_head(600, [0, 50, 300], [0, 200], dtype=np.float32)
    query, key, value, grad = head.arrays
    of_value, of_grad = np.float32(of_value), np.float32(of_grad)
    want = head.backward(gradient=gradient)
    got = head.backward(gradient=gradient, arrays=(query, key, value * of_value, grad * of_grad))
    factors = (float(of_value) * float(of_grad),) * 2 + (float(of_grad),)
    for one, right, factor in zip(got, want, factors, strict=True):
        right = right.astype(float) * factor
        assert np.linalg.norm(one - right) <= 1e-5 * np.linalg.norm(right)


@both
def test_sums_over_channels_of_the_largest_values(gradient, strip_head):
    head = strip_head(600, [0, 50, 300], value_dim=16, dtype=np.float32)
    query, key, value, grad = head.arrays
    near_one = 1 + value / (64 * np.abs(value).max())
    grad = np.abs(grad) * np.float32(2.0**-30)
    want = head.backward(gradient=gradient, arrays=(query, key, near_one, grad))
    huge = np.float32(2.0**127)
    got = head.backward(gradient=gradient, arrays=(query, key, near_one * huge, grad))
    for one, right, factor in zip(got, want, (huge, huge, np.float32(1)), strict=True):
        assert np.linalg.norm(one / factor - right) <= 1e-3 * np.linalg.norm(right)


@both
def test_numbers_of_any_size_in_double(gradient, strip_head):
    head = strip_head(600, [0, 50, 300], [0, 200])
    query, key, value, grad = head.arrays
    want = head.backward(gradient=gradient)
    for of_value, of_grad in [(1e300, 1e-300), (1e-300, 1e300), (1.0, 1e-290), (1.0, 1e290)]:
        got = head.backward(
            gradient=gradient, arrays=(query, key, value * of_value, grad * of_grad)
        )
        for one, right, factor in zip(
            got, want, (of_value * of_grad,) * 2 + (of_grad,), strict=True
        ):
            assert np.linalg.norm(one / factor - right) <= 1e-12 * np.linalg.norm(right)
