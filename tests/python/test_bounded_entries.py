"""The certified range of logits and what bounded_entries makes of it."""

import json

import numpy as np
import pytest

import convbasis as cb
from convbasis import reference


def centred_logits(query, key, scale):
    query, key = query.astype(float), key.astype(float)
    return scale * query @ np.swapaxes(key - key.mean(axis=-2, keepdims=True), -1, -2)


def adversarial():
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(2, 40, 5))
    one_huge = key.copy()
    one_huge[7] = 1e30
    yield "random", query, key, None
    yield "one huge key", query, one_huge, None
    yield "equal keys", query, np.ones((40, 5)), None
    yield "one row", query[:1], key[:1], None
    yield "one channel", query[:, :1], key[:, :1], None
    yield "no scale", query, key, 0.0
    yield "negative scale", query, key, -3.0
    yield "huge", 1e15 * query, 1e15 * key, None
    yield "tiny", 1e-30 * query, 1e-5 * key, None
    yield "subnormal", 1e-3 * query, 1e-41 * key, 1.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("query", "key", "scale"),
    [case[1:] for case in adversarial()],
    ids=[case[0] for case in adversarial()],
)
def test_radius_bounds_the_logits(query, key, scale, dtype):
    query, key = query.astype(dtype), key.astype(dtype)
    found = cb.bounded_entries(query, key, scale=scale, sample_rows=10**6)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    dense = np.abs(centred_logits(query, key, scale)).max()
    noise = 1e-5 if dtype == np.float32 else 1e-13  # the mean key is rounded to the type
    size = abs(scale) * np.linalg.norm(query.astype(float), axis=1).max()
    slack = noise * size * np.linalg.norm(key.astype(float), axis=1).max()
    assert dense - slack <= found.radius
    assert dense - slack <= found.sampled_radius * (1 + 1e-9)
    assert found.sampled_radius <= dense + 2 * slack
    assert found.sampled_radius <= found.radius
    key = key.astype(float) - key.astype(float).mean(axis=0)
    cauchy = size * np.linalg.norm(key, axis=1).max()
    assert found.radius <= cauchy * (1 + 1e-5) + slack


@pytest.mark.parametrize("n", [5, 40])
def test_agrees_with_the_oracle(n):
    rng = np.random.default_rng(n)
    query, key = 0.5 * rng.normal(size=(2, n, 4))
    found, want = cb.bounded_entries(query, key), reference.bounded_entries(query, key)
    assert found.entry_bound == pytest.approx(want.entry_bound)
    assert found.balanced_entry_bound == pytest.approx(want.balanced_entry_bound)
    assert found.threshold == pytest.approx(want.threshold)
    assert found.bounded == want.bounded
    assert found.radius >= want.radius  # of single rows, from dense logits
    for degree, rank, epsilon in zip(found.degrees, found.ranks, found.epsilons, strict=True):
        best = reference.polynomial_degree(epsilon, -found.radius, found.radius)
        assert best <= degree <= best + 1
        assert rank == reference.feature_count(4, degree)


@pytest.mark.parametrize("d", [4, 8, 16, 64])
def test_standard_normal_inputs_are_on_the_wrong_side(d):
    query, key = np.random.default_rng(d).normal(size=(2, 4096, d)).astype(np.float32)
    found = cb.bounded_entries(query, key)
    assert not found.bounded
    assert "on the wrong side of sqrt(log n) = 2.88" in str(found)
    small = cb.bounded_entries(0.1 * query, 0.1 * key)
    assert small.bounded
    assert "are below sqrt(log n)" in str(small)


def test_small_entries_of_a_long_sequence_pay_and_large_ones_do_not():
    query, key = np.random.default_rng(0).normal(size=(2, 8192, 8)).astype(np.float32)
    small = cb.bounded_entries(0.2 * query, 0.2 * key)
    assert small.cheaper[0]
    assert "times as fast as exact attention" in str(small)
    large = cb.bounded_entries(4.0 * query, 4.0 * key)
    assert not large.cheaper.any()
    assert large.degrees.tolist() == large.ranks.tolist() == [-1] * 4
    assert np.all(large.polynomial_seconds == large.exact_seconds)
    assert "exact attention is cheaper" in str(large)


def test_odd_large_keys_are_taken_exactly():
    query, key = 0.2 * np.random.default_rng(0).normal(size=(2, 4096, 4))
    key[9] = 1e3
    found = cb.bounded_entries(query, key)
    assert found.degrees[0] == -1  # no polynomial covers all
    assert 0 < found.exact_shares[0] < 0.01
    assert found.cheaper[0]


def test_heads_strides_and_groups(qkv):
    query, key, _ = qkv(33, 6, lead=(2, 4), kv_heads=2, dtype=np.float32)
    found = cb.bounded_entries(query, key, enable_gqa=True)
    assert found.radius.shape == (2, 4)
    assert found.ranks.shape == (2, 4, 4)
    for b, h in np.ndindex(2, 4):
        one = cb.bounded_entries(query[b, h], key[b, h // 2])
        for name in ("entry_bound", "radius", "sampled_radius", "degrees", "polynomial_seconds"):
            np.testing.assert_array_equal(getattr(found, name)[b, h], getattr(one, name))
    turned = np.asfortranarray(query)[::-1], np.asfortranarray(key)[::-1]
    np.testing.assert_array_equal(
        cb.bounded_entries(*turned, enable_gqa=True).radius, found.radius[::-1]
    )
    assert str(found).count("\n") == 7
    assert found.to_markdown().count("\n") == 3 + 8 * 4
    assert json.loads(found.to_json()) == json.loads(json.dumps(found.to_dict()))
    assert found.to_dict()["num_keys"] == 33
    assert "of 8 heads bounded" in repr(found)


def test_threads_do_not_matter(qkv):
    query, key, _ = qkv(3000, 6, lead=(2,), dtype=np.float32)
    one, three = (cb.bounded_entries(query, key, num_threads=t) for t in (1, 3))
    assert one.to_dict() == three.to_dict()


def test_causal_and_masks(qkv):
    query, key, _ = qkv(20, 4, lead=(), n_kv=30)
    huge = key.copy()
    huge[25] = 1e9
    causal = cb.bounded_entries(query, key, is_causal=True)
    assert cb.bounded_entries(query, huge, is_causal=True).radius == causal.radius
    assert causal.exact_seconds < cb.bounded_entries(query, key).exact_seconds
    as_mask = cb.bounded_entries(query, key, attn_mask=cb.masks.Causal())
    assert as_mask.to_dict() == causal.to_dict()
    masked = cb.bounded_entries(query, key, attn_mask=cb.masks.SlidingWindow(11))
    full = cb.bounded_entries(query, key)
    assert masked.radius == full.radius
    assert masked.exact_seconds < full.exact_seconds
    narrow = cb.masks.SlidingWindow(3)  # hides keys 22 to 29
    hidden = cb.bounded_entries(query, key, attn_mask=narrow)
    assert cb.bounded_entries(query, huge, attn_mask=narrow).to_dict() == hidden.to_dict()


def test_costs_are_those_of_the_plan():
    query, key = 0.3 * np.random.default_rng(0).normal(size=(2, 4096, 8)).astype(np.float32)
    key[5] *= 30.0
    for call in ({}, {"is_causal": True}, {"attn_mask": cb.masks.SlidingWindow(900)}):
        found = cb.bounded_entries(query, key, epsilons=(0.1, 1e-3, 1e-6), **call)
        for e, epsilon in enumerate(found.epsilons):
            _, report = cb.polynomial_attention(
                query, key, key, tol=epsilon, return_report=True, **call
            )
            assert 1e-9 * report.cost_exact == pytest.approx(found.exact_seconds)
            assert bool(report.heads_exact) == (not found.cheaper[e])
            if not report.heads_exact:
                assert 1e-9 * report.cost_polynomial == pytest.approx(found.polynomial_seconds[e])


@pytest.mark.parametrize("shape", [(0, 4), (1, 4), (0, 5, 4), (2, 0, 4)])
def test_empty_inputs(shape):
    found = cb.bounded_entries(np.zeros(shape), np.zeros(shape))
    assert np.all(np.asarray(found.radius) == 0.0)
    assert isinstance(str(found), str)


def test_smaller_types_are_widened(qkv):
    query, key, _ = qkv(20, 4, lead=())
    query, key = query.astype(np.float16), key.astype(np.float16)
    want = cb.bounded_entries(query.astype(np.float32), key.astype(np.float32))
    assert cb.bounded_entries(query, key).to_dict() == want.to_dict()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"key": np.zeros((4, 2))}, ValueError, "key differs in head_dim from query"),
        ({"key": np.full((4, 3), np.nan)}, ValueError, "key has NaN or infinite entries"),
        ({"attn_mask": np.ones((4, 4), bool)}, NotImplementedError, "attn_mask is no mask"),
        ({"attn_mask": cb.masks.RowWindow([0], [1])}, ValueError, "bounded_entries"),
        ({"is_causal": 1}, TypeError, "is_causal is not a bool"),
        ({"scale": np.inf}, ValueError, "scale is not finite"),
        ({"epsilons": 0.1}, TypeError, "epsilons is no sequence"),
        ({"epsilons": (0.1, 0.0)}, ValueError, "epsilons are no errors"),
        ({"epsilons": ()}, ValueError, "epsilons are no errors"),
        ({"epsilons": (0.1, 1.0)}, ValueError, "epsilons are no errors"),
        ({"value_dim": 0}, ValueError, "value_dim is too small"),
        ({"sample_rows": -1}, ValueError, "sample_rows is too small"),
        ({"num_threads": 0}, ValueError, "num_threads is too small"),
    ],
)
def test_arguments_are_checked(change, error, message):
    arguments = {"query": np.ones((4, 3)), "key": np.ones((4, 3)), **change}
    with pytest.raises(error, match=message):
        cb.bounded_entries(arguments.pop("query"), arguments.pop("key"), **arguments)


def test_nothing_is_cheaper_where_there_is_no_polynomial(qkv):
    query, key, _ = qkv(400, d=2, lead=())
    found = cb.bounded_entries(query, key, epsilons=[1e-300])
    assert found.degrees[0] == -1
    assert not found.cheaper[0]


def test_unchecked_nan_is_unbounded(qkv):
    query, key, _ = qkv(40, d=2, lead=())
    key[7] = np.nan
    assert cb.bounded_entries(query, key, check_finite=False).radius == np.inf
