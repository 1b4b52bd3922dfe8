"""The oracle's products with masked low-rank matrices, against the matrices themselves."""

import inspect
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convbasis import masks, reference

SIZES = [(0, 0), (0, 3), (1, 1), (1, 5), (5, 1), (4, 0), (7, 7), (16, 17), (33, 31), (31, 65)]


def factors(n_q, n_kv, r=4, d_v=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n_q, r)), rng.normal(size=(n_kv, r)), rng.normal(size=(n_kv, d_v))


def products(n_q, n_kv, seed=0):
    """Every structured product of random masks: name, product by the paper's method, mask."""
    rng = np.random.default_rng(seed)
    F = factors(n_q, n_kv, seed=seed)
    start, stop = np.sort(rng.integers(0, n_kv + 1, size=(2, n_q)), axis=0)
    windows = masks.RowWindow(start, stop)
    for method in ("tree", "prefix"):
        yield method, reference.row_window_product(*F, start, stop, method=method), windows
    yield "causal", reference.causal_product(*F), masks.Causal()
    size, longest = int(rng.integers(1, 9)), max(n_q, n_kv)
    tokens = rng.choice(longest, size=min(3, longest), replace=False)
    rows, of_row = rng.random((3, n_kv)) < 0.5, rng.integers(0, 3, size=n_q)
    columns, of_column = rng.random((3, n_q)) < 0.5, rng.integers(0, 3, size=n_kv)
    rows[1] = columns[1] = False
    for c in (False, True):
        causal = {"is_causal": c}
        yield (
            f"distinct rows {c}",
            reference.distinct_rows_product(*F, of_row, rows, **causal),
            masks.DistinctRows(of_row, rows, **causal),
        )
        yield (
            f"distinct columns {c}",
            reference.distinct_columns_product(*F, of_column, columns, **causal),
            masks.DistinctColumns(of_column, columns, **causal),
        )
        yield (
            f"sliding window {c}",
            reference.sliding_window_product(*F, size, **causal),
            masks.SlidingWindow(size, **causal),
        )
        yield (
            f"longformer {c}",
            reference.longformer_product(*F, size, tokens, **causal),
            masks.Longformer(size, tokens, **causal),
        )
    if n_q:
        change, lists = random_changes(rng, n_q, n_kv)
        yield "row change", reference.row_change_product(*F, *lists), change


def random_changes(rng, n_q, n_kv):
    seen = rng.random(n_kv) < 0.5
    first, added, removed = np.flatnonzero(seen), [], []
    for row in range(1, n_q):
        flips = rng.random(n_kv) < (1.0 if row == 3 else 0.1)
        if row == 2:
            flips = seen.copy()  # an empty row
        added.append(np.flatnonzero(flips & ~seen))
        removed.append(np.flatnonzero(flips & seen))
        seen = seen ^ flips
    lists = (first, added, removed)
    return masks.RowChange(*lists), lists


@pytest.mark.parametrize(("n_q", "n_kv"), SIZES)
def test_every_product_against_its_matrix(n_q, n_kv):
    F = factors(n_q, n_kv)
    for name, got, mask in products(n_q, n_kv):
        want = reference.masked_product(*F, mask.to_dense(n_q, n_kv))
        assert got.shape == want.shape == (n_q, 3)
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-11, err_msg=name)


@settings(max_examples=20, deadline=None)
@given(n_q=st.integers(0, 20), n_kv=st.integers(0, 20), seed=st.integers(0, 2**32 - 1))
def test_every_product_at_any_size(n_q, n_kv, seed):
    F = factors(n_q, n_kv, seed=seed)
    for name, got, mask in products(n_q, n_kv, seed):
        dense = mask.to_dense(n_q, n_kv)
        want = reference.masked_product(*F, dense)
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-10, err_msg=name)
        assert not got[~dense.any(axis=1)].any(), f"{name}: a row that sees nothing is exactly 0"


def test_no_product_is_that_of_another_mask():
    """The masks differ enough for a product with the wrong one to be seen."""
    F = factors(33, 31)
    full = reference.masked_product(*F, True)
    for name, got, mask in products(33, 31):
        assert np.linalg.norm(got - full) > 0.1 * np.linalg.norm(full), name
        if name != "causal":
            other = mask.to_dense(33, 31) ^ np.tri(33, 31, dtype=bool)
            assert other.any(), name


def test_the_product_by_hand():
    U1, U2, V = [[1.0, 2.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 1.0]], [[3.0], [5.0]]
    # U1 U2^T = [[1, 3], [0, 1]]
    assert reference.masked_product(U1, U2, V, True).tolist() == [[18.0], [5.0]]
    assert reference.causal_product(U1, U2, V).tolist() == [[3.0], [5.0]]
    assert reference.row_window_product(U1, U2, V, [1, 0], [2, 0]).tolist() == [[15.0], [0.0]]
    assert reference.longformer_product(U1, U2, V, 1, [0]).tolist() == [[18.0], [5.0]]


# --- cancellation --------------------------------------------------------------


def window_after_large_keys(size):
    """Windows over keys of size 1 that come after a few keys of another size."""
    U1, U2, V = factors(40, 64, seed=1)
    U1, U2, V = np.abs(U1), np.abs(U2), np.abs(V)
    U2[:8] *= size
    start = np.arange(40) + 9
    return (U1, U2, V), start, start + 10


@pytest.mark.parametrize("size", [1e4, 1e8, 1e12])
def test_prefix_sums_cancel_and_the_tree_does_not(size):
    F, start, stop = window_after_large_keys(size)
    want = reference.masked_product(*F, masks.RowWindow(start, stop).to_dense(40, 64))
    error = {
        method: np.max(
            np.abs(reference.row_window_product(*F, start, stop, method=method) / want - 1.0)
        )
        for method in ("tree", "prefix")
    }
    assert error["tree"] < 1e-14
    assert 1e-18 * size < error["prefix"] < 1e-14 * size
    assert error["prefix"] > 20 * error["tree"]


def test_row_changes_cancel_until_the_set_is_empty():
    U1, U2, V = (np.abs(array) for array in factors(3, 4))
    U2[0] *= 1e12
    exact = np.outer(U1[2] @ U2[1:3].T, [1.0])[:, 0] @ V[1:3]
    kept = reference.row_change_product(U1, U2, V, [0, 1, 2], [[], []], [[0], []])
    anew = reference.row_change_product(U1, U2, V, [0], [[], [1, 2]], [[0], []])
    assert 1e-7 < np.max(np.abs(kept[2] / exact - 1.0)) < 1e-2
    assert np.max(np.abs(anew[2] / exact - 1.0)) < 1e-14


@pytest.mark.parametrize("n_kv", [1, 2, 3, 7, 16, 33])
def test_a_window_is_few_nodes_of_the_tree(n_kv):
    from convbasis.reference.masked_product import segment_tree, window_nodes

    tree = segment_tree(np.arange(1.0, n_kv + 1))
    for start in range(n_kv + 1):
        for stop in range(start, n_kv + 1):
            nodes = window_nodes(len(tree) // 2, start, stop)
            assert sum(tree[node] for node in nodes) == sum(range(start + 1, stop + 1))
            assert len(nodes) <= max(1, 2 * np.ceil(np.log2(n_kv)))


def test_no_product_forms_a_square_matrix():
    n, r = 1500, 2
    F = factors(n, n, r=r, d_v=1)
    row = np.arange(n)
    step = [[i] for i in range(1, n)]
    calls = {
        "causal": lambda: reference.causal_product(*F),
        "window": lambda: reference.row_window_product(*F, row // 2, row),
        "change": lambda: reference.row_change_product(*F, [0], step, [[]] * (n - 1)),
        "rows": lambda: reference.distinct_rows_product(*F, row % 2, np.ones((2, n), bool)),
        "columns": lambda: reference.distinct_columns_product(*F, row % 2, np.ones((2, n), bool)),
        "longformer": lambda: reference.longformer_product(*F, 9, [0, 7]),
    }
    for name, call in calls.items():
        tracemalloc.start()
        call()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < n * n / 2, name


# --- attention -----------------------------------------------------------------


@pytest.mark.parametrize("is_causal", [False, True])
def test_the_product_with_ones_is_polynomial_attention(is_causal):
    """Numerators and row sums in one product, for a mask with empty rows and n_q != n_kv."""
    n_q, n_kv, degree = 21, 17, 4
    rng = np.random.default_rng(2)
    query, key, value = (rng.normal(size=(n, 2)) for n in (n_q, n_kv, n_kv))
    start = np.minimum(np.arange(n_q), n_kv)
    windows = masks.RowWindow(start, np.minimum(start + 4, n_kv))
    mask = windows & masks.Causal() if is_causal else windows
    want = reference.polynomial_attention(
        query,
        key,
        value,
        degree=degree,
        mask=windows.to_dense(n_q, n_kv),
        is_causal=is_causal,
        shift_rows=False,
        scale=1.0,
    )
    coefficients = reference.exp_polynomial(degree, -want.radius, want.radius)
    mean = reference.mean_key(key)
    both = reference.row_window_product(
        reference.query_features(query, coefficients),
        reference.key_features(key - mean, degree),
        np.c_[value, np.ones(n_kv)],
        mask.start,
        mask.stop,
    )
    total = np.where(both[:, 2:] > 0.0, both[:, 2:], 1.0)
    np.testing.assert_allclose(both[:, :2] / total, want.out, rtol=1e-9, atol=1e-11)
    lse = np.log(total[:, 0]) + query @ mean[0]
    sees = np.isfinite(want.lse)
    np.testing.assert_allclose(lse[sees], want.lse[sees], rtol=1e-9)
    assert 0 < np.count_nonzero(~sees) < n_q


def test_refusals():
    F = factors(3, 4)
    with pytest.raises(ValueError, match="method is unknown; expected 'tree' or 'prefix'; got 'x'"):
        reference.row_window_product(*F, [0] * 3, [0] * 3, method="x")
    with pytest.raises(ValueError, match=r"are no factors; expected .*; got \(3, 4\)"):
        reference.causal_product(F[0], F[1][:, :2], F[2])
    with pytest.raises(ValueError, match="V does not match U2; expected 4 rows; got 3"):
        reference.causal_product(F[0], F[1], F[2][:3])


def test_the_oracle_knows_every_mask():
    named = {name for name in reference.__all__ if name.endswith("_product")}
    shapes = {name for name in masks.__all__ if inspect.isclass(getattr(masks, name))}
    shapes -= {"Mask", "KeyLists"}
    snake = {"".join(f"_{c.lower()}" if c.isupper() else c for c in name)[1:] for name in shapes}
    assert named - {"masked_product"} == {f"{name}_product" for name in snake}
