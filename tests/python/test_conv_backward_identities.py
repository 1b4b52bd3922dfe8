"""Mathematics that conv_attention_backward has to obey, and heads that are computed exactly."""

import numpy as np
import pytest

import convbasis as cb
from convbasis import problems

NAMES = ("query", "key", "value")
both = pytest.mark.parametrize("gradient", ["basis", "attention"])
causal_or_not = pytest.mark.parametrize("is_causal", [True, False])


@causal_or_not
def test_the_basis_gradient_is_the_slope(is_causal):
    """Of conv_attention itself, strips found anew after every step."""
    problem = problems.conv_problem(180, 8, 3, value_dim=5, seed=2)
    arrays = {name: getattr(problem, name) for name in NAMES}
    rng = np.random.default_rng(1)
    grad = rng.normal(size=(180, 5))
    options = cb.RecoverOptions(num_bases=3, window=30, delta=1.0, epsilon=0.005)
    call = {"is_causal": is_causal, "scale": problem.scale, "options": options}

    def loss(**moved):
        return np.vdot(grad, cb.conv_attention(**{**arrays, **moved}, **call))

    def starts(**moved):
        moved = {**arrays, **moved}
        return cb.recover_basis(
            moved["query"], moved["key"], scale=problem.scale, options=options
        ).starts

    slopes = cb.conv_attention_backward(*arrays.values(), grad, **call)
    for (name, array), slope in zip(arrays.items(), slopes, strict=True):
        direction = rng.normal(size=array.shape)
        moved = [array + step * direction for step in (2e-5, 1e-5, -1e-5, -2e-5)]
        if name != "value":
            np.testing.assert_array_equal(starts(**{name: moved[0]}), starts())
        values = [loss(**{name: one}) for one in moved]
        difference = np.dot([-1, 8, -8, 1], values) / 12e-5
        assert abs(difference / np.vdot(slope, direction) - 1) < 1e-7, name


@causal_or_not
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exact_strips_have_the_gradient_of_exact_attention(dtype, is_causal):
    problem = problems.conv_problem(700, 8, 4, batch=(2,), value_dim=5, dtype=dtype, seed=5)
    arrays = problem.query, problem.key, problem.value
    grad = np.random.default_rng(1).normal(size=(2, 700, 5)).astype(dtype)
    call = {"is_causal": is_causal, "scale": problem.scale}
    options = cb.RecoverOptions(num_bases=4 if is_causal else 8)
    *got, report = cb.conv_attention_backward(
        *arrays, grad, gradient="attention", options=options, return_report=True, **call
    )
    want = cb.exact_attention_backward(*arrays, grad, **call)
    assert report.heads_exact == 0
    for name, one, right in zip(NAMES, got, want, strict=True):
        error = np.linalg.norm(one - right) / np.linalg.norm(right)
        assert error <= 400 * np.finfo(dtype).eps, name
    other = cb.conv_attention_backward(*arrays, grad, gradient="basis", options=options, **call)
    assert np.linalg.norm(other[0] - want[0]) > 0.01 * np.linalg.norm(want[0])


@causal_or_not
@both
def test_heads_that_are_too_rich_are_computed_exactly(gradient, is_causal, qkv):
    """Bitwise as by exact_attention_backward, whether the search or a tolerance decides."""
    arrays = qkv(600, lead=(2, 2), dtype=np.float32)
    grad = np.random.default_rng(1).normal(size=arrays[2].shape).astype(np.float32)
    want = cb.exact_attention_backward(*arrays, grad, is_causal=is_causal)
    for how in ({}, {"tol": 1e-3, "options": cb.RecoverOptions(num_bases=2)}):
        *got, report = cb.conv_attention_backward(
            *arrays, grad, is_causal=is_causal, gradient=gradient, return_report=True, **how
        )
        assert report.heads_exact == 4
        np.testing.assert_array_equal(report.exact_mask, np.ones((2, 2), bool))
        np.testing.assert_array_equal(report.rows_exact, np.zeros((2, 2), int))
        for one, right in zip(got, want, strict=True):
            assert np.any(one)
            np.testing.assert_array_equal(one, right)


@both
def test_exact_heads_and_strips_share_a_key_head(gradient):
    """One query head of each pair has strips with the keys, the other is random."""
    rng = np.random.default_rng(4)
    problem = problems.conv_problem(600, 8, 3, batch=(2,), seed=4)
    query = np.stack([problem.query, rng.normal(size=problem.query.shape)], axis=1)
    query = query.reshape(4, 600, 8)
    grad = rng.normal(size=(4, 600, 8))
    call = {"is_causal": True, "scale": problem.scale}
    *got, report = cb.conv_attention_backward(
        query,
        problem.key,
        problem.value,
        grad,
        gradient=gradient,
        enable_gqa=True,
        return_report=True,
        **call,
    )
    np.testing.assert_array_equal(report.exact_mask, [False, True] * 2)
    assert report.heads_exact == 2
    parts = []
    for h in range(4):
        arrays = query[h], problem.key[h // 2], problem.value[h // 2], grad[h]
        if h % 2:
            parts.append(cb.exact_attention_backward(*arrays, **call))
        else:
            parts.append(cb.conv_attention_backward(*arrays, gradient=gradient, **call))
    for h in range(4):
        np.testing.assert_array_equal(got[0][h], parts[h][0])
    for g in range(2):
        for which in (1, 2):
            want = parts[2 * g][which] + parts[2 * g + 1][which]
            np.testing.assert_allclose(got[which][g], want, rtol=1e-13, atol=1e-14)
            assert np.any(want)


@both
def test_kept_heads_are_differentiated_through_strips(gradient, qkv):
    arrays = qkv(300, lead=(2,))
    grad = np.random.default_rng(1).normal(size=arrays[2].shape)
    call = {"is_causal": True, "gradient": gradient, "options": cb.RecoverOptions(num_bases=2)}
    want = cb.conv_attention_backward(*arrays, grad, **call)
    got = cb.conv_attention_backward(*arrays, grad, tol=1e-6, on_miss="keep", **call)
    for one, right in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, right)
    with pytest.raises(cb.ToleranceMissed, match=r"^\[conv_attention_backward\] "):
        cb.conv_attention_backward(*arrays, grad, tol=1e-6, on_miss="error", **call)


@causal_or_not
@both
def test_identities(gradient, is_causal, strip_head):
    """With roundings of sums of 900 x 900 terms."""
    head = strip_head(900, [0, 70, 500], None if is_causal else [0, 300])
    query, key, value, grad = head.arrays
    got = head.backward(gradient=gradient)
    out = cb.conv_attention(
        query, key, value, is_causal=is_causal, basis=head.basis, scale=head.scale
    )
    # Values enter linearly: their gradient is the adjoint of the forward pass.
    np.testing.assert_allclose(np.vdot(got[2], value), np.vdot(grad, out), rtol=1e-12)
    # Logits are of degree one both in the queries and in the keys.
    terms = np.abs(got[0] * query).sum()
    assert abs(np.vdot(got[0], query) - np.vdot(got[1], key)) <= 1e-13 * terms
    assert np.linalg.norm(got[0]) > 1e-3
    # Linear in the gradient of the output.
    other = np.random.default_rng(8).normal(size=grad.shape)
    parts = head.backward(gradient=gradient, arrays=(query, key, value, other))
    sums = head.backward(gradient=gradient, arrays=(query, key, value, grad - 3 * other))
    for one, two, total in zip(got, parts, sums, strict=True):
        assert np.linalg.norm(one - 3 * two - total) <= 1e-13 * np.linalg.norm(total)
    # Weights sum to 1, so that a vector added to all values changes dV only in nothing.
    moved = head.backward(gradient=gradient, arrays=(query, key, value + 1.5, grad))
    for one, right in zip(moved, got, strict=True):
        assert np.linalg.norm(one - right) <= 1e-12 * np.linalg.norm(right)


@both
def test_the_future_has_no_gradient(gradient, strip_head):
    head = strip_head(700, [0, 30, 300, 550])
    query, key, value, grad = head.arrays
    grad = np.where(np.arange(700)[:, None] < 400, grad, 0.0)
    for name, result in zip(
        NAMES, head.backward(gradient=gradient, arrays=(query, key, value, grad)), strict=True
    ):
        assert np.any(result[:400]), name
        # Transforms leave their rounding in the blocks that a later row shares with earlier ones.
        assert np.abs(result[400:]).max() <= 1e-13 * np.abs(result).max(), name
        if gradient == "basis" and name == "key":
            np.testing.assert_array_equal(result[400:], 0.0)


@causal_or_not
@both
@pytest.mark.parametrize("lead", [(), (2, 4), (1, 9)])
def test_bitwise_the_same_for_any_number_of_threads(lead, gradient, is_causal, qkv):
    """Heads side by side and one after the other, with rows that are computed one by one."""
    query, key, value = qkv(1100, lead=lead, dtype=np.float32, spread=20.0)
    grad = np.random.default_rng(1).normal(size=value.shape).astype(np.float32)
    call = {
        "is_causal": is_causal,
        "gradient": gradient,
        "options": cb.RecoverOptions(num_bases=5),
        "return_report": True,
    }
    *want, report = cb.conv_attention_backward(query, key, value, grad, num_threads=1, **call)
    assert np.any(report.rows_exact > 0)
    for threads in (1, 2, 3):
        *got, again = cb.conv_attention_backward(
            query, key, value, grad, num_threads=threads, **call
        )
        np.testing.assert_array_equal(again.rows_exact, report.rows_exact)
        for one, right in zip(got, want, strict=True):
            assert np.any(right)
            np.testing.assert_array_equal(one, right)
