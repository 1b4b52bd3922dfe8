"""exact_attention_backward against a dense formula: every shape, type, layout and extreme logit."""

import inspect
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import convbasis as cb

SIZES = [1, 2, 3, 5, 7, 15, 16, 17, 31, 33, 63, 64, 65, 97, 127, 128, 129, 257, 400]
NAMES = ("query", "key", "value")


def dense(query, key, value, grad_output, *, is_causal, scale):
    """Gradients in the type of the arguments, with n x n matrices; shared heads are summed."""
    shared = query.shape[-3] // key.shape[-3] if query.ndim > 2 else 1
    keys, values = (np.repeat(x, shared, axis=-3) if shared > 1 else x for x in (key, value))
    scale = query.dtype.type(scale)
    logits = scale * (query @ np.swapaxes(keys, -1, -2))
    if is_causal:
        logits = np.where(np.tri(*logits.shape[-2:], dtype=bool), logits, -np.inf)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True)).astype(query.dtype)
    weights /= weights.sum(axis=-1, keepdims=True)
    delta = (grad_output * (weights @ values)).sum(axis=-1, keepdims=True)
    grad_logits = weights * (grad_output @ np.swapaxes(values, -1, -2) - delta)
    grads = [
        scale * (grad_logits @ keys),
        scale * (np.swapaxes(grad_logits, -1, -2) @ query),
        np.swapaxes(weights, -1, -2) @ grad_output,
    ]
    if shared > 1:
        grads[1:] = [
            grad.reshape(*key.shape[:-2], shared, *grad.shape[-2:]).sum(axis=-3)
            for grad in grads[1:]
        ]
    return grads


def oracle(*arrays, **call):
    return dense(*(array.astype(np.float64) for array in arrays), **call)


@pytest.fixture
def problem(qkv):
    """Random query, key, value and gradient of the output."""

    def make(n, d=8, **sizes):
        query, key, value = qkv(n, d, **sizes)
        rng = np.random.default_rng(99)
        grad = rng.normal(size=(*query.shape[:-1], value.shape[-1])).astype(query.dtype)
        return query, key, value, grad

    return make


def check(got, want, bound=1e-13):
    """Errors of whole arrays, relative to their norms."""
    for name, one, right in zip(NAMES, got, want, strict=True):
        assert one.shape == right.shape
        assert one.flags.c_contiguous
        assert np.linalg.norm(one - right) <= bound * np.linalg.norm(right), name


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("n", SIZES)
def test_nasty_sizes(n, is_causal, problem):
    arrays = problem(n, d=5, value_dim=3, lead=(2,), seed=n)
    got = cb.exact_attention_backward(*arrays, is_causal=is_causal, scale=0.6)
    want = oracle(*arrays, is_causal=is_causal, scale=0.6)
    if n == 1:  # one weight of 1, whatever the logit
        for grad in got[:2]:
            np.testing.assert_allclose(grad, np.zeros_like(grad), atol=1e-15)
        got, want = (*want[:2], got[2]), want
    check(got, want)
    assert all(np.any(grad) for grad in got) or n == 1


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("lengths", [(2, 9), (9, 2), (40, 300), (300, 40), (600, 257), (257, 600)])
def test_lengths_may_differ(lengths, is_causal, problem):
    n_q, n_kv = lengths
    arrays = problem(n_q, n_kv=n_kv, value_dim=11)
    got = cb.exact_attention_backward(*arrays, is_causal=is_causal, scale=0.3)
    check(got, oracle(*arrays, is_causal=is_causal, scale=0.3))
    if is_causal and n_kv > n_q:
        for grad in got[1:]:
            np.testing.assert_array_equal(grad[:, :, n_q:], 0.0)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("d", [1, 64, 200])
def test_head_dims(d, is_causal, problem):
    arrays = problem(150, d=d, value_dim=3, lead=(2,))
    got = cb.exact_attention_backward(*arrays, is_causal=is_causal)
    check(got, oracle(*arrays, is_causal=is_causal, scale=d**-0.5))


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("spread", [1.0, 8.0])
def test_float32_is_as_good_as_plain_float32(spread, is_causal, problem):
    arrays = problem(1500, d=64, lead=(2,), dtype=np.float32, spread=spread)
    got = cb.exact_attention_backward(*arrays, is_causal=is_causal)
    plain = dense(*arrays, is_causal=is_causal, scale=1 / 8)
    want = oracle(*arrays, is_causal=is_causal, scale=1 / 8)
    for name, one, other, right in zip(NAMES, got, plain, want, strict=True):
        assert one.dtype == other.dtype == np.float32
        assert np.linalg.norm(one - right) <= 3 * np.linalg.norm(other - right), name


def test_the_gradient_is_the_slope(problem):
    query, key, value, grad = problem(40, lead=(), value_dim=5)
    grads = cb.exact_attention_backward(query, key, value, grad, is_causal=True)
    rng = np.random.default_rng(1)
    for name, array, slope in zip(NAMES, (query, key, value), grads, strict=True):
        direction = rng.normal(size=array.shape)
        losses = [
            np.vdot(
                grad,
                cb.exact_attention(
                    **{
                        **dict(zip(NAMES, (query, key, value), strict=True)),
                        name: array + step * direction,
                    },
                    is_causal=True,
                ),
            )
            for step in (1e-5, -1e-5)
        ]
        assert abs((losses[0] - losses[1]) / 2e-5 / np.vdot(slope, direction) - 1) < 1e-7, name


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_query_heads_that_share_keys_are_summed(kv_heads, is_causal, problem):
    arrays = problem(70, lead=(2, 6), kv_heads=kv_heads)
    got = cb.exact_attention_backward(*arrays, is_causal=is_causal, enable_gqa=True)
    check(got, oracle(*arrays, is_causal=is_causal, scale=8**-0.5))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_small_types_are_computed_in_float32(dtype, problem):
    arrays = [array.astype(dtype) for array in problem(90)]
    got = cb.exact_attention_backward(*arrays, is_causal=True)
    want = cb.exact_attention_backward(*(a.astype(np.float32) for a in arrays), is_causal=True)
    for one, right in zip(got, want, strict=True):
        assert one.dtype == dtype
        np.testing.assert_array_equal(one, right.astype(dtype))
        assert np.any(one)


def test_any_layout(problem):
    arrays = problem(300, lead=(2, 3), value_dim=5)
    want = cb.exact_attention_backward(*arrays, is_causal=True)
    order = (3, 1, 2, 0)
    layouts = [
        [np.asfortranarray(array) for array in arrays],
        [np.ascontiguousarray(array.transpose(order)).transpose(order) for array in arrays],
        [np.ascontiguousarray(array[..., ::-1, ::-1])[..., ::-1, ::-1] for array in arrays],
        [np.repeat(array, 2, axis=-1)[..., ::2] for array in arrays],
    ]
    for moved in layouts:
        check(cb.exact_attention_backward(*moved, is_causal=True), want)
    ones = np.broadcast_to(np.ones(5), arrays[3].shape)  # of the sum of all outputs
    got = cb.exact_attention_backward(*arrays[:3], ones, is_causal=True)
    check(got, cb.exact_attention_backward(*arrays[:3], ones.copy(), is_causal=True), bound=0)


@pytest.mark.parametrize("lead", [(), (6,), (1, 3, 2), (3, 1, 2, 1)])
def test_leading_dimensions(lead, problem):
    arrays = problem(30, lead=(6,))
    want = cb.exact_attention_backward(*arrays)
    if not lead:
        arrays, want = [array[0] for array in arrays], [grad[0] for grad in want]
    got = cb.exact_attention_backward(*(array.reshape(*lead, 30, 8) for array in arrays))
    for one, right in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, right.reshape(*lead, 30, 8))


@pytest.mark.parametrize("is_causal", [True, False])
def test_bitwise_the_same_for_any_number_of_threads(is_causal, problem):
    for lead, kv_heads in [((), None), ((2, 4), 2), ((1, 9), None)]:
        arrays = problem(900, lead=lead, kv_heads=kv_heads, dtype=np.float32)
        call = {"is_causal": is_causal, "enable_gqa": kv_heads is not None}
        want = cb.exact_attention_backward(*arrays, **call, num_threads=1)
        for threads in (2, 3, 7):
            got = cb.exact_attention_backward(*arrays, **call, num_threads=threads)
            for one, right in zip(got, want, strict=True):
                assert np.any(right)
                np.testing.assert_array_equal(one, right)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize(("n_q", "n_kv", "lead"), [(4, 0, (2,)), (0, 4, (2,)), (5, 5, (0, 2))])
def test_nothing_to_sum(n_q, n_kv, lead, is_causal, problem):
    arrays = problem(n_q, n_kv=n_kv, lead=lead)
    for grad, array in zip(
        cb.exact_attention_backward(*arrays, is_causal=is_causal), arrays[:3], strict=True
    ):
        np.testing.assert_array_equal(grad, np.zeros_like(array))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logits_of_any_size(dtype, problem):
    arrays = problem(100, d=4, lead=(), dtype=dtype, spread=1e4)
    got = cb.exact_attention_backward(*arrays, is_causal=True)
    plain = dense(*arrays, is_causal=True, scale=0.5)
    want = oracle(*arrays, is_causal=True, scale=0.5)
    for one, other, right in zip(got, plain, want, strict=True):
        assert np.isfinite(one).all()
        error = np.linalg.norm(one - right)
        # Against plain sums, where those err at all, and against their unit of rounding.
        assert error <= 3 * np.linalg.norm(other - right) + 1e5 * np.finfo(dtype).eps * (
            np.linalg.norm(right)
        )


def test_values_near_the_largest_number(problem):
    query, key, value, grad = problem(300, lead=(), dtype=np.float32)
    huge = np.float32(2.0**125)
    want = cb.exact_attention_backward(query, key, value, grad * np.float32(2.0**-30))
    got = cb.exact_attention_backward(query, key, value * huge, grad * np.float32(2.0**-30))
    for one, right, factor in zip(got, want, (huge, huge, np.float32(1)), strict=True):
        assert np.any(right)
        np.testing.assert_allclose(one, right * factor, rtol=1e-3, atol=1e-4 * np.abs(one).max())


def test_a_constant_added_to_the_logits_has_no_gradient(problem):
    query, _, value, grad = problem(80)
    same = np.broadcast_to(np.ones(8), query.shape)
    grad_query, grad_key, grad_value = cb.exact_attention_backward(query, same, value, grad)
    np.testing.assert_allclose(grad_query, np.zeros_like(query), atol=1e-13)
    assert np.any(np.abs(grad_key) > 1e-3)
    np.testing.assert_allclose(grad_value[..., :1, :], grad.mean(axis=-2, keepdims=True))


def test_an_offset_of_the_logits_costs_no_accuracy(problem):
    """Sums of weights of e^10000 have a log that float32 rounds by 4e-4."""
    _, key, value, grad = problem(150, d=1, lead=(), dtype=np.float32)
    arrays = np.ones_like(key), np.float32(1e4) + np.round(2 * key), value, grad
    got = cb.exact_attention_backward(*arrays, scale=1.0)
    want = oracle(*arrays, is_causal=False, scale=1.0)
    for one, right in zip(got[1:], want[1:], strict=True):
        assert np.linalg.norm(one - right) <= 5e-6 * np.linalg.norm(right)


def test_the_future_has_no_gradient(problem):
    query, key, value, grad = problem(300, lead=())
    grad[200:] = 0
    for result in cb.exact_attention_backward(query, key, value, grad, is_causal=True):
        np.testing.assert_array_equal(result[200:], 0.0)
        assert np.all(np.any(result[1:200], axis=-1))


MEMORY = """
import resource
import numpy as np
import convbasis as cb

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

arrays = np.random.default_rng(0).normal(size=(4, 8192, 16)).astype(np.float32)
cb.exact_attention_backward(*arrays[:, :256], is_causal=True, num_threads=2)
before = peak()
assert all(map(np.any, cb.exact_attention_backward(*arrays, is_causal=True, num_threads=2)))
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="units of the peak are those of Linux")
def test_memory_is_that_of_the_arrays():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 40  # MiB; an array has 0.5, n x n numbers would take 256


GOOD = dict(zip((*NAMES, "grad_output"), np.ones((4, 2, 3, 5, 4)), strict=True))


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("grad_output", [[1.0]], TypeError),
        ("grad_output", None, TypeError),
        ("grad_output", np.ones((2, 3, 5, 4), np.float32), TypeError),
        ("grad_output", np.ones(4), ValueError),
        ("grad_output", np.ones((2, 3, 5, 3)), ValueError),
        ("grad_output", np.ones((2, 3, 4, 4)), ValueError),
        ("grad_output", np.ones((6, 5, 4)), ValueError),
        ("grad_output", np.full((2, 3, 5, 4), np.nan), ValueError),
        ("query", np.full((2, 3, 5, 4), np.inf), ValueError),
        ("query", np.ones((2, 3, 5, 0)), ValueError),
        ("key", np.ones((2, 1, 5, 4)), ValueError),
        ("value", np.ones((2, 3, 6, 4)), ValueError),
        ("attn_mask", np.ones((5, 5), bool), NotImplementedError),
        ("dropout_p", 0.1, NotImplementedError),
        ("is_causal", 1, TypeError),
        ("scale", np.nan, ValueError),
        ("enable_gqa", 0, TypeError),
        ("check_finite", 1, TypeError),
        ("num_threads", 0, ValueError),
    ],
)
def test_errors(argument, value, error):
    with pytest.raises(
        error,
        match=rf"(?s)^\[exact_attention_backward\] {argument} .*; expected .*; got .*$",
    ):
        cb.exact_attention_backward(**{**GOOD, argument: value})


@pytest.mark.parametrize("check_finite", [True, False])
def test_logits_that_overflow_are_refused(check_finite):
    huge = np.full((3, 4), 1e30, np.float32)
    with pytest.raises(ValueError, match=r"^\[exact_attention_backward\] query has logits .*; exp"):
        cb.exact_attention_backward(huge, huge, huge, huge, check_finite=check_finite)


def test_nan_spreads_when_it_is_not_looked_for(problem):
    arrays = problem(20, lead=())
    arrays[3][4, 2] = np.nan
    grad_query, *_ = cb.exact_attention_backward(*arrays, is_causal=True, check_finite=False)
    assert np.isnan(grad_query[4]).all()
    assert np.isfinite(grad_query[:4]).all()


def test_the_order_of_arguments_is_that_of_the_forward_pass():
    names = list(inspect.signature(cb.exact_attention_backward).parameters)
    forward = list(inspect.signature(cb.exact_attention).parameters)
    assert names[:7] == [*forward[:3], "grad_output", *forward[3:6]]
