"""Masks with structure: what they mean, what they refuse, and how they join."""

import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import convbasis as cb
from convbasis import masks, reference

SIZES = [(0, 0), (0, 3), (1, 1), (1, 5), (2, 3), (7, 7), (16, 17), (33, 31), (31, 65)]
KINDS = [
    "Causal",
    "RowWindow",
    "RowChange",
    "DistinctRows",
    "DistinctColumns",
    "SlidingWindow",
    "Longformer",
]


def changes(dense):
    """The arguments of RowChange for a matrix."""
    step = np.diff(dense.astype(int), axis=0)
    added = [np.flatnonzero(row > 0) for row in step]
    return np.flatnonzero(dense[0]), added, [np.flatnonzero(row < 0) for row in step]


def make(kind, n_q, n_kv, seed=0):
    """A random mask, and its matrix entry by entry from the definition."""
    rng = np.random.default_rng(seed)
    i, j = np.arange(n_q)[:, None], np.arange(n_kv)[None, :]
    if kind == "Causal":
        return masks.Causal(), j <= i
    if kind == "RowWindow":
        start, stop = np.sort(rng.integers(0, n_kv + 1, size=(2, n_q)), axis=0)
        return masks.RowWindow(start, stop), (start[:, None] <= j) & (j < stop[:, None])
    if kind == "RowChange":
        dense = rng.random((n_q, n_kv)) < rng.random((n_q, 1)) * 0.6
        for row in range(1, n_q):  # few changes: most entries are those of the row before
            same = rng.random(n_kv) < 0.9
            dense[row, same] = dense[row - 1, same]
        dense[n_q // 2] = False  # sees nothing
        return masks.RowChange(*changes(dense)), dense
    if kind == "SlidingWindow":
        size = int(rng.integers(1, 9))
        return masks.SlidingWindow(size), abs(i - j) < size
    if kind == "Longformer":
        longest = max(n_q, n_kv)
        tokens = rng.choice(longest, size=min(3, longest), replace=False)
        dense = (abs(i - j) < 4) | np.isin(i, tokens) | np.isin(j, tokens)
        return masks.Longformer(4, tokens), dense
    patterns = rng.random((4, n_kv if kind == "DistinctRows" else n_q)) < 0.5
    patterns[1] = False
    which = rng.integers(0, 4, size=n_q if kind == "DistinctRows" else n_kv)
    dense = patterns[which]
    if kind == "DistinctRows":
        return masks.DistinctRows(which, patterns), dense
    return masks.DistinctColumns(which, patterns), dense.T


def sizes(kind):
    return [(n_q, n_kv) for n_q, n_kv in SIZES if n_q or kind != "RowChange"]


CASES = [(kind, n_q, n_kv) for kind in KINDS for n_q, n_kv in sizes(kind)]


@pytest.mark.parametrize(("kind", "n_q", "n_kv"), CASES)
def test_to_dense(kind, n_q, n_kv):
    mask, want = make(kind, n_q, n_kv)
    got = mask.to_dense(n_q, n_kv)
    assert got.dtype == np.bool_
    assert got.shape == (n_q, n_kv)
    np.testing.assert_array_equal(got, want)
    got[...] = True  # a matrix of the caller's own
    np.testing.assert_array_equal(mask.to_dense(n_q, n_kv), want)


@pytest.mark.parametrize(("kind", "n_q", "n_kv"), CASES)
def test_every_mask_joins_causal(kind, n_q, n_kv):
    mask, dense = make(kind, n_q, n_kv, seed=1)
    want = dense & np.tri(n_q, n_kv, dtype=bool)
    for joined in (mask & masks.Causal(), masks.Causal() & mask):
        np.testing.assert_array_equal(joined.to_dense(n_q, n_kv), want)
        assert joined & masks.Causal() == joined
        assert type(joined) is type(mask)


@pytest.mark.parametrize(("kind", "n_q", "n_kv"), CASES)
def test_seen_keys_are_those_of_the_matrix(kind, n_q, n_kv):
    for seed in range(3):
        mask, dense = make(kind, n_q, n_kv, seed)
        assert (mask._seen_keys(n_q, n_kv) == dense.any(axis=0)).all()
        joined = mask & masks.Causal()
        dense = dense & np.tri(n_q, n_kv, dtype=bool)
        assert (joined._seen_keys(n_q, n_kv) == dense.any(axis=0)).all()


@pytest.mark.parametrize("one", ["RowWindow", "SlidingWindow"])
@pytest.mark.parametrize("other", ["RowWindow", "SlidingWindow"])
@pytest.mark.parametrize("seed", range(5))
def test_windows_join_windows(one, other, seed):
    (first, a), (second, b) = make(one, 17, 16, seed), make(other, 17, 16, seed + 10)
    np.testing.assert_array_equal((first & second).to_dense(17, 16), a & b)
    causal = first & masks.Causal() & second
    np.testing.assert_array_equal(causal.to_dense(17, 16), a & b & np.tri(17, 16, dtype=bool))


def test_masks_without_a_joint_structure_say_so():
    rows, change = make("DistinctRows", 7, 7)[0], make("RowChange", 7, 7)[0]
    with pytest.raises(
        NotImplementedError, match=r"\[Mask\] .*; expected .*; got Distinct.* & Row"
    ):
        _ = rows & change
    with pytest.raises(TypeError, match="unsupported operand"):
        _ = rows & True


@pytest.mark.parametrize("kind", KINDS)
def test_every_mask_works_in_exact_attention(kind):
    n_q, n_kv = 9, 7
    rng = np.random.default_rng(5)
    query, key, value = (rng.normal(size=(n, 3)) for n in (n_q, n_kv, n_kv))
    mask, dense = make(kind, n_q, n_kv)
    out, lse = reference.attention(query, key, value, mask=mask.to_dense(n_q, n_kv))
    for row, seen in enumerate(dense):
        weights = np.exp(key[seen] @ query[row] / np.sqrt(3.0))
        if seen.any():
            np.testing.assert_allclose(out[row], weights @ value[seen] / weights.sum(), rtol=1e-12)
            np.testing.assert_allclose(lse[row], np.log(weights.sum()), rtol=1e-12, atol=1e-12)
        else:
            assert not out[row].any()
            assert lse[row] == -np.inf
    causal, _ = reference.attention(query, key, value, mask=dense, is_causal=True)
    joined = (mask & masks.Causal()).to_dense(n_q, n_kv)
    np.testing.assert_array_equal(reference.attention(query, key, value, mask=joined)[0], causal)


# --- values --------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_values(kind):
    mask, again = make(kind, 16, 17)[0], make(kind, 16, 17)[0]
    assert mask == again
    assert hash(mask) == hash(again)
    assert len({mask, again, pickle.loads(pickle.dumps(mask))}) == 1
    assert mask != "mask"
    for other in KINDS:
        if other != kind:
            assert mask != make(other, 16, 17)[0]
    if kind != "Causal":
        assert mask != make(kind, 16, 17, seed=7)[0]
        assert mask != mask & masks.Causal()


@pytest.mark.parametrize("kind", KINDS)
def test_masks_cannot_be_changed(kind):
    mask, _ = make(kind, 16, 17)
    for name, value in vars(mask).items():
        with pytest.raises(AttributeError):
            setattr(mask, name, value)
        for array in value if isinstance(value, tuple) else (value,):
            if isinstance(array, np.ndarray):
                with pytest.raises(ValueError, match="read-only"):
                    array[...] = 0


def test_masks_keep_nothing_of_the_callers():
    start, patterns = np.array([0, 1]), np.ones((1, 2), dtype=bool)
    window, rows = masks.RowWindow(start, [2, 2]), masks.DistinctRows([0, 0], patterns)
    start[:], patterns[:] = 2, False
    assert window.to_dense(2, 2).sum() == 3
    assert rows.to_dense(2, 2).all()


def test_repr():
    assert repr(masks.Causal()) == "Causal()"
    assert repr(masks.SlidingWindow(3)) == "SlidingWindow(size=3)"
    causal = masks.Longformer(3, [5, 1]) & masks.Causal()
    assert repr(causal) == "Longformer(window=3, global_tokens=[1, 5], is_causal=True)"
    change = masks.RowChange([2], [[1]], [[]])
    assert repr(change) == (
        "RowChange(first_row=[2], added=KeyLists(keys=[1], offsets=[0, 1]), "
        "removed=KeyLists(keys=[], offsets=[0, 0]))"
    )
    long = repr(masks.RowWindow(np.zeros(10**5, int), np.arange(10**5)))
    assert long == "RowWindow(start=[0, 0, ..., 0, 0], stop=[0, 1, ..., 99998, 99999])"


def test_memory_is_linear():
    n = 20_000
    tracemalloc.start()
    window = masks.RowWindow(np.zeros(n, int), np.arange(n))
    step = masks.KeyLists(np.arange(1, n), np.arange(n))
    change = masks.RowChange([0], step, masks.KeyLists(np.arange(n - 1), np.arange(n)))
    found = [window & masks.SlidingWindow(5), change & masks.Causal(), hash(change)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found[1] == change
    assert change.num_changes == 2 * n - 1
    assert peak < 100 * 8 * n < n * n / 4


# --- row changes ---------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_row_changes_of_any_matrix(data):
    n_q, n_kv = data.draw(st.integers(1, 8)), data.draw(st.integers(0, 8))
    bits = data.draw(st.lists(st.booleans(), min_size=n_q * n_kv, max_size=n_q * n_kv))
    dense = np.array(bits, dtype=bool).reshape(n_q, n_kv)
    change = masks.RowChange(*changes(dense))
    np.testing.assert_array_equal(change.to_dense(n_q, n_kv), dense)
    flips = np.diff(dense.astype(int), axis=0, prepend=0)
    assert change.num_changes == np.abs(flips).sum()
    causal = dense & np.tri(n_q, n_kv, dtype=bool)
    joined = change & masks.Causal()
    assert joined == masks.RowChange(*changes(causal))
    assert joined.num_changes <= change.num_changes + 2 * n_q


def test_lists_and_key_lists_are_the_same():
    lists = masks.RowChange([0], [[4, 2], []], [[], [2]])
    flat = masks.RowChange([0], masks.KeyLists([2, 4], [0, 2, 2]), masks.KeyLists([2], [0, 0, 1]))
    assert lists == flat
    assert lists.num_rows == 3


# --- refusals ------------------------------------------------------------------

REFUSALS = [
    (lambda: masks.RowWindow([0, 3], [1, 2]), ValueError, "stop is before start in row 1"),
    (lambda: masks.RowWindow([0], [1, 2]), ValueError, "stop does not match start"),
    (lambda: masks.RowWindow([-1], [1]), ValueError, "start has no index"),
    (lambda: masks.RowWindow([0.0], [1]), TypeError, "start is not made of integers"),
    (lambda: masks.RowWindow([[0]], [1]), ValueError, "start is not one-dimensional"),
    (lambda: masks.RowWindow([0], np.array([2**63], np.uint64)), ValueError, "stop has no index"),
    (lambda: masks.SlidingWindow(0), ValueError, "size is too small"),
    (lambda: masks.SlidingWindow(1.0), TypeError, "size is not an integer"),
    (lambda: masks.SlidingWindow(1, is_causal=1), TypeError, "is_causal is not a bool"),
    (lambda: masks.Longformer(0, []), ValueError, "window is too small"),
    (lambda: masks.Longformer(1, [2, 2]), ValueError, "global_tokens names an index twice"),
    (lambda: masks.DistinctRows([0], [[1]]), TypeError, "patterns is not made of bools"),
    (lambda: masks.DistinctRows([0], [True]), ValueError, "patterns is no list of patterns"),
    (lambda: masks.DistinctRows([1], [[True]]), ValueError, "pattern_of_row names a pattern that"),
    (lambda: masks.DistinctColumns([1], [[True]]), ValueError, "pattern_of_column names a pattern"),
    (
        lambda: masks.RowChange([0], [[0]], [[]]),
        ValueError,
        r"added\[0\] adds key 0, which query 0",
    ),
    (lambda: masks.RowChange([0], [[]], [[1]]), ValueError, r"removed\[0\] removes key 1, which"),
    (lambda: masks.RowChange([], [[1], []], [[], [1, 1]]), ValueError, r"removed\[1\] names a key"),
    (lambda: masks.RowChange([], [[1]], [[1]]), ValueError, r"removed\[0\] removes key 1, which"),
    (lambda: masks.RowChange([0], [[0]], [[0]]), ValueError, r"added\[0\] adds key 0, which"),
    (lambda: masks.RowChange([0], [[]], []), ValueError, "removed does not match added"),
    (lambda: masks.RowChange([0, 0], [], []), ValueError, "first_row names an index twice"),
    (
        lambda: masks.RowChange([], masks.KeyLists([1], [0, 2]), [[]]),
        ValueError,
        r"added\.offsets does not cut the keys into lists",
    ),
    (lambda: masks.Causal().to_dense(-1, 1), ValueError, "n_q is too small"),
    (lambda: masks.RowWindow([0], [1]).to_dense(2, 1), ValueError, "does not fit the queries"),
    (lambda: masks.RowWindow([0], [2]).to_dense(1, 1), ValueError, "does not fit the keys"),
    (lambda: masks.RowChange([3], [], []).to_dense(1, 3), ValueError, "does not fit the keys"),
    (lambda: masks.RowChange([3], [], []).to_dense(2, 4), ValueError, "does not fit the queries"),
    (lambda: masks.DistinctRows([0], [[True]]).to_dense(1, 2), ValueError, "does not fit the keys"),
    (lambda: masks.DistinctColumns([0], [[True]]).to_dense(2, 1), ValueError, "fit the queries"),
    (lambda: masks.Longformer(1, [3]).to_dense(3, 2), ValueError, "fit the queries and keys"),
    (
        lambda: masks.RowWindow([0], [1]) & masks.RowWindow([0, 0], [1, 1]),
        ValueError,
        "does not fit the queries",
    ),
]


@pytest.mark.parametrize(("call", "error", "fault"), REFUSALS)
def test_refusals(call, error, fault):
    with pytest.raises(error, match=rf"^\[[\w.]+\] .*{fault}.*; expected .+; got .+"):
        call()


def test_a_window_beyond_every_sequence_sees_all():
    assert masks.SlidingWindow(10**40).to_dense(3, 2).all()
    window = masks.RowWindow([1, 0], [3, 2])
    assert window & masks.SlidingWindow(10**40) == window
    assert cb.masks.Longformer(2**70, []).to_dense(2, 3).all()
