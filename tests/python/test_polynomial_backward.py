"""polynomial_attention_backward against dense formulas with the same polynomial."""

import json

import numpy as np
import pytest

import convbasis as cb
from convbasis import _core, masks, reference

MASKS = {
    "none": None,
    "sliding": masks.SlidingWindow(70),
    "longformer": masks.Longformer(20, [0, 50]),
    "rows": masks.RowWindow(np.arange(150) // 2, np.arange(150) // 2 + 60),
    "falling": masks.RowWindow(np.arange(150)[::-1] // 2, np.arange(150)[::-1] // 2 + 60),
    "distinct rows": masks.DistinctRows(np.arange(150) % 3, np.arange(450).reshape(3, -1) % 5 < 2),
    "distinct columns": masks.DistinctColumns(
        np.arange(150) % 3, np.arange(450).reshape(3, -1) % 7 < 3
    ),
    "change": masks.RowChange([0], [[i] for i in range(1, 150)], [[] for _ in range(1, 150)]),
}


def arrays(n, d, value_dim, *, lead=(), dtype=np.float64, spread=0.7):
    rng = np.random.default_rng(1)
    shapes = [(*lead, n, channels) for channels in (d, d, value_dim, value_dim)]
    query, key, value, grad = (rng.uniform(-1.0, 1.0, size=shape) for shape in shapes)
    return [x.astype(dtype) for x in (spread * query, spread * key, value, grad)]


def dense(query, key, value, grad, seen, degree):
    """The formulas with n x n matrices, for one head."""
    scale = query.shape[-1] ** -0.5
    centre, _, _, radius, _ = _core.logit_range(
        query[None, None], key[None, None, seen.any(axis=0)], scale, False, 0, 1
    )
    coefficients, _ = _core.exp_polynomial(degree, float(radius[0, 0]))
    logits = scale * query @ (key - centre[0, 0]).T
    weights = np.polynomial.Polynomial(coefficients)(logits) * seen
    total = weights.sum(axis=1, keepdims=True)
    f = weights / np.where(total > 0, total, 1.0)
    delta = (grad * (f @ value)).sum(axis=1, keepdims=True)
    grads = f * (grad @ value.T - delta)
    return scale * grads @ key, scale * grads.T @ query, f.T @ grad


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("name", MASKS)
def test_gradients_are_the_dense_formulas(name, is_causal):
    inputs = arrays(150, 3, 5)
    mask, degree = MASKS[name], 5
    got = cb.polynomial_attention_backward(*inputs, mask, is_causal=is_causal, degree=degree)
    seen = np.ones((150, 150), bool) if mask is None else mask.to_dense(150, 150)
    if is_causal:
        seen = seen & np.tri(150, dtype=bool)
    if name in ("falling", "change"):
        want = reference.attention_backward(*inputs, mask=seen)
    else:
        want = dense(*inputs, seen, degree)
    for result, expected in zip(got, want, strict=True):
        assert np.abs(result - expected).max() <= 1e-11 < 1e-3 * np.abs(expected).max()


def test_float32_errs_by_rounding():
    inputs = arrays(700, 6, 8, dtype=np.float32)
    got = cb.polynomial_attention_backward(*inputs, is_causal=True, degree=4)
    double = cb.polynomial_attention_backward(
        *(x.astype(np.float64) for x in inputs), is_causal=True, degree=4
    )
    for result, expected in zip(got, double, strict=True):
        assert np.abs(result - expected).max() <= 1e-4 * np.abs(expected).max()


def test_shared_heads_and_threads():
    query, key, value, grad = arrays(200, 4, 4, lead=(2, 4))
    shared = key[:, :2], value[:, :2]
    call = {"is_causal": True, "degree": 3}
    got = cb.polynomial_attention_backward(query, *shared, grad, enable_gqa=True, **call)
    again = cb.polynomial_attention_backward(
        query, *shared, grad, enable_gqa=True, num_threads=1, **call
    )
    repeated = [np.repeat(array, 2, axis=1) for array in shared]
    want = cb.polynomial_attention_backward(query, *repeated, grad, **call)
    assert all((a == b).all() for a, b in zip(got, again, strict=True))
    assert (got[0] == want[0]).all()
    for result, each in zip(got[1:], want[1:], strict=True):
        summed = each.reshape(2, 2, 2, *each.shape[2:]).sum(axis=2)
        np.testing.assert_allclose(result, summed, rtol=0, atol=1e-14)


def test_heads_that_miss_are_differentiated_exactly():
    inputs = arrays(100, 4, 4, lead=(2,), spread=3.0)
    got = cb.polynomial_attention_backward(*inputs, is_causal=True)
    want = cb.exact_attention_backward(*inputs, is_causal=True)
    assert all((a == b).all() for a, b in zip(got, want, strict=True))
    with pytest.raises(cb.ToleranceMissed, match=r"\[polynomial_attention_backward\] tol"):
        cb.polynomial_attention_backward(*inputs, on_miss="error")


def test_rows_without_a_positive_sum_make_their_head_exact():
    inputs = arrays(80, 2, 3, spread=5.0)  # logits of 28, where powers in float64 are rounding
    *got, report = cb.polynomial_attention_backward(*inputs, degree=20, return_report=True)
    assert report.exact_because == "row sums"
    want = cb.exact_attention_backward(*inputs)
    for result, expected in zip(got, want, strict=True):
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-13)


def test_wrong_gradients_are_refused():
    query, key, value, grad = arrays(10, 2, 3)
    with pytest.raises(ValueError, match=r"\[polynomial_attention_backward\] grad_output"):
        cb.polynomial_attention_backward(query, key, value, grad[:5])


@pytest.mark.parametrize("power", [10, -10, 60])
def test_large_keys_with_small_queries_are_as_good(power):
    query, key, value, grad = arrays(150, 4, 3, dtype=np.float32)
    factor = np.float32(2.0**power)
    want = cb.polynomial_attention_backward(query, key, value, grad, degree=6)
    got = cb.polynomial_attention_backward(query * factor, key / factor, value, grad, degree=6)
    assert (got[0] == want[0] / factor).all()
    assert (got[1] == want[1] * factor).all()
    assert (got[2] == want[2]).all()
    exact = cb.exact_attention_backward(query, key, value, grad)
    assert not any((a == b).all() for a, b in zip(want, exact, strict=True))


def test_values_near_the_largest_number_do_not_overflow():
    query, key, value, grad = arrays(150, 4, 3, dtype=np.float32)
    large, small = np.float32(2.0**127), np.float32(2.0**-40)
    want = cb.polynomial_attention_backward(query, key, value, grad, degree=6)
    got = cb.polynomial_attention_backward(query, key, value * large, grad * small, degree=6)
    assert (got[0] == want[0] * (large * small)).all()
    assert (got[1] == want[1] * (large * small)).all()
    assert (got[2] == want[2] * small).all()


def test_report_tells_what_was_exact_and_why():
    query, key, value, grad = arrays(150, 3, 5, lead=(2,))
    query[1] *= 100.0
    call = {"return_report": True}
    *grads, report = cb.polynomial_attention_backward(query, key, value, grad, degree=5, **call)
    want = cb.polynomial_attention_backward(query, key, value, grad, degree=5)
    assert all((a == b).all() for a, b in zip(grads, want, strict=True))
    assert report.exact_because.tolist() == ["", "logits"]
    assert report.exact_mask.tolist() == [False, True]
    assert (report.method, report.heads_exact, report.degree[0]) == ("polynomial", 1, 5)
    assert "exactly: logits" in str(report)
    assert json.loads(report.to_json())["exact_because"] == ["", "logits"]
    one = query[0], key[0], value[0], grad[0]
    for name in ("falling", "change"):
        *_, report = cb.polynomial_attention_backward(*one, MASKS[name], degree=5, **call)
        assert (report.method, report.exact_because) == ("exact", "mask")
    *_, report = cb.polynomial_attention_backward(*one, **call)
    assert report.exact_because == "tol"
    assert report.cost_exact < report.cost_polynomial
    many = arrays(20, 8, 4)
    *_, report = cb.polynomial_attention_backward(*many, degree=40, **call)
    assert report.exact_because == "memory"
