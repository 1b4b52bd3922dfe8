"""Calibrated attention of the core beside the oracle's, and what it promises."""

import weakref

import numpy as np
import pytest

import convbasis as cb
from convbasis import _core
from convbasis import reference as ref


def attend(arrays, **call):
    call = {"is_causal": True, "scale": 1.0, "enable_gqa": True, "num_threads": 2, **call}
    call.setdefault("options", cb.CalibrateOptions())
    return cb.conv_attention(*arrays, **call)


def exactly(arrays, **call):
    return cb.exact_attention(*arrays, is_causal=True, scale=1.0, enable_gqa=True, **call)


def calibration_of(arrays, options, tol=0.0):
    """The calibration of 4-D arrays, and the oracle's head and drawn keys for each of them."""
    calibration = _core.SelfAttention(*arrays, 1.0, 1).calibrate(options.as_tuple(), tol, 1)
    heads = []
    for index in range(arrays[0].shape[0] * arrays[0].shape[1]):
        found = calibration.head(index)
        near = found["near_blocks"]  # may be more than blocks were ranked for
        retrieved = [
            row[(row >= 0) & (row < block - near)][: found["retrieved"][block]]
            for block, row in enumerate(found["ranked"])
        ]
        head = ref.CalibratedHead(
            near,
            retrieved,
            found["heavy"],
            found["key_weights"],
            found["lag_weights"],
            found["lags"],
            found["has_far"],
        )
        heads.append((head, found))
    return calibration, heads


def oracle(arrays, options, tol=0.0):
    """Output and lse of all heads for the calibration that the core makes of these arrays."""
    _, found = calibration_of(arrays, options, tol)
    query, key, value = arrays
    group = query.shape[1] // key.shape[1]
    out = np.zeros((*query.shape[:3], value.shape[3]))
    lse = np.zeros(query.shape[:3])
    for index, (head, draws) in enumerate(found):
        b, h = divmod(index, query.shape[1])
        one = query[b, h], key[b, h // group], value[b, h // group]
        out[b, h], lse[b, h], _ = ref.calibrated_attention(*one, head, draws["drawn"], scale=1.0)
    return out, lse


@pytest.fixture(scope="module")
def options():
    return cb.CalibrateOptions(window=100, sinks=2, heavy_keys=20, retrieval_blocks=3, seed=5)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_output_and_lse_are_the_oracles(content_heads, row_error, options, dtype):
    query, key, value = content_heads(2085, 4, d=16, kv_heads=2, dtype=dtype, seed=2)
    arrays = query, key, value[..., :11]
    out, lse = attend(arrays, options=options, return_lse=True)
    want, want_lse = oracle(arrays, options)
    # At most twice the error that exact attention has in this type, on the same heads.
    exact = exactly(arrays)
    truth = exactly([array.astype(np.float64) for array in arrays])
    own = row_error(exact, truth) if dtype == np.float32 else 1e-14
    assert row_error(out, want) < 2 * own
    np.testing.assert_allclose(lse, want_lse, rtol=4 * np.finfo(dtype).eps, atol=2 * own)
    assert row_error(out, exact) > 0.01  # it is an approximation


def test_layouts_of_the_caller(content_heads, options):
    arrays = content_heads(2048, 4, d=16, seed=3)
    want = attend(arrays, options=options)
    strided = [np.asfortranarray(array[:, :, ::-1])[:, :, ::-1] for array in arrays]
    np.testing.assert_array_equal(attend(strided, options=options), want)
    folded = [array.reshape(2, 2, 1, *array.shape[2:]) for array in arrays]
    np.testing.assert_array_equal(attend(folded, options=options).reshape(want.shape), want)
    out = np.empty((1, 4, 16, 2048)).swapaxes(2, 3)
    assert attend(arrays, options=options, out=out) is out
    np.testing.assert_array_equal(out, want)
    more = [arrays[0], *(np.concatenate([a, a[:, :, :9]], axis=2) for a in arrays[1:])]
    np.testing.assert_array_equal(attend(more, options=options), want)


def test_arrays_live_as_long_as_what_reads_them(content_heads):
    query, key, value = content_heads(300, 2, d=16)
    want = exactly((query, key, value))[0, :, [7, 299]].swapaxes(0, 1)
    attention = _core.SelfAttention(query, key, value, 1.0, 1)
    alive = [weakref.ref(array) for array in (query, key, value)]
    del query, key, value
    assert all(array() is not None for array in alive)
    rows = np.array([[7, 299]] * 2)
    np.testing.assert_allclose(attention.exact_rows(rows, None, 1), want, rtol=1e-12, atol=1e-12)
    del attention
    assert all(array() is None for array in alive)


def test_float16_is_computed_in_float32(content_heads, options):
    arrays = content_heads(2048, 1, d=16, dtype=np.float16, seed=1)
    got = attend(arrays, options=options)
    assert got.dtype == np.float16
    wide = attend([array.astype(np.float32) for array in arrays], options=options)
    np.testing.assert_array_equal(got, wide.astype(np.float16))


def test_the_calibration_is_the_oracles(content_heads, options):
    n, head_count = 2100, 2
    arrays = content_heads(n, head_count, d=16, seed=7)
    _, found = calibration_of(arrays, options)
    near = -(-options.window // 64)
    for index, (head, core) in enumerate(found):
        query, key, _ = (array[0, index] for array in arrays)
        rows = ref.sample_rows(options.seed, index, n, n // 32)
        logits = ref.attention_logits(query[rows], key, scale=1.0)
        weights, _ = ref.masked_softmax(logits, rows[:, None] >= np.arange(n))
        far = np.where(rows[:, None] // 64 - np.arange(n) // 64 > near, weights, 0.0)
        heavy = ref.heavy_keys(far.sum(0), options.sinks, options.heavy_keys)
        np.testing.assert_array_equal(core["heavy"], heavy)
        beta, tau, single = ref.fit_far(weights, rows, near)
        beta[heavy] = 0.0
        np.testing.assert_allclose(core["key_weights"], beta, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(core["lag_weights"], tau, rtol=1e-9, atol=1e-15)
        assert core["lags"].tolist() == single.tolist() == []
        assert core["near_blocks"] == near  # without a tolerance
        ranked = ref.rank_key_blocks(query, key, heavy, near, scale=1.0)
        most = core["ranked"].shape[1]
        assert most == 4 * options.retrieval_blocks
        for got, (want, _) in zip(core["ranked"], ranked, strict=True):
            np.testing.assert_array_equal(got[got >= 0], want[: len(got)])
        taken = ref.take_largest(ranked, near, options.retrieval_blocks, most)
        np.testing.assert_array_equal(core["retrieved"], taken)
        assert taken.max() > options.retrieval_blocks > taken[taken > 0].min()
        for block, drawn in enumerate(core["drawn"]):
            offset = ref.uniform_draw(options.seed, index, block)
            want = ref.draw_keys(head.model(block), options.sample_keys, offset)
            np.testing.assert_array_equal(drawn, want)


@pytest.mark.parametrize(("lag", "blocks"), [(100, 0), (128, 2), (700, 0)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_single_lag_is_exact(row_error, dtype, lag, blocks):
    """Each query looks at the key that far before it, and a little at all others."""
    n, d = 2100, 48
    rng = np.random.default_rng(3)
    key, value = rng.normal(size=(2, 1, 1, n, d)).astype(dtype)
    query = np.roll(key, lag, axis=2) * dtype(0.25)
    arrays = query, key, value
    options = cb.CalibrateOptions(retrieval_blocks=blocks, heavy_keys=8)
    ((head, core),) = calibration_of(arrays, options)[1]
    np.testing.assert_array_equal(core["lags"], [lag])
    out, lse = attend(arrays, options=options, return_lse=True)
    want, want_lse = oracle(arrays, options)
    bound = 1e-12 if dtype == np.float64 else 1e-5
    assert row_error(out, want) < bound
    np.testing.assert_allclose(lse, want_lse, rtol=bound)
    exact = exactly(arrays)[0, 0]
    without = ref.CalibratedHead(1, head.retrieved, head.heavy, head.key_weights, head.lag_weights)
    drawn = [ref.draw_keys(without.model(block), 64, 0.5) for block in range(33)]
    one = (array[0, 0] for array in arrays)
    rough = ref.calibrated_attention(*one, without, drawn, scale=1.0)[0]
    good, bad = (np.linalg.norm((y - exact)[lag:]) for y in (out[0, 0], rough))
    assert good < 0.1 * np.linalg.norm(exact[lag:])
    if blocks == 0 and lag >= 128:  # nearer keys are near in some rows
        assert bad > 0.5 * np.linalg.norm(exact[lag:])


@pytest.mark.parametrize("n", [2048, 8192])
def test_a_key_that_few_rows_look_up_is_heavy_and_no_lag(n):
    rng = np.random.default_rng(0)
    query, key, value = rng.normal(size=(3, 1, 1, n, 32)) * 0.3
    ramp, looks = np.arange(n) / 60.0, rng.random(n) < 0.12
    key[..., 0], query[..., 0] = 0.0, 0.0
    key[..., 100, 0], key[..., 1], query[..., 1] = 1.0, ramp, 1.0
    query[0, 0, looks, 0] = 14.0 + ramp[looks]
    ((_, core),) = calibration_of((query, key, value), cb.CalibrateOptions())[1]
    assert 100 in core["heavy"]
    assert len(core["lags"]) == 0


def test_with_every_key_near_it_is_exact(content_heads, row_error):
    arrays = content_heads(2085, 2, d=16)
    for wide in (cb.CalibrateOptions(window=4000), cb.CalibrateOptions(heavy_keys=4000)):
        out, report = attend(arrays, options=wide, return_report=True)
        assert row_error(out, exactly(arrays)) < 1e-12
        assert np.max(report.error_interval) < 1e-12


def test_threads_and_repetition_change_nothing(content_heads):
    arrays = content_heads(2085, 3, d=16, dtype=np.float32)
    for tol in (None, 0.1):
        want = attend(arrays, tol=tol, num_threads=1)
        for threads in (1, 2, 3):
            np.testing.assert_array_equal(attend(arrays, tol=tol, num_threads=threads), want)
    other = attend(arrays, options=cb.CalibrateOptions(seed=1))
    assert not np.array_equal(other, attend(arrays))


def test_powers_of_two_cancel(content_heads, options):
    query, key, value = content_heads(2048, 1, d=16)
    want = attend((query, key, value), options=options)
    np.testing.assert_array_equal(attend((query * 8, key / 8, value), options=options), want)
    np.testing.assert_array_equal(attend((query, key, value * 8), options=options), want * 8)


def test_constants_of_logits_and_values(content_heads, row_error, options):
    query, key, value = content_heads(2048, 1, d=16)
    want, lse = attend((query, key, value), options=options, return_lse=True)
    ones = np.ones((*query.shape[:3], 1))
    raised = np.concatenate([query, ones], -1), np.concatenate([key, 3.0 * ones], -1), value
    out, raised_lse = attend(raised, options=options, return_lse=True)
    assert row_error(out, want) < 1e-11
    np.testing.assert_allclose(raised_lse, lse + 3.0, rtol=1e-12)
    # Without a choice of blocks: that depends on errors relative to the values.
    few = cb.CalibrateOptions(retrieval_blocks=0)
    shifted = attend((query, key, value + 1.0), options=few)
    assert row_error(shifted, attend((query, key, value), options=few) + 1.0) < 1e-11
    ones = attend((query, key, np.ones_like(value)), options=options)
    np.testing.assert_allclose(ones, 1.0, rtol=1e-12)


def test_heads_do_not_see_each_other(content_heads, options):
    arrays = content_heads(2048, 3, d=16)
    both = attend(arrays, options=options)
    changed = [array.copy() for array in arrays]
    changed[0][:, 1:] += 1.0
    np.testing.assert_array_equal(attend(changed, options=options)[:, 0], both[:, 0])
    turned = attend([array[:, ::-1] for array in arrays], options=options)[:, ::-1]
    # Another place draws other rows and keys: the same head up to its error.
    exact = exactly(arrays)
    for head in range(3):
        errors = [np.linalg.norm((x - exact)[0, head]) for x in (both, turned)]
        assert 0.5 < errors[0] / errors[1] < 2.0


def test_the_first_blocks_are_exact(content_heads, options):
    arrays = content_heads(2048, 1, d=16)
    out = attend(arrays, options=options)
    assert np.array_equal(out[:, :, 0], arrays[2][:, :, 0])
    first = [array[:, :, :256] for array in arrays]
    np.testing.assert_allclose(out[:, :, :256], exactly(first), rtol=1e-11, atol=1e-12)
