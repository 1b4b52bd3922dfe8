"""conv_attention_backward against the oracle: every shape, type, layout and schedule."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest

import convbasis as cb
from convbasis import problems

NAMES = ("query", "key", "value")
both = pytest.mark.parametrize("gradient", ["basis", "attention"])
MODEL = cb.CostModel(transform=0.1, product=0.05, direct=0.01, exact=0.04, entry=4.0)
SHORT_BLOCKS = dataclasses.replace(MODEL, direct=1e9, exact=1e9)
DIRECT = dataclasses.replace(MODEL, direct=1e-9, exact=1e-9)


@pytest.fixture(autouse=True)
def as_before():
    """Other tests see the model that was measured."""
    kept = {dtype: cb.cost_model(dtype) for dtype in ("float32", "float64")}
    yield
    for dtype, model in kept.items():
        cb.set_cost_model(model, dtype)


def check(got, want, bound=1e-13):
    """Errors of whole arrays, relative to their norms: zeros fail unless they are right."""
    for name, one, right in zip(NAMES, got, want, strict=True):
        assert one.shape == right.shape
        assert one.flags.c_contiguous
        assert np.linalg.norm(one - right) <= bound * np.linalg.norm(right), name


def check_beside_plain(head, gradient):
    """At most 3 times the error of dense formulas in the same type."""
    got = head.backward(gradient=gradient)
    plain, want = head.plain(gradient), head.oracle(gradient)
    for name, one, other, right in zip(NAMES, got, plain, want, strict=True):
        assert one.dtype == other.dtype == np.float32
        error, size = np.linalg.norm(one - right), np.linalg.norm(right)
        assert error < 0.1 * size, name
        assert error <= 3 * np.linalg.norm(other - right), name


def starts_of(n, k):
    return [r * n // k for r in range(k)]


@both
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("n", [2, 3, 5, 7, 15, 16, 17, 31, 63, 64, 65, 97, 127, 130, 257, 401])
def test_nasty_sizes(n, is_causal, gradient, strip_head):
    for k in {1, min(3, n), n if n < 100 else 50}:
        head = strip_head(n, starts_of(n, k), None if is_causal else starts_of(n, k), seed=n)
        check(head.backward(gradient=gradient), head.oracle(gradient), bound=1e-12)


@both
@pytest.mark.parametrize("is_causal", [True, False])
def test_one_row_has_no_gradient_by_its_logit(is_causal, gradient, strip_head):
    head = strip_head(1, [0], None if is_causal else [0])
    grad_query, grad_key, grad_value = head.backward(gradient=gradient)
    for grad in (grad_query, grad_key):
        np.testing.assert_allclose(grad, np.zeros((1, 6)), atol=1e-15)
    np.testing.assert_array_equal(grad_value, head.arrays[3])


@both
@pytest.mark.parametrize("n_kv", [1, 2, 50, 129, 130, 131, 400])
def test_causal_lengths_may_differ(n_kv, gradient, strip_head):
    starts = [s for s in (0, 3, 40, 100) if s < n_kv]
    head = strip_head(130, starts, n_kv=n_kv)
    got = head.backward(gradient=gradient)
    if n_kv == 1:  # one weight of 1 in every row
        for grad in got[:2]:
            np.testing.assert_allclose(grad, np.zeros_like(grad), atol=1e-13)
        np.testing.assert_allclose(got[2], head.oracle(gradient)[2])
        return
    check(got, head.oracle(gradient), bound=1e-12)
    for grad in got[1:]:
        np.testing.assert_array_equal(grad[130:], 0.0)


@both
@pytest.mark.parametrize(("starts", "upper"), [([5], None), ([20, 90], [1, 30]), ([199], [0])])
def test_columns_without_logits(starts, upper, gradient, strip_head):
    """They weigh like the logit 0, whatever their keys are: the basis has no gradient by these."""
    head = strip_head(200, starts, upper)
    got = head.backward(gradient=gradient)
    check(got, head.oracle(gradient), bound=1e-12)
    if gradient == "basis" and upper is None:
        others = np.setdiff1d(np.arange(200), starts)
        np.testing.assert_array_equal(got[1][others], 0.0)
        assert np.any(got[0][starts[0] :])
        np.testing.assert_array_equal(got[0][: starts[0]], 0.0)


@both
@pytest.mark.parametrize("value_dim", [1, 3, 16, 70])
@pytest.mark.parametrize("d", [1, 16, 70])
def test_widths(d, value_dim, gradient, strip_head):
    head = strip_head(300, [0, 60, 200], [0, 100], d=d, value_dim=value_dim)
    check(head.backward(gradient=gradient), head.oracle(gradient), bound=1e-12)


@both
@pytest.mark.parametrize("model", [MODEL, SHORT_BLOCKS, DIRECT])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_kind_of_schedule(dtype, model, gradient, strip_head):
    """Direct sums, one level, and several; near blocks of 256 rows, and nothing but near ones."""
    cb.set_cost_model(model, dtype)
    for n, n_kv, starts, upper in [
        (2100, 2100, [0, 3, 700, 1500], None),
        (1025, 1025, [2, 512], [0, 700]),
        (1300, 500, [0, 300], None),
    ]:
        head = strip_head(n, starts, upper, n_kv=n_kv, d=4, value_dim=3, dtype=dtype)
        if dtype == np.float32:
            check_beside_plain(head, gradient)
        else:
            check(head.backward(gradient=gradient), head.oracle(gradient), bound=1e-12)


@both
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("is_causal", [True, False])
def test_float32_is_as_good_as_plain_float32(is_causal, offset, seed, gradient, strip_head):
    starts = [0, 5, 400, 1100]
    upper = None if is_causal else [0, 800]
    head = strip_head(
        1500, starts, upper, d=32, value_dim=32, dtype=np.float32, offset=offset, seed=seed
    )
    check_beside_plain(head, gradient)


@both
@pytest.mark.parametrize("is_causal", [True, False])
def test_recovered_strips_are_differentiated(is_causal, gradient, oracle_basis):
    """Bases of the call's own making, in every head, with leading dimensions and shared keys."""
    rng = np.random.default_rng(3)
    problem = problems.conv_problem(200, 8, 3, batch=(2, 2), value_dim=5, seed=3)
    query = np.repeat(problem.query, 2, axis=1) * (1 + rng.random((2, 4, 1, 1)))
    key, value, scale = problem.key, problem.value, problem.scale
    grad = rng.normal(size=(2, 4, 200, 5))
    options = cb.RecoverOptions(num_bases=3)
    call = {"is_causal": is_causal, "scale": scale, "enable_gqa": True, "options": options}
    got = cb.conv_attention_backward(query, key, value, grad, gradient=gradient, **call)

    def bases(query, key):
        return oracle_basis(cb.recover_basis(query, key, scale=scale, options=options))

    want = [np.zeros_like(array) for array in (query, key, value)]
    for b, h in np.ndindex(2, 4):
        arrays = query[b, h], key[b, h // 2], value[b, h // 2], grad[b, h]
        upper = None if is_causal else bases(arrays[0][::-1], arrays[1][::-1])
        one = cb.reference.conv_attention_backward(
            bases(*arrays[:2]), *arrays, upper=upper, scale=scale, gradient=gradient
        )
        for total, at, part in zip(want, [(b, h), (b, h // 2), (b, h // 2)], one, strict=True):
            total[at] += part
    check(got, want, bound=1e-11)


@both
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_small_types_are_computed_in_float32(dtype, gradient):
    problem = problems.conv_problem(200, 8, 2, batch=(2,), dtype=np.float32)
    grad = np.random.default_rng(0).normal(size=problem.value.shape)
    arrays = [x.astype(dtype) for x in (problem.query, problem.key, problem.value, grad)]
    options = cb.RecoverOptions(num_bases=2)
    call = {
        "is_causal": True,
        "scale": problem.scale,
        "options": options,
        "gradient": gradient,
    }
    got = cb.conv_attention_backward(*arrays, **call)
    want = cb.conv_attention_backward(*(a.astype(np.float32) for a in arrays), **call)
    for one, right in zip(got, want, strict=True):
        assert one.dtype == dtype
        np.testing.assert_array_equal(one, right.astype(dtype))
        assert np.any(one)


@both
@pytest.mark.parametrize("is_causal", [True, False])
def test_any_layout(is_causal, gradient, qkv):
    query, key, value = qkv(300, lead=(2, 3), value_dim=5)
    arrays = query, key, value, np.random.default_rng(7).normal(size=value.shape)
    options = cb.RecoverOptions(num_bases=4)
    call = {"is_causal": is_causal, "options": options, "gradient": gradient}
    want = cb.conv_attention_backward(*arrays, **call)
    order = (3, 1, 2, 0)
    layouts = [
        [np.asfortranarray(array) for array in arrays],
        [np.ascontiguousarray(array.transpose(order)).transpose(order) for array in arrays],
        [np.ascontiguousarray(array[..., ::-1, ::-1])[..., ::-1, ::-1] for array in arrays],
        [np.repeat(array, 2, axis=-1)[..., ::2] for array in arrays],
    ]
    for moved in layouts:
        check(cb.conv_attention_backward(*moved, **call), want)
    ones = np.broadcast_to(np.ones(5), value.shape)  # of the sum of all outputs
    got = cb.conv_attention_backward(*arrays[:3], ones, **call)
    check(got, cb.conv_attention_backward(*arrays[:3], ones.copy(), **call), bound=0)
    folded = [array.reshape(3, 1, 2, 300, -1) for array in arrays]
    for one, right in zip(cb.conv_attention_backward(*folded, **call), want, strict=True):
        np.testing.assert_array_equal(one, right.reshape(3, 1, 2, 300, -1))


@both
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize(("n", "n_kv", "lead"), [(0, 0, (2,)), (5, 5, (0, 2)), (4, 0, (2,))])
def test_nothing_to_sum(n, n_kv, lead, is_causal, gradient, qkv):
    if not is_causal and n != n_kv:
        pytest.skip("lengths differ in causal calls only")
    arrays = qkv(n, lead=lead, n_kv=n_kv)
    grad = np.ones((*lead, n, 8))
    options = cb.RecoverOptions(num_bases=2)
    for one, array in zip(
        cb.conv_attention_backward(
            *arrays, grad, is_causal=is_causal, gradient=gradient, options=options
        ),
        arrays,
        strict=True,
    ):
        np.testing.assert_array_equal(one, np.zeros_like(array))
