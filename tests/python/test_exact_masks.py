"""exact_attention and its gradients with masks, against the oracle with their matrices."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import convbasis as cb
from convbasis import _core, masks, reference

KINDS = [name for name in masks.__all__ if name not in ("Mask", "KeyLists")]
SIZES = [(1, 1), (2, 5), (7, 2), (63, 65), (64, 64), (65, 127), (130, 129), (300, 128), (127, 300)]


def random_mask(kind, n_q, n_kv, seed=0):
    """A mask that has rows which see nothing, and others which see much, where its kind allows."""
    rng = np.random.default_rng(seed)
    if kind == "Causal":
        return masks.Causal()
    if kind == "RowWindow":
        start, stop = np.sort(rng.integers(0, n_kv + 1, size=(2, n_q)), axis=0)
        return masks.RowWindow(start, np.where(rng.random(n_q) < 0.2, start, stop))
    if kind == "RowChange":
        dense = np.zeros((n_q, n_kv), dtype=bool)
        dense[0] = rng.random(n_kv) < 0.5
        for row in range(1, n_q):
            dense[row] = dense[row - 1] ^ (rng.random(n_kv) < 0.05)
        dense[n_q // 3 : n_q // 3 + 3] = False
        step = np.diff(dense.astype(int), axis=0)
        added = [np.flatnonzero(row > 0) for row in step]
        return masks.RowChange(
            np.flatnonzero(dense[0]), added, [np.flatnonzero(row < 0) for row in step]
        )
    if kind == "SlidingWindow":
        return masks.SlidingWindow(int(rng.integers(1, n_kv + 2)))
    if kind == "Longformer":
        longest = max(n_q, n_kv)
        tokens = rng.choice(longest, size=min(int(rng.integers(0, 6)), longest), replace=False)
        return masks.Longformer(int(rng.integers(1, 40)), tokens)
    by_row = kind == "DistinctRows"
    patterns = rng.random((4, n_kv if by_row else n_q)) < [[0.5], [0.0], [0.02], [1.0]]
    return getattr(masks, kind)(rng.integers(0, 4, size=n_q if by_row else n_kv), patterns)


def check(arrays, mask, row_error, tolerance=1e-12, is_causal=False, **call):
    """Output, lse and gradients are those of the oracle with the matrix of the mask."""
    query, key, value, grad_output = arrays
    dense = mask.to_dense(query.shape[-2], key.shape[-2])
    out, lse = cb.exact_attention(
        query, key, value, mask, is_causal=is_causal, return_lse=True, **call
    )
    want, want_lse = reference.attention(query, key, value, mask=dense, is_causal=is_causal, **call)
    assert row_error(out, want) <= tolerance
    np.testing.assert_allclose(lse, want_lse, rtol=tolerance, atol=tolerance)
    seen = dense & np.tri(*dense.shape, dtype=bool) if is_causal else dense
    blind = ~seen.any(axis=1)
    assert not out[..., blind, :].any()
    assert np.isneginf(lse[..., blind]).all()
    got = cb.exact_attention_backward(*arrays, mask, is_causal=is_causal, **call)
    wanted = reference.attention_backward(*arrays, mask=dense, is_causal=is_causal, **call)
    for grad, right in zip(got, wanted, strict=True):
        assert grad.dtype == query.dtype
        size = np.linalg.norm(right) + np.linalg.norm(grad_output)
        assert np.linalg.norm(grad - right) <= 10 * tolerance * size
    assert not got[0][..., blind, :].any()
    assert not got[1][..., ~seen.any(axis=0), :].any()
    assert not got[2][..., ~seen.any(axis=0), :].any()


@pytest.fixture
def problem(qkv):
    """Query, key, value and the gradient of the output."""

    def make(n_q, n_kv, d=5, value_dim=3, **call):
        arrays = qkv(n_q, d, n_kv=n_kv, value_dim=value_dim, **call)
        shape = (*arrays[0].shape[:-1], value_dim)
        grad = np.random.default_rng(9).normal(size=shape).astype(arrays[0].dtype)
        return (*arrays, grad)

    return make


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_nasty_sizes(kind, sizes, is_causal, problem, row_error):
    for seed in range(3):
        mask = random_mask(kind, *sizes, seed)
        check(problem(*sizes, lead=(2,), seed=seed), mask, row_error, is_causal=is_causal)


@pytest.mark.parametrize("kind", KINDS)
def test_joined_with_causal_in_both_ways(kind, problem):
    arrays = problem(90, 100)
    mask = random_mask(kind, 90, 100, 4)
    joined = mask & masks.Causal()
    for one, other in zip(
        (
            cb.exact_attention(*arrays[:3], mask, is_causal=True),
            *cb.exact_attention_backward(*arrays, mask, is_causal=True),
        ),
        (cb.exact_attention(*arrays[:3], joined), *cb.exact_attention_backward(*arrays, joined)),
        strict=True,
    ):
        # A window or a RowChange that was cut is described in another way, so rounding may differ.
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-13)
        assert one.any()


@pytest.mark.parametrize("kind", KINDS)
def test_shared_heads_strides_and_types(kind, problem, row_error):
    mask = random_mask(kind, 140, 150, 5)
    arrays = problem(140, 150, lead=(2, 4), kv_heads=2)
    check(arrays, mask, row_error, enable_gqa=True, scale=0.3)
    check([array[..., ::-1, ::-1] for array in arrays], mask, row_error, enable_gqa=True)
    check([np.asfortranarray(array) for array in arrays], mask, row_error, enable_gqa=True)
    single = [array.astype(np.float32) for array in arrays]
    check(single, mask, row_error, tolerance=1e-5, enable_gqa=True)
    half = cb.exact_attention(
        *(array.astype(np.float16) for array in arrays[:2]),
        arrays[2].astype(np.float16),
        mask,
        enable_gqa=True,
    )
    assert half.dtype == np.float16
    want = cb.exact_attention(*single[:3], mask, enable_gqa=True)
    assert np.linalg.norm(half - want) <= 5e-3 * np.linalg.norm(want)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_change_nothing(kind, problem):
    mask = random_mask(kind, 700, 600, 6)
    arrays = problem(700, 600, lead=(1, 2), d=8, dtype=np.float32)
    one, *others = [
        (
            cb.exact_attention(*arrays[:3], mask, num_threads=threads),
            *cb.exact_attention_backward(*arrays, mask, num_threads=threads),
        )
        for threads in (1, 2, 5)
    ]
    for other in others:
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_matrix_of_any_mask(data):
    n_q, n_kv = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 140))
    bits = st.lists(st.booleans(), min_size=n_q * n_kv, max_size=n_q * n_kv)
    dense = np.reshape(data.draw(bits), (n_q, n_kv))
    step = np.diff(dense.astype(int), axis=0)
    added = [np.flatnonzero(row > 0) for row in step]
    removed = [np.flatnonzero(row < 0) for row in step]
    same = [
        masks.RowChange(np.flatnonzero(dense[0]), added, removed),
        masks.DistinctRows(np.arange(n_q), dense),
        masks.DistinctColumns(np.arange(n_kv), dense.T),
    ]
    is_causal = data.draw(st.booleans())
    rng = np.random.default_rng(0)
    query, key, value = (rng.normal(size=(n, 4)) for n in (n_q, n_kv, n_kv))
    want, _ = reference.attention(query, key, value, mask=dense, is_causal=is_causal)
    for mask in same:
        out = cb.exact_attention(query, key, value, mask, is_causal=is_causal)
        np.testing.assert_allclose(out, want, rtol=1e-12, atol=1e-13)


def test_a_mask_of_everything_and_one_of_nothing(qkv):
    query, key, value = qkv(100)
    everything = cb.exact_attention(query, key, value)
    for mask in (masks.SlidingWindow(100), masks.RowWindow([0] * 100, [100] * 100)):
        np.testing.assert_array_equal(cb.exact_attention(query, key, value, mask), everything)
    none = masks.RowWindow([7] * 100, [7] * 100)
    out, lse = cb.exact_attention(query, key, value, none, return_lse=True)
    assert not out.any()
    assert np.isneginf(lse).all()
    for grad in cb.exact_attention_backward(query, key, value, value, none):
        assert not grad.any()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "Causal"])
def test_hidden_logits_may_be_anything(kind, qkv):
    # Not even their overflow or a NaN among them is seen; values are another matter.
    n = 150
    mask = random_mask(kind, n, n, 8)
    dense = mask.to_dense(n, n)
    query, key, value = qkv(n, lead=())
    dense[:, 20] = False
    hidden = masks.DistinctRows(np.arange(n), dense)
    want = cb.exact_attention(query, key, value, hidden)
    for number in (1e200, np.nan):
        key[20] = number
        got = cb.exact_attention(query, key, value, hidden, check_finite=False)
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind", KINDS)
def test_listed_rows(kind, qkv, row_error):
    n_q, n_kv, batch, heads = 400, 2500, 2, 3
    mask = random_mask(kind, n_q, n_kv, 3)
    query, key, value = qkv(n_q, n_kv=n_kv, lead=(batch, heads))
    rows = np.random.default_rng(1).integers(0, n_q, size=(batch, heads, 40))
    out, lse = np.empty((batch, heads, 40, 8)), np.empty((batch, heads, 40))
    _core.attention_rows(query, key, value, rows, out, lse, 0.5, *mask._native()[::-1], None, 2)
    every, every_lse = cb.exact_attention(query, key, value, mask, scale=0.5, return_lse=True)
    assert row_error(out, np.take_along_axis(every, rows[..., None], axis=2)) <= 1e-13
    np.testing.assert_allclose(lse, np.take_along_axis(every_lse, rows, axis=2), rtol=1e-13)


CALLS = [
    lambda mask: cb.exact_attention(*np.ones((3, 5, 4)), mask),
    lambda mask: cb.exact_attention_backward(*np.ones((4, 5, 4)), mask),
]


@pytest.mark.parametrize("call", CALLS)
def test_masks_that_do_not_fit(call):
    for mask in (
        masks.RowWindow([0], [1]),
        masks.RowWindow([0] * 5, [6] * 5),
        masks.RowChange([5], [[]] * 4, [[]] * 4),
        masks.DistinctRows([0] * 5, np.ones((1, 6), bool)),
        masks.DistinctColumns([0] * 4, np.ones((1, 5), bool)),
        masks.Longformer(1, [5]),
    ):
        with pytest.raises(
            ValueError,
            match=r"^\[exact_attention\w*\] mask \w+ does not fit .*; expected .*; got \d+$",
        ):
            call(mask)


@pytest.mark.parametrize("call", CALLS)
def test_what_is_no_mask_is_refused(call):
    for other in (np.ones((5, 5), bool), np.zeros((5, 5)), True, masks.SlidingWindow):
        with pytest.raises(
            NotImplementedError,
            match=r"attn_mask is no mask with structure; expected None or one of convbasis.masks "
            r"\(Causal, .*Longformer.*\); got",
        ):
            call(other)


@pytest.mark.parametrize("function", ["conv_attention", "conv_attention_backward"])
def test_attention_through_strips_names_what_takes_masks(function):
    arrays = np.ones((3 + function.endswith("backward"), 5, 4))
    with pytest.raises(NotImplementedError, match="exact_attention takes a mask of convbasis"):
        getattr(cb, function)(*arrays, masks.SlidingWindow(3))


@pytest.mark.parametrize(
    ("mask", "error"),
    [
        (("Unknown",), ValueError),
        (("SlidingWindow", 0), ValueError),
        (("SlidingWindow",), IndexError),
        (("RowWindow", [0] * 5, [1] * 5), TypeError),
        (("RowWindow", np.zeros(5, np.int32), np.zeros(5, np.int32)), TypeError),
        (("RowWindow", np.zeros(10, np.int64)[::2], np.zeros(5, np.int64)), ValueError),
        (("DistinctRows", np.zeros(5, np.int64), np.ones((1, 5))), TypeError),
        (("RowChange", *[np.zeros(n, np.int64) for n in (2, 0, 5, 0, 5)]), ValueError),
    ],
)
def test_the_core_checks_too(mask, error):
    arrays = np.ones((4, 1, 1, 5, 4))
    with pytest.raises(error):
        _core.exact_attention(*arrays, None, 1.0, False, mask, None, 1)
