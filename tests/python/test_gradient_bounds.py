"""BackwardReport.error_bound: nothing that the logits' deviation does to a gradient exceeds it."""

import numpy as np
import pytest

import convbasis as cb


def nearly_conv(seed, *, noise, heads=1, n=300, dtype=np.float64):
    """Query, key, value and output gradient of logits that are a conv basis but for noise."""
    rng = np.random.default_rng(seed)
    problem = cb.problems.conv_problem(n=n, head_dim=8, num_bases=3, seed=seed)
    query, key = (
        array + noise * rng.normal(size=(heads, *array.shape))
        for array in (problem.query, problem.key)
    )
    value, grad = rng.normal(size=(2, heads, n, 5))
    return [array.astype(dtype) for array in (query, key, value, grad)], problem.scale


def gradients(arrays, scale, gradient="attention", **settings):
    *grads, report = cb.conv_attention_backward(
        *arrays,
        is_causal=True,
        scale=scale,
        gradient=gradient,
        options=cb.RecoverOptions(num_bases=3),
        return_report=True,
        **settings,
    )
    return grads, report


def deviations(arrays, scale, grads):
    exact = cb.exact_attention_backward(*arrays, is_causal=True, scale=scale)
    return np.stack(
        [np.abs(a - b).sum((-2, -1)) for a, b in zip(grads, exact, strict=True)], axis=-1
    )


@pytest.mark.parametrize("noise", [1e-7, 1e-5, 1e-4, 1e-2])
@pytest.mark.parametrize("seed", range(5))
def test_a_certified_bound_holds_and_is_not_absurd(seed, noise):
    arrays, scale = nearly_conv(seed, noise=noise, heads=2)
    grads, report = gradients(arrays, scale, certify=True)
    found = deviations(arrays, scale, grads)
    assert report.certified
    assert np.all(found <= report.error_bound * (1 + 1e-9) + 1e-9)
    assert np.all(found > 0)
    small = report.logit_deviation < 0.1
    assert small.any() or noise > 1e-4
    assert np.all((report.error_bound < 1e4 * found)[small])


def test_without_deviation_there_is_no_error_to_bound():
    arrays, scale = nearly_conv(0, noise=0.0)
    grads, report = gradients(arrays, scale, certify=True)
    largest = [np.abs(grad).sum() for grad in grads]
    assert np.all(report.error_bound[0] < 1e-9 * np.array(largest))
    assert np.all(report.error_bound > 0)  # the logits were rounded


def test_bounds_of_sampled_rows_are_estimates():
    arrays, scale = nearly_conv(1, noise=1e-5, n=2000)
    sampled = gradients(arrays, scale)[1]
    certified = gradients(arrays, scale, certify=True)[1]
    assert not sampled.certified
    assert np.all(sampled.error_bound <= certified.error_bound)
    assert np.all(sampled.error_bound > 0.3 * certified.error_bound)


def test_the_basis_gradient_by_query_and_key_is_of_another_function():
    arrays, scale = nearly_conv(2, noise=1e-5)
    grads, report = gradients(arrays, scale, "basis", certify=True)
    assert np.isnan(report.error_bound[0, :2]).all()
    assert 0 < deviations(arrays, scale, grads)[0, 2] <= report.error_bound[0, 2]
    assert report.to_dict()["error_bound"][0][:2] == [None, None]


def test_exact_heads_have_no_bound_to_state():
    arrays, scale = nearly_conv(3, noise=1.0)
    _, report = gradients(arrays, scale, tol=1e-3)
    assert report.heads_exact == 1
    assert np.array_equal(report.error_bound, np.zeros((1, 3)))


def test_certify_needs_a_report():
    arrays, scale = nearly_conv(4, noise=0.0)
    with pytest.raises(ValueError, match="certify is set"):
        cb.conv_attention_backward(*arrays, is_causal=True, scale=scale, certify=True)


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_bounds_of_numbers_whose_squares_are_none(size):
    """Values and gradients far from 1: bounds scale with them."""
    (query, key, value, grad), scale = nearly_conv(3, noise=1e-5)
    right = gradients((query, key, value, grad), scale, certify=True)[1].error_bound
    report = gradients((query, key, size * value, grad / size), scale, certify=True)[1]
    np.testing.assert_allclose(report.error_bound, right / [1, 1, size], rtol=1e-9)


def test_a_bound_that_overflows_is_infinite():
    rng = np.random.default_rng(2)
    arrays = 40.0 * rng.normal(size=(4, 1, 60, 8))
    report = gradients(arrays, 1.0)[1]
    assert report.logit_deviation > 700
    np.testing.assert_array_equal(report.error_bound, [[np.inf] * 3])
    zeros = [*arrays[:3], np.zeros_like(arrays[3])]
    np.testing.assert_array_equal(gradients(zeros, 1.0)[1].error_bound, [[0.0] * 3])


def test_a_report_prints_a_row_a_head():
    arrays, scale = nearly_conv(5, noise=1e-5, heads=2)
    _, report = gradients(arrays, scale, "basis")
    lines = str(report).splitlines()
    assert "gradient 'basis'" in lines[0]
    assert "0 of 2 heads exact" in lines[0]
    assert len(lines) == 6
    assert lines[-1].startswith("| 1 | 3 | by strips |")
    assert "| - | - |" in lines[-1]
    assert repr(report).startswith("<BackwardReport basis")
