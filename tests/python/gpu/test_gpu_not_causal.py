"""Attention without a causal mask through strips on a GPU, against the CPU's."""

import numpy as np
import pytest

import convbasis as cb

TOLERANCE = {np.float64: 1e-12, np.float32: 2e-5, np.float16: 4e-3}


def problem(n, heads_of_noise=(), kv_heads=4, dtype=np.float64):
    """Logits of positions alone, whose triangles have few strips; some heads of noise."""
    rng = np.random.default_rng(n)
    angle = np.arange(n)[:, None] * np.array([0.01, 0.1, 0.5, 0.02])
    turning = np.concatenate([np.cos(angle), np.sin(angle)], axis=-1)
    query = np.broadcast_to(turning, (2, 4, n, 8)).copy()
    for head in heads_of_noise:
        query.reshape(8, n, 8)[head] = 3.0 * rng.normal(size=(n, 8))
    key = np.broadcast_to(turning, (2, kv_heads, n, 8)).copy()
    value, grad = rng.normal(size=(2, kv_heads, n, 5)), rng.normal(size=(2, 4, n, 5))
    return [array.astype(dtype) for array in (query, key, value, grad)]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("noise", [(), (1, 2, 6), range(8)])
def test_strips_are_looked_for_in_both_triangles(backend, row_error, kv_heads, noise, dtype):
    host = problem(260, noise, kv_heads, dtype)[:3]
    call = {"enable_gqa": kv_heads != 4, "return_lse": True}
    want, expected, report = cb.conv_attention(*host, return_report=True, **call)
    if dtype != np.float16:  # whose rounding hides the strips
        assert np.array_equal(np.flatnonzero(report.exact_mask), noise)
    got, lse = cb.conv_attention(*(backend.put(array) for array in host), **call)
    assert isinstance(got, backend.ndarray)
    assert row_error(backend.get(got), want) < TOLERANCE[dtype]
    assert row_error(backend.get(lse)[..., None], expected[..., None]) < 10 * TOLERANCE[dtype]


@pytest.mark.parametrize("n", [1, 2, 63, 130])
def test_a_given_pair_of_bases(backend, qkv, row_error, n):
    """The second of the reversed rows; its scale counts, and both have to be there."""
    host = qkv(n, lead=(2, 3), value_dim=5)
    starts = np.unique([0, n // 3, n - 1])
    turned = [np.ascontiguousarray(array[..., ::-1, :]) for array in host[:2]]
    pair = [cb.recover_basis(*part, starts=starts, scale=0.3) for part in (host[:2], turned)]
    arrays = [backend.put(array) for array in host]
    halves = [arrays[:2], [backend.put(array) for array in turned]]
    on_gpu = tuple(cb.recover_basis(*part, starts=starts, scale=0.3) for part in halves)
    got = cb.conv_attention(*arrays, basis=on_gpu)
    assert row_error(backend.get(got), cb.conv_attention(*host, basis=tuple(pair))) < 1e-12
    with pytest.raises(ValueError, match="basis does not fit is_causal=False"):
        cb.conv_attention(*arrays, basis=on_gpu[0])
    with pytest.raises(ValueError, match="basis does not fit is_causal=True"):
        cb.conv_attention(*arrays, is_causal=True, basis=on_gpu)
    with pytest.raises(TypeError, match="basis is not on a GPU, but another array is"):
        cb.conv_attention(*arrays, basis=(on_gpu[0], pair[1]))
    with pytest.raises(ValueError, match="differs in scale"):
        cb.conv_attention(*arrays, basis=on_gpu, scale=2.0)


def test_other_numbers_of_keys_are_refused(backend, qkv):
    arrays = [backend.put(array) for array in qkv(12, n_kv=15)]
    for call in (cb.conv_attention, cb.conv_attention_backward):
        more = [arrays[0]] if call is cb.conv_attention_backward else []
        with pytest.raises(NotImplementedError, match="key differs in length from query"):
            call(*arrays, *more)
