"""polynomial_attention against the oracle with the same polynomial, and its promises."""

import json

import numpy as np
import pytest

import convbasis as cb
from convbasis import _core, masks, reference

SIZES = [(1, 1), (2, 5), (7, 2), (63, 65), (64, 64), (129, 127), (300, 128), (127, 300)]
EPS = {np.float32: 2.0**-23, np.float64: 2.0**-52}


def uniform(n_q, n_kv, d, *, value_dim=5, lead=(), spread=1.0, dtype=np.float64, seed=0):
    """Entries within `spread`, so that logits stay within spread^2 sqrt(d) at the default scale."""
    rng = np.random.default_rng(seed)
    shapes = ((*lead, n_q, d), (*lead, n_kv, d), (*lead, n_kv, value_dim))
    query, key, value = (rng.uniform(-1.0, 1.0, size=shape) for shape in shapes)
    return (spread * query).astype(dtype), (spread * key).astype(dtype), value.astype(dtype)


@pytest.fixture
def cheap_features():
    """A cost model by which features pay, whatever this machine is busy with."""
    kept = cb.cost_model(np.float64)
    cb.set_cost_model(cb.CostModel(0.1, 0.06, 0.01, 0.2, 4.0), np.float64)
    yield
    cb.set_cost_model(kept, np.float64)


KINDS = [name for name in masks.__all__ if name not in ("Mask", "KeyLists")]


def make_mask(kind, n_q, n_kv):
    """A mask with rows that see nothing, little and much, where its kind allows."""
    rng = np.random.default_rng(n_q)
    if kind == "Causal":
        return masks.Causal()
    if kind == "SlidingWindow":
        return masks.SlidingWindow(max(n_kv // 3, 1))
    if kind == "Longformer":
        return masks.Longformer(20, [0, min(n_q, n_kv) - 1])
    if kind == "RowWindow":
        start, stop = np.sort(rng.integers(0, n_kv + 1, size=(2, n_q)), axis=0)
        return masks.RowWindow(start, stop)
    if kind == "RowChange":
        first = np.flatnonzero(rng.random(n_kv) < 0.5)
        seen, added, removed = set(first.tolist()), [], []
        for row in range(1, n_q):
            touched = set(rng.integers(0, n_kv, size=n_kv if row % 90 == 0 else 3).tolist())
            added.append(sorted(touched - seen))
            removed.append(sorted(touched & seen))
            seen ^= touched
        return masks.RowChange(first, added, removed)
    by_row = kind == "DistinctRows"
    patterns = rng.random((4, n_kv if by_row else n_q)) < [[0.5], [0.0], [0.05], [1.0]]
    return getattr(masks, kind)(rng.integers(0, 4, size=n_q if by_row else n_kv), patterns)


def same_polynomial(report, arrays, mask, is_causal, **call):
    """The oracle with the polynomial that the library took, for one head."""
    coefficients, _ = _core.exp_polynomial(int(report.degree), float(report.radius))
    query, key, value = (np.asarray(array, np.float64) for array in arrays)
    seen = None if mask is None else mask.to_dense(query.shape[-2], key.shape[-2])
    return reference.polynomial_attention(
        query,
        key,
        value,
        coefficients=coefficients,
        mask=seen,
        is_causal=is_causal,
        shift_rows=False,
        **call,
    )


def check(arrays, mask=None, is_causal=False, degree=4):
    """Output and lse are the oracle's but for rounding; sums have up to n terms of either sign."""
    out, lse, report = cb.polynomial_attention(
        *arrays, mask, is_causal=is_causal, degree=degree, return_lse=True, return_report=True
    )
    if is_causal:  # keys that nobody sees do not count for the mean
        n_q = arrays[0].shape[-2]
        arrays = arrays[0], arrays[1][..., :n_q, :], arrays[2][..., :n_q, :]
        if mask is not None:
            mask = None if isinstance(mask, masks.Causal) else mask
    want = same_polynomial(report, arrays, mask, is_causal)
    rounding = max(64 * EPS[arrays[0].dtype.type], 4 * float(report.rounding))
    assert np.abs(out - want.out).max(initial=0.0) <= rounding
    np.testing.assert_array_equal(np.isneginf(lse), np.isneginf(want.lse))
    seen = ~np.isneginf(lse)
    assert np.abs(lse[seen] - want.lse[seen]).max(initial=0.0) <= 8 * rounding
    assert not out[~seen].any()
    if arrays[1].shape[-2] > 8 and seen.any():
        assert np.abs(want.out).max() > 100 * rounding  # an output of zeros would fail


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("n_q", "n_kv"), SIZES)
def test_output_is_the_oracle_with_the_same_polynomial(dtype, is_causal, n_q, n_kv):
    check(uniform(n_q, n_kv if not is_causal else min(n_q, n_kv), 6, dtype=dtype), None, is_causal)


@pytest.mark.parametrize(("d", "degree"), [(1, 8), (2, 5), (3, 0), (16, 3), (64, 2), (5, 1)])
@pytest.mark.parametrize("value_dim", [1, 8, 33])
def test_any_number_of_channels(d, degree, value_dim):
    check(uniform(150, 150, d, value_dim=value_dim, spread=0.3), None, True, degree)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n_q", "n_kv"), [(2, 5), (64, 64), (300, 128), (127, 300), (500, 500)])
def test_masks_are_the_oracle_with_their_matrices(kind, is_causal, n_q, n_kv):
    arrays = uniform(n_q, n_kv, 3, spread=0.7)
    mask = make_mask(kind, n_q, n_kv)
    out, lse, report = cb.polynomial_attention(
        *arrays, mask, is_causal=is_causal, degree=4, return_lse=True, return_report=True
    )
    dense = mask.to_dense(n_q, n_kv)
    if is_causal:
        dense = dense & np.tri(n_q, n_kv, dtype=bool)
    query, key, value = arrays
    middle = reference.mean_key(key[dense.any(axis=0)])  # of keys that some query sees
    coefficients, _ = _core.exp_polynomial(4, float(report.radius))
    want = reference.polynomial_attention(
        query, key - middle, value, coefficients=coefficients, mask=dense, shift_rows=False,
        centre_keys=False,
    )  # fmt: skip
    assert np.abs(out - want.out).max() <= 1e-12
    seen = dense.any(axis=1)
    shift = query @ middle[0] / np.sqrt(3)
    assert np.abs(lse[seen] - (want.lse + shift)[seen]).max(initial=0.0) <= 1e-11
    assert np.isneginf(lse[~seen]).all()
    assert not out[~seen].any()


def test_windows_of_any_length_and_order():
    """Hardly two rows have a range of chunks in common, which are then taken node by node."""
    rng = np.random.default_rng(0)
    arrays = uniform(3000, 2500, 3, spread=0.7)
    mask = masks.RowWindow(*np.sort(rng.integers(0, 2501, size=(2, 3000)), axis=0))
    one, report = cb.polynomial_attention(
        *arrays, mask, degree=4, return_report=True, num_threads=1
    )
    want = same_polynomial(report, arrays, mask, False).out
    assert np.abs(one - want).max() <= 1e-12 < 1e-3 * np.abs(want).max()
    assert (cb.polynomial_attention(*arrays, mask, degree=4, num_threads=3) == one).all()


@pytest.mark.parametrize("tol", [1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("kind", ["random", "one large key", "one large query", "two clusters"])
def test_tolerance_is_kept(kind, is_causal, tol):
    query, key, value = uniform(400, 400, 4, value_dim=4)
    if kind == "one large key":
        key[70] *= 40.0
    if kind == "one large query":
        query[3] *= 40.0
    if kind == "two clusters":
        key[::2] += 1.0
        value[::2] = -1.0
    out, lse, report = cb.polynomial_attention(
        query,
        key,
        value,
        is_causal=is_causal,
        tol=tol,
        on_miss="keep",
        return_lse=True,
        return_report=True,
    )
    exact, exact_lse = reference.attention(query, key, value, is_causal=is_causal)
    error = np.abs(out - exact).max()
    assert error <= report.error_bound + 1e-14  # rounding alone for exact heads
    if report.epsilon + report.rounding <= tol:
        assert error <= 2 * tol / (1 - tol) * np.abs(value).max()
        assert np.abs(lse - exact_lse).max() <= -np.log1p(-tol) + 1e-12
    if tol <= 1e-3 and report.heads_exact == 0:
        counts = np.arange(1.0, 401.0)[:, None]
        running = np.cumsum(value, axis=0) / counts if is_causal else value.mean(axis=0)
        near = cb.exact_attention(query, key, value, masks.SlidingWindow(64), is_causal=is_causal)
        baselines = [running, near]
        if kind in ("random", "two clusters"):  # else it has rows to compute exactly
            baselines.append(
                cb.polynomial_attention(query, key, value, is_causal=is_causal, degree=1)
            )
        for baseline in baselines:
            assert np.abs(baseline - exact).max() > 20 * error


def test_large_entries_are_taken_exactly():
    query, key, value = uniform(20000, 20000, 4, spread=0.6, dtype=np.float32)
    key[[7, 1999]] *= 50.0
    query[[11, 400]] *= 50.0
    out, report = cb.polynomial_attention(query, key, value, is_causal=True, return_report=True)
    exact = cb.exact_attention(query, key, value, is_causal=True)
    assert report.heads_exact == 0
    assert 2 <= report.columns_exact < 500
    assert 2 <= report.rows_exact < 500
    assert np.abs(out - exact).max() <= report.error_bound < 0.01
    assert (
        out[[11, 400]] == cb.exact_attention(query, key, value, is_causal=True)[[11, 400]]
    ).any()


def test_changing_the_future_leaves_the_past():
    query, key, value = uniform(700, 700, 4, spread=0.5)
    call = {"is_causal": True, "degree": 4}
    before = cb.polynomial_attention(query, key, value, **call)
    later = value.copy()
    later[350:] *= -1.0
    after = cb.polynomial_attention(query, key, later, **call)
    assert (after[:350] == before[:350]).all()
    assert (after[350:] != before[350:]).all()
    key[[500, 600]] = key[[600, 500]]  # the mean and the range change by rounding at most
    query[[500, 600]] = query[[600, 500]]
    after = cb.polynomial_attention(query, key, later, **call)
    np.testing.assert_allclose(after[:350], before[:350], rtol=0, atol=1e-13)


def test_threads_change_nothing():
    arrays = uniform(3000, 3000, 6, lead=(2,), dtype=np.float32, spread=0.5)
    for mask in (None, masks.Causal(), masks.SlidingWindow(500)):
        one, two = (
            cb.polynomial_attention(*arrays, mask, degree=3, num_threads=count) for count in (1, 3)
        )
        assert (one == two).all()


def test_layouts_and_shared_heads_agree():
    query, key, value = uniform(200, 200, 4, lead=(2, 4), spread=0.5)
    shared = key[:, :2], value[:, :2]
    call = {"is_causal": True, "degree": 3}
    out = cb.polynomial_attention(query, *shared, enable_gqa=True, **call)
    repeated = [np.repeat(array, 2, axis=1) for array in shared]
    assert (cb.polynomial_attention(query, *repeated, **call) == out).all()
    turned = [np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) for x in (query, *repeated)]
    assert (cb.polynomial_attention(*turned, **call) == out).all()
    backwards = [np.ascontiguousarray(x[..., ::-1])[..., ::-1] for x in (query, *repeated)]
    target = np.empty((2, 4, 200, 10))[..., ::2]
    assert cb.polynomial_attention(*backwards, out=target, **call) is target
    np.testing.assert_allclose(target, out, rtol=0, atol=1e-14)


def test_half_precision_is_computed_in_float32():
    arrays = uniform(300, 300, 4, spread=0.5, dtype=np.float16)
    out, lse, report = cb.polynomial_attention(
        *arrays, is_causal=True, return_lse=True, return_report=True
    )
    assert out.dtype == np.float16
    assert lse.dtype == np.float32
    exact = reference.attention(*arrays, is_causal=True)[0]
    assert np.abs(out - exact).max() <= report.error_bound + 2.0**-10


def test_heads_that_miss_are_computed_exactly(cheap_features):
    query, key, value = uniform(600, 600, 8, lead=(2,))
    query[1] *= 9.0
    call = {"is_causal": True}
    out, report = cb.polynomial_attention(query, key, value, tol=0.1, return_report=True, **call)
    assert report.exact_mask.tolist() == [False, True]
    assert (out[1] == cb.exact_attention(query, key, value, **call)[1]).all()
    assert report.error_bound[1] == 0.0
    kept, report = cb.polynomial_attention(
        query, key, value, tol=0.1, on_miss="keep", return_report=True, **call
    )
    assert report.heads_exact == 0
    assert (kept[0] == out[0]).all()
    target = np.full_like(out, 7.0)
    with pytest.raises(cb.ToleranceMissed, match=r"1 of 2 heads; expected .*in head \(1,\)"):
        cb.polynomial_attention(query, key, value, tol=0.1, on_miss="error", out=target, **call)
    assert (target == 7.0).all()


@pytest.mark.parametrize("wanted", [{"degree": 3}, {"tol": 0.01}])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("spoiled", ["query", "key"])
def test_unchecked_nan_is_not_turned_into_numbers(spoiled, is_causal, wanted):
    rng = np.random.default_rng(0)
    arrays = dict(zip(("query", "key", "value"), 0.4 * rng.normal(size=(3, 300, 2)), strict=True))
    arrays[spoiled][200, 1:] = np.nan
    arrays[spoiled][200] *= np.nan if is_causal else 1.0  # no number left in the row
    options = {"is_causal": is_causal, "check_finite": False}
    out, lse, report = cb.polynomial_attention(
        **arrays, **options, **wanted, return_lse=True, return_report=True
    )
    exact = cb.exact_attention(**arrays, **options)
    np.testing.assert_array_equal(np.isnan(out), np.isnan(exact))
    assert np.isnan(out[200]).all()
    assert np.isnan(lse[200])
    assert report.radius == np.inf


def test_no_heads_at_all():
    query = np.ones((0, 2, 5, 3))
    out, report = cb.polynomial_attention(query, query, query, return_report=True)
    assert out.shape == query.shape
    assert json.loads(report.to_json())["exact_mask"] == []
    grads = cb.polynomial_attention_backward(query, query, query, query, degree=2)
    assert [grad.shape for grad in grads] == [query.shape] * 3


def test_a_degree_is_taken_whatever_it_costs():
    arrays = uniform(50, 50, 8, spread=0.5)
    out, report = cb.polynomial_attention(*arrays, degree=6, return_report=True)
    assert (report.degree, report.rank, report.heads_exact) == (6, 3003, 0)
    assert report.cost_polynomial > report.cost_exact
    judged, report = cb.polynomial_attention(*arrays, degree=1, tol=1e-4, return_report=True)
    assert report.heads_exact == 1
    assert (judged == cb.exact_attention(*arrays)).all()
    assert np.abs(out - judged).max() < 1e-6


@pytest.mark.parametrize("is_causal", [False, True])
def test_nothing_is_promised_for_nan(is_causal, cheap_features):
    """Unchecked NaN has no bound: it is left to exact attention, where it spreads."""
    query, key, value = uniform(600, 600, 4)
    call = {"is_causal": is_causal, "check_finite": False}
    bad = query.copy()
    bad[9] = np.nan
    out = cb.polynomial_attention(bad, key, value, tol=0.1, **call)
    assert np.isnan(out[9]).all()
    good = cb.exact_attention(query, key, value, is_causal=is_causal)
    others = np.arange(600) != 9
    assert np.abs(out - good)[others].max() <= 0.3
    bad = key.copy()
    bad[9] = np.nan
    out, report = cb.polynomial_attention(query, bad, value, tol=0.1, **call, return_report=True)
    assert report.heads_exact == 1
    assert np.isnan(out[9:]).all()
    with pytest.raises(cb.ToleranceMissed, match="beyond any polynomial"):
        cb.polynomial_attention(query, bad, value, tol=0.1, on_miss="error", **call)


def test_messages_tell_why_a_head_misses():
    small = uniform(300, 300, 8)
    with pytest.raises(cb.ToleranceMissed, match=r"features take too much memory\. on_miss="):
        cb.polynomial_attention(*small, degree=40, tol=0.1, on_miss="error")
    large = uniform(300, 300, 8, spread=1.2)
    with pytest.raises(cb.ToleranceMissed, match=r"with degree 2 an error of 0\.\d+"):
        cb.polynomial_attention(*large, degree=2, tol=0.01, on_miss="error")


def test_the_bound_counts_what_half_precision_loses(cheap_features):
    arrays = [array.astype(np.float16) for array in uniform(900, 900, 4, spread=0.5)]
    out, report = cb.polynomial_attention(*arrays, tol=1e-5, on_miss="keep", return_report=True)
    exact = reference.attention(*(array.astype(np.float64) for array in arrays))[0]
    assert report.heads_exact == 0
    error = np.abs(out.astype(np.float64) - exact).max()
    assert 1e-6 < error <= report.error_bound


def test_report_is_json_and_a_table():
    arrays = uniform(50, 50, 3, lead=(2,))
    _, report = cb.polynomial_attention(*arrays, degree=4, return_report=True)
    assert set(json.loads(report.to_json())) == set(report.to_dict())
    assert "| 1 | " in str(report)
    assert (report.radius >= report.sampled_radius).all()


@pytest.mark.parametrize(
    ("argument", "error", "text"),
    [
        ({"degree": -1}, ValueError, "degree"),
        ({"degree": 41}, ValueError, r"degree is too high; expected at most 40; got 41"),
        ({"tol": -1.0}, ValueError, "tol"),
        ({"tol": 0.0}, ValueError, "tol is not positive"),
        ({"on_miss": "pass"}, ValueError, "on_miss"),
        ({"on_miss": "keep", "degree": 2}, ValueError, "on_miss"),
        ({"tol": 1.0}, ValueError, "tol"),
        ({"dropout_p": 0.5}, NotImplementedError, "dropout_p"),
        ({"attn_mask": np.ones((4, 4), bool)}, NotImplementedError, "attn_mask"),
        ({"attn_mask": masks.RowWindow([0], [1])}, ValueError, "mask"),
        ({"scale": np.nan}, ValueError, "scale"),
    ],
)
def test_wrong_arguments_are_refused(argument, error, text):
    arrays = uniform(4, 4, 2)
    target = np.full((4, 5), 7.0)
    with pytest.raises(error, match=rf"\[polynomial_attention\].*{text}"):
        cb.polynomial_attention(*arrays, out=target, **argument)
    arrays[1][2, 1] = np.inf
    with pytest.raises(ValueError, match=r"\[polynomial_attention\] key"):
        cb.polynomial_attention(*arrays, out=target)
    assert (target == 7.0).all()
